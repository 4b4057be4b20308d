import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from app.data.omniglot import INPUT
from app.errors import ModelNotFound, RecipeError, RegistryError
from app.registry import Registry
from app.registry.card import AccuracyFigure
from app.registry.registry import build_learner, encode_theta
from app.training.measure import calibrate_version, measure_model, open_version
from app.training.recipe import Measure
from tests.fakes import make_card
from tests.unit.training.helpers import Recorder, feed, make_pool, make_pools, recipe, run


def measured(path: Path, ways: int = 4, **changes) -> AccuracyFigure:
    wanted = Measure(ways=ways, shots=1, queries=3, tasks=6)
    options = {"pool": "test", "steps": 0, "seed": 2, "data_root": None}
    options |= {"default_root": Path("data"), "device": torch.device("cpu")}
    return measure_model(path, wanted, **({"reporter": Recorder()} | options | changes))


def save_model(root: Path, head: str, made_by: dict) -> Path:
    """A model of an untrained θ."""
    network = recipe().network.model_dump()
    theta = build_learner(INPUT, network, head).initial(0)
    alpha = {name: torch.tensor([0.1]) for name in theta}
    content = encode_theta(theta, alpha)
    card = make_card(
        "odd",
        input=INPUT,
        network=network,
        head=head,
        alpha={name: tuple(value.tolist()) for name, value in alpha.items()},
        recipe=made_by,
        theta_sha256=sha256(content).hexdigest(),
    )
    return Registry(root).save(card, content)


def test_the_cards_figure_can_be_measured_again(whole_run):
    figure = Registry(whole_run / "models").card("tiny", 1).figures[0]
    assert measured(whole_run / "models" / "tiny") == figure
    assert measured(whole_run / "models" / "tiny" / "1") == figure


def test_steps_and_pool_and_seed_are_taken_as_asked(whole_run):
    model = whole_run / "models" / "tiny"
    usual = measured(model)
    assert len(measured(model, steps=5).accuracy_by_step) == 6
    assert measured(model, seed=3).seed == 3
    others = [measured(model, seed=3), measured(model, pool="train")]
    assert all(other.accuracy_by_step != usual.accuracy_by_step for other in others)


def test_without_a_version_the_newest_is_measured(tmp_path, whole_run):
    run(recipe(("seed = 3", "seed = 8")), tmp_path)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    run(recipe(("version = 1", "version = 2")), tmp_path)
    first, second = (measured(tmp_path / "models" / "tiny" / version) for version in "12")
    newest = measured(tmp_path / "models" / "tiny")
    assert newest == second == measured(whole_run / "models" / "tiny")
    assert newest.accuracy_by_step != first.accuracy_by_step


def test_a_path_relative_to_the_working_folder_will_do(whole_run, monkeypatch):
    monkeypatch.chdir(whole_run / "models" / "tiny")
    assert measured(Path("1")) == measured(Path()) == measured(Path("../tiny"))


def test_the_data_lie_where_the_caller_says_or_below_the_data_folder(whole_run, monkeypatch):
    folders = feed(monkeypatch)
    measured(whole_run / "models" / "tiny")
    measured(whole_run / "models" / "tiny", data_root=Path("elsewhere"))
    assert folders == [Path("data") / "omniglot", Path("elsewhere")]


@pytest.mark.parametrize("path", ["nothing", "tiny/2", "tiny/0", "tiny/1/1"])
def test_a_model_that_is_not_there_is_said_so(whole_run, path):
    with pytest.raises(ModelNotFound):
        measured(whole_run / "models" / path)


def test_a_pool_that_is_not_there_is_said_so_with_those_that_are(whole_run):
    with pytest.raises(RecipeError, match="no 'exam' classes: use one of train, validation, test"):
        measured(whole_run / "models" / "tiny", pool="exam")


def test_a_head_of_fixed_width_is_measured_on_its_number_of_classes_only(tmp_path):
    path = save_model(tmp_path, "fixed-3", recipe().as_dict())
    assert measured(path, ways=3).ways == 3
    with pytest.raises(RecipeError, match="head for 3 classes, the task has 4"):
        measured(path, ways=4)


def test_one_class_alone_is_not_measured(whole_run):
    with pytest.raises(RecipeError, match="tells classes apart: measure it with at least two ways"):
        measured(whole_run / "models" / "tiny", ways=1)


def test_a_card_without_its_recipe_is_named(tmp_path):
    path = save_model(tmp_path, "shared-row", {})
    with pytest.raises(RegistryError, match=rf"card of {path} has no recipe"):
        measured(path)


def test_a_model_whose_name_is_a_number_is_found(tmp_path, whole_run):
    shutil.copytree(whole_run / "models" / "tiny", tmp_path / "2024")
    card = tmp_path / "2024" / "1" / "card.json"
    card.write_text(card.read_text().replace('"name": "tiny"', '"name": "2024"'))
    for path in (tmp_path / "2024", tmp_path / "2024" / "1"):
        _, model, _ = open_version(path, torch.device("cpu"))
        assert (model.card.name, model.card.version) == ("2024", 1)


def test_classes_that_came_later_are_warned_of_and_nothing_is_calibrated_on_them(
    whole_run, monkeypatch
):
    feed(monkeypatch, make_pools() | {"validation": make_pool(7, 2)})
    model, reporter = whole_run / "models" / "tiny" / "1", Recorder()
    measured(model, reporter=reporter)
    [warning] = reporter.warnings
    assert "not those that" in warning
    before = (model / "card.json").read_bytes()
    with pytest.raises(RecipeError, match="Put them back as they were, or make a new version"):
        calibrate_version(
            model,
            data_root=None,
            default_root=whole_run,
            device=torch.device("cpu"),
            reporter=Recorder(),
        )
    assert (model / "card.json").read_bytes() == before
