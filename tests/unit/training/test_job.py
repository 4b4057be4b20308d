"""A whole run: what it makes, and that it makes the same however often it was stopped."""

import hashlib
import json
import math
import signal
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from app.data.pools import ClassPool
from app.errors import CheckpointError, Diverged, RecipeError, RegistryError
from app.registry import Registry
from app.training import job, publish
from app.training.recipe import Measure
from tests.unit.training.helpers import Killed, Recorder, feed, kill, make_pools, recipe, run


def theta(folder: Path) -> bytes:
    """The bytes of θ that a run wrote."""
    return (folder / "models" / "tiny" / "1" / "theta.safetensors").read_bytes()


def log(folder: Path) -> list[dict]:
    """The lines of a run's log, without the time they were written at."""
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    return [{**json.loads(line), "wall_seconds": None} for line in lines]


def checkpointed(folder: Path) -> int:
    """The iteration of a run's checkpoint."""
    with safe_open(folder / "run" / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["run"])["iteration"]


def stop_measuring(folder: Path, at: Measure) -> None:
    """A run below a folder that is killed while it measures that figure."""
    recorder = Recorder()
    recorder.measures = lambda measure, _: kill() if measure == at else None
    with pytest.raises(Killed):
        run(recipe(), folder, recorder)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_version_holds_theta_and_a_card_that_says_how_it_was_made(whole_run):
    tiny, model = recipe(), Registry(whole_run / "models").load("tiny", 1)
    card = model.card
    assert card.theta_sha256 == hashlib.sha256(theta(whole_run)).hexdigest()
    assert card.theta_bytes == len(theta(whole_run))
    conv = 4 * 9 + 4 + 2 * (4 * 4 * 9 + 4)
    norm, head = 3 * 2 * 4, 4 * 4 * 4 + 1
    assert card.parameters == conv + norm + head
    assert set(card.alpha) == set(model.theta)
    for name, values in card.alpha.items():
        assert len(values) == card.steps == 2
        torch.testing.assert_close(model.alpha[name], torch.tensor(values))
    assert (card.trained_ways, card.trained_shots) == ((2, 5), (1, 3))
    assert (card.seed, card.iterations, card.head) == (3, 7, "shared-row")
    assert (card.input.shape, card.input.dark_on_light) == ((1, 28, 28), True)
    given = {"name": "conv", "filters": 4, "blocks": 3, "groups": 2}
    assert card.network == {
        **given,
        "strides": 2,
        "downsample": "stride",
        "feature_norm": True,
        "norm": "group",
        "readout": "flatten",
    }
    assert recipe().model_validate(card.recipe) == tiny
    assert card.made_with.items() >= {"torch": torch.__version__, "threads": "1"}.items()
    age = datetime.now(UTC) - datetime.fromisoformat(card.created_at)
    assert 0 <= age.total_seconds() < 600
    assert card.created_at.endswith("Z")
    assert 0 < card.wall_seconds < 600


def test_the_card_holds_the_recipes_figures_as_measured(whole_run):
    figures = Registry(whole_run / "models").card("tiny", 1).figures
    assert [(f.ways, f.shots, f.tasks) for f in figures] == [(4, 1, 6), (3, 2, 5)]
    for figure in figures:
        assert (figure.split, figure.protocol) == ("background/evaluation", "inductive")
        assert len(figure.accuracy_by_step) == 3
        assert figure.accuracy == figure.accuracy_by_step[-1]
        assert figure.accuracy_by_step[0] == pytest.approx(100 / figure.ways, abs=20)
        low, high = figure.confidence_interval_95
        assert low <= figure.accuracy <= high


def test_the_log_has_a_line_of_json_for_each_validation(whole_run):
    lines = log(whole_run)
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert math.isfinite(line["loss"])
        assert 0 <= line["accuracy"] <= 100
        assert 0 <= line["validation_nearest_class_mean"] <= 100
        assert len(line["validation_by_step"]) == 3
        assert line["validation_by_step"][-1] == pytest.approx(line["validation_accuracy"])


def test_the_reporter_is_told_of_every_iteration_and_validation(tmp_path):
    recorder, told = Recorder(), set()
    recorder.measures = lambda measure, done: told.add((measure.ways, done))
    run(recipe(), tmp_path, recorder)
    assert recorder.iterations == [1, 2, 3, 4, 5, 6, 7]
    assert [line["iteration"] for line in recorder.lines] == [2, 4, 6]
    assert {(3, 4), (4, 6), (3, 5)} <= told


def test_the_same_recipe_gives_the_same_theta_and_another_seed_another(tmp_path, whole_run):
    run(recipe(), tmp_path / "again")
    assert theta(tmp_path / "again") == theta(whole_run)
    run(recipe(("seed = 3", "seed = 4")), tmp_path / "other")
    assert theta(tmp_path / "other") != theta(whole_run)


def lit_pool(classes: int, seed: int) -> ClassPool:
    """Fine patterns under a strong light that differs in every picture, and must be ignored."""
    rng = np.random.default_rng(seed)
    fine = rng.uniform(0, 60, (classes, 1, 1, 14, 14)).repeat(2, -1).repeat(2, -2)
    light = rng.uniform(0, 195, (classes, 8, 1, 4, 4)).repeat(7, -1).repeat(7, -2)
    return ClassPool((fine + light).astype(np.uint8), tuple(map(str, range(classes))))


def test_meta_training_learns_what_new_classes_need(tmp_path, monkeypatch):
    pools = {"train": lit_pool(40, 1), "validation": lit_pool(6, 2), "test": lit_pool(20, 3)}
    feed(monkeypatch, pools)

    def accuracy(name: str, *changes: tuple[str, str]) -> float:
        common = [("iterations = 3", "iterations = 1"), ("tasks = 6", "tasks = 100")]
        run(recipe(*common, *changes), tmp_path / name, recorder)
        return Registry(tmp_path / name / "models").card("tiny", 1).figures[0].accuracy

    recorder = Recorder()
    still = [("learning_rate = 0.01", "learning_rate = 1e-9"), ("iterations = 4", "iterations = 1")]
    untrained = accuracy("untrained", *still)
    recorder = Recorder()
    trained = accuracy(
        "trained", ("iterations = 4", "iterations = 150"), ("every = 2", "every = 75")
    )
    assert recorder.losses[149] < 0.75 * recorder.losses[0]
    assert 25 < untrained < 50
    assert trained > 75


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6, 7])
def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_the_same(tmp_path, whole_run, at):
    with pytest.raises(Killed):
        run(recipe(), tmp_path, Recorder({at: kill}))
    # The reporter hears of an iteration before it is kept.
    assert checkpointed(tmp_path) == (at - 1) // 2 * 2
    again = Recorder()
    run(recipe(), tmp_path, again)
    assert again.iterations[0] == (at - 1) // 2 * 2 + 1
    assert theta(tmp_path) == theta(whole_run)
    assert log(tmp_path) == log(whole_run)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7])
def test_an_interrupt_leaves_a_checkpoint_where_it_came(tmp_path, whole_run, at):
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path, Recorder({at: interrupt}))
    assert checkpointed(tmp_path) == at
    again = Recorder()
    run(recipe(), tmp_path, again)
    assert again.iterations == list(range(at + 1, 8))
    assert theta(tmp_path) == theta(whole_run)
    assert log(tmp_path) == log(whole_run)


def test_an_interrupt_in_the_midst_of_the_outer_step_waits_for_its_end(
    tmp_path, whole_run, monkeypatch
):
    """Adam has moved θ by then, and the iteration is not counted yet."""
    initial = job.initial_state

    def interrupted(*arguments, **options):
        state = initial(*arguments, **options)
        state.optimizer.register_step_post_hook(
            lambda *_: interrupt() if state.iteration == 2 else None
        )
        return state

    with monkeypatch.context() as patch:
        patch.setattr(job, "initial_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(), tmp_path)
    assert checkpointed(tmp_path) == 3
    run(recipe(), tmp_path)
    assert theta(tmp_path) == theta(whole_run)


@pytest.mark.parametrize("end", [kill, interrupt], ids=["killed", "interrupted"])
def test_a_run_that_ended_in_a_validation_catches_up_on_it(tmp_path, whole_run, end):
    recorder = Recorder()
    recorder.measures = lambda *_: end() if recorder.iterations[-1:] == [4] else None
    with pytest.raises((Killed, KeyboardInterrupt)):
        run(recipe(), tmp_path, recorder)
    assert checkpointed(tmp_path) == 4
    assert [line["iteration"] for line in log(tmp_path)] == [2]
    run(recipe(), tmp_path)
    assert log(tmp_path) == log(whole_run)
    assert theta(tmp_path) == theta(whole_run)


@pytest.mark.parametrize("at", [0, 1])
def test_a_run_that_ended_while_measuring_the_figures_measures_what_is_left(
    tmp_path, whole_run, monkeypatch, at
):
    last = recipe().figures[at]
    stop_measuring(tmp_path, last)
    assert checkpointed(tmp_path) == 7
    assert not (tmp_path / "models" / "tiny").exists()
    monkeypatch.delattr(publish, "calibrated")
    again, measured = Recorder(), []
    again.measures = lambda measure, _: measured.append(measure)
    run(recipe(), tmp_path, again)
    assert again.iterations == []
    assert set(measured) == set(recipe().figures[at:])
    assert theta(tmp_path) == theta(whole_run)
    cards = [Registry(at / "models").card("tiny", 1) for at in (tmp_path, whole_run)]
    assert cards[0].figures == cards[1].figures
    assert cards[0].calibration == cards[1].calibration


@pytest.mark.parametrize("harm", [b"", b"{", b'{"of": "another", "calibration": null}'])
def test_what_was_measured_of_another_theta_or_is_broken_is_measured_again(
    tmp_path, whole_run, harm
):
    stop_measuring(tmp_path, recipe().figures[1])
    path = tmp_path / "run" / "measured.json"
    path.write_bytes(harm)
    run(recipe(), tmp_path)
    cards = [Registry(at / "models").card("tiny", 1) for at in (tmp_path, whole_run)]
    assert cards[0].figures == cards[1].figures
    assert cards[0].calibration == cards[1].calibration


def test_measured_figures_that_cannot_be_read_are_named_before_anything_is_measured(
    tmp_path, monkeypatch
):
    (tmp_path / "run" / "measured.json").mkdir(parents=True)
    monkeypatch.delattr(publish, "calibrated")
    with pytest.raises(CheckpointError, match=r"measured\.json cannot be read .*: delete it"):
        run(recipe(), tmp_path)


def test_a_recipe_whose_figures_changed_meanwhile_has_its_own(tmp_path, whole_run):
    first, second = recipe().figures
    stop_measuring(tmp_path, second)
    changed = recipe().model_copy(update={"figures": [second, first]})
    again, measured = Recorder(), []
    again.measures = lambda measure, _: measured.append(measure)
    run(changed, tmp_path, again)
    assert set(measured) == {second}
    figures = [Registry(at / "models").card("tiny", 1).figures for at in (tmp_path, whole_run)]
    assert figures[0] == figures[1][::-1]


def test_a_line_that_was_not_written_to_its_end_is_dropped_from_the_log(tmp_path, whole_run):
    with pytest.raises(Killed):
        run(recipe(), tmp_path, Recorder({5: kill}))
    path = tmp_path / "run" / "log.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])
    run(recipe(), tmp_path)
    assert log(tmp_path) == log(whole_run)


def test_lines_of_iterations_that_the_checkpoint_has_not_seen_are_dropped(tmp_path, whole_run):
    with pytest.raises(Killed):
        run(recipe(), tmp_path, Recorder({3: kill}))
    older = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(Killed):
        run(recipe(), tmp_path, Recorder({7: kill}))
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(older)
    run(recipe(), tmp_path)
    assert log(tmp_path) == log(whole_run)


def test_a_run_started_anew_starts_its_log_anew(tmp_path, whole_run):
    with pytest.raises(Killed):
        run(recipe(), tmp_path, Recorder({5: kill}))
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    run(recipe(), tmp_path)
    assert log(tmp_path) == log(whole_run)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path, Recorder({3: interrupt}))
    recorder = Recorder()
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors belongs to another recipe"):
        run(recipe(("queries = 3\ntasks = 2", "queries = 4\ntasks = 2")), tmp_path, recorder)
    assert recorder.iterations == []
    assert checkpointed(tmp_path) == 3
    run(recipe(), tmp_path)


def test_a_checkpoint_of_another_data_set_is_refused(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path, Recorder({3: interrupt}))
    other = make_pools()
    other["train"].images[0, 0, 0, 0, 0] ^= 1
    feed(monkeypatch, other)
    with pytest.raises(CheckpointError, match="another recipe or data set"):
        run(recipe(), tmp_path)


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path, Recorder({3: interrupt}))
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{path} is no whole checkpoint"):
        run(recipe(), tmp_path)


def test_a_version_that_exists_is_refused_before_anything_is_read(whole_run, monkeypatch):
    monkeypatch.setattr(job, "load_data", lambda *_: pytest.fail("it read the data"))
    before = theta(whole_run)
    with pytest.raises(RegistryError, match=r"tiny/1 exists already: raise `version`"):
        run(recipe(), whole_run)
    assert theta(whole_run) == before


def test_a_run_that_diverges_keeps_its_last_checkpoint(tmp_path, whole_run, monkeypatch):
    meta_gradient = job.meta_gradient

    def poisoned(learner, state, *arguments, **options):
        outcome = meta_gradient(learner, state, *arguments, **options)
        if state.iteration == 5:
            state.parameters["head.weight"].grad[0, 0] = float("nan")
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(job, "meta_gradient", poisoned)
        with pytest.raises(Diverged, match="iteration 5: lower the learning rate"):
            run(recipe(), tmp_path)
    assert checkpointed(tmp_path) == 4
    run(recipe(), tmp_path)
    assert theta(tmp_path) == theta(whole_run)


def test_a_learning_rate_far_too_large_diverges_instead_of_writing_nonsense(tmp_path):
    wild = recipe(("learning_rate = 0.01\nfinal", "learning_rate = 1e30\nfinal"))
    with pytest.raises(Diverged):
        run(wild, tmp_path)
    assert not (tmp_path / "models" / "tiny").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("filters = 4", "filters = 5"), r"\[network\] cannot be built: .*divisible"),
        (("blocks = 3", "layers = 3"), r"\[network\] cannot be built: .*layers"),
        (('name = "conv"', 'name = "resnet"'), r"\[network\] cannot be built: no network 'resnet'"),
        (("ways = [3, 5]", "ways = [3, 13]"), r"does not fit the train classes: .*12 classes"),
        (("shots = [1, 2]", "shots = [1, 6]"), r"does not fit the train classes: .*of 8"),
        (("[validation]\nways = 3", "[validation]\nways = 7"), "does not fit the validation class"),
        (("ways = 4\nshots = 1", "ways = 4\nshots = 8"), "does not fit the test classes"),
    ],
    ids=lambda value: value[1].replace("\n", " ") if isinstance(value, tuple) else "",
)
def test_what_could_only_fail_later_is_refused_before_the_first_iteration(
    tmp_path, change, message
):
    recorder = Recorder()
    with pytest.raises(RecipeError, match=message):
        run(recipe(change), tmp_path, recorder)
    assert recorder.iterations == []
    assert not (tmp_path / "run").exists()


def test_the_test_classes_never_touch_theta(tmp_path, whole_run, monkeypatch):
    pools = make_pools()
    pools["test"].images[:] = 0
    feed(monkeypatch, pools)
    run(recipe(), tmp_path)
    assert theta(tmp_path) == theta(whole_run)
    cards = [Registry(at / "models").card("tiny", 1) for at in (tmp_path, whole_run)]
    assert cards[0].data_digest != cards[1].data_digest
    assert cards[0].figures != cards[1].figures
