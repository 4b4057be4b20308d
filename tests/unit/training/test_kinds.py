"""Whole runs of every kind of model: what their cards say, and that they load again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from app.data.pools import TaskShape
from app.data.sinusoid import Sinusoids
from app.errors import Diverged, RecipeError
from app.learning.inner_loop import adapt
from app.learning.tasks import Examples, Task
from app.registry import AccuracyFigure, LoadedModel, Registry
from app.registry.card import ErrorFigure
from app.training import job
from app.training.measure import measure_model
from app.training.recipe import Measure
from tests.unit.training.helpers import (
    PRETRAINING,
    SINUSOID,
    Killed,
    Recorder,
    kill,
    make_pools,
    recipe,
    run,
    with_stage,
)

SAME_SHOTS = (("shots = [1, 3]", "shots = [2, 2]"), ("shots = [1, 2]", "shots = [2, 2]"))
BATCH_NORM = ("groups = 2", 'norm = "batch"\nreadout = "mean"\nfeature_norm = false')
ANIL = [("alpha_network = [0.01, 0.005]", "alpha_network = []")]
ANIL += [(f'algorithm = "{name}"', 'algorithm = "anil"') for name in ("maml", "first-order-maml")]
META_SGD = ("alpha_network = [0.01, 0.005]", 'alpha_network = [0.01]\nalpha_form = "parameter"')
META_SGD = [META_SGD, ("alpha_head = [0.1, 0.05]", "alpha_head = [0.1]")]


def made(folder: Path) -> LoadedModel:
    """The version that a run wrote."""
    return Registry(folder / "models").load("tiny", 1)


def theta(folder: Path) -> bytes:
    return (folder / "models" / "tiny" / "1" / "theta.safetensors").read_bytes()


def measured_again(folder: Path, **wanted) -> AccuracyFigure | ErrorFigure:
    return measure_model(
        folder / "models" / "tiny",
        Measure(**wanted),
        pool="test",
        steps=0,
        seed=2,
        data_root=None,
        default_root=folder,
        device=torch.device("cpu"),
        reporter=Recorder(),
    )


def lone(task: Task, index: int) -> Task:
    support, query = (Examples(*(t[index] for t in part)) for part in (task.support, task.query))
    return Task(support, query, task.classes[index])


def test_batch_norm_makes_figures_transductive_and_measured_with_a_tasks_whole_query_set(tmp_path):
    run(recipe(BATCH_NORM, *SAME_SHOTS), tmp_path)
    model = made(tmp_path)
    assert [figure.protocol for figure in model.card.figures] == ["transductive"] * 2
    figure = model.card.figures[0]
    tasks = make_pools()["test"].sample(TaskShape((4, 4), (1, 1), 3), 6, [2, 0])
    together, alone = [], []
    for index in range(6):
        task = lone(tasks, index)
        phi, *_ = adapt(model.learner, model.theta, task.support, task.classes, model.alpha, 2)
        inputs = task.query.inputs
        answers = model.learner.logits(phi, inputs)
        together.append((answers.argmax(-1) == task.query.labels).double().mean().item())
        singly = torch.cat([model.learner.logits(phi, one[None]) for one in inputs])
        alone.append((singly - answers).abs().max().item())
    assert figure.accuracy == pytest.approx(100 * np.mean(together), abs=0.005)
    assert min(alone) > 1e-3, "the protocol matters"
    assert measured_again(tmp_path, ways=4, shots=1, queries=3, tasks=6) == figure


def test_the_card_of_a_regression_holds_the_mean_squared_error_of_plain_sgd(tmp_path):
    run(recipe(base=SINUSOID), tmp_path)
    model = made(tmp_path)
    assert model.card.task == "regression"
    assert model.card.input.shape == (1,)
    [figure] = model.card.figures
    assert isinstance(figure, ErrorFigure)
    assert (figure.split, figure.protocol, figure.shots) == ("function", "inductive", 5)
    tasks = Sinusoids().sample(TaskShape((1, 1), (5, 5), 6), 5, [2, 0])
    errors = np.array([by_sgd(model, lone(tasks, index)) for index in range(5)])
    assert figure.mse_by_step == pytest.approx(tuple(errors.mean(0)), abs=1e-4)
    assert figure.mse == figure.mse_by_step[-1]
    margin = 1.96 * errors[:, -1].std(ddof=1) / np.sqrt(5)
    interval = (errors[:, -1].mean() - margin, errors[:, -1].mean() + margin)
    assert figure.confidence_interval_95 == pytest.approx(interval, abs=1e-3)
    assert measured_again(tmp_path, ways=1, shots=5, queries=6, tasks=5) == figure
    with pytest.raises(RecipeError, match="this θ has 1 outputs, the task has 5"):
        measured_again(tmp_path, ways=5, shots=5, tasks=2)


def by_sgd(model: LoadedModel, task: Task) -> list[float]:
    """The errors before and after each of two steps of torch.optim.SGD on a plain network."""
    network = torch.nn.Sequential(
        torch.nn.Linear(1, 8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 1),
    )
    with torch.no_grad():
        for own, name in zip(
            (0, 2, 4), ("network.layers.0", "network.layers.1", "head"), strict=True
        ):
            network[own].weight.copy_(model.theta[f"{name}.weight"])
            network[own].bias.copy_(model.theta[f"{name}.bias"])
    groups = [
        {"params": network[:4].parameters(), "lr": 0.01},
        {"params": network[4].parameters(), "lr": 0.02},
    ]
    optimizer = torch.optim.SGD(groups)

    def error(examples: Examples) -> torch.Tensor:
        return torch.nn.functional.mse_loss(network(examples.inputs), examples.labels)

    errors = [error(task.query).item()]
    for _ in range(2):
        optimizer.zero_grad()
        error(task.support).backward()
        optimizer.step()
        errors.append(error(task.query).item())
    return errors


def test_the_log_of_a_regression_tells_the_error(tmp_path):
    recorder = Recorder()
    run(recipe(base=SINUSOID), tmp_path, recorder)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {**line, "validation_interval_95": list(line["validation_interval_95"])}
        | {"validation_by_step": list(line["validation_by_step"])}
        for line in recorder.lines
    ]
    assert [line["iteration"] for line in recorder.lines] == [2, 4, 6]
    for line in recorder.lines:
        assert line["mse"] > 0
        assert line["validation_mse"] == line["validation_by_step"][-1]
        assert line["validation_nearest_class_mean"] is None
        assert "accuracy" not in line


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_killed_regression_goes_on_and_ends_with_the_same_theta_to_the_bit(tmp_path, at):
    run(recipe(base=SINUSOID), tmp_path / "whole")
    with pytest.raises(Killed):
        run(recipe(base=SINUSOID), tmp_path / "stopped", Recorder({at: kill}))
    run(recipe(base=SINUSOID), tmp_path / "stopped")
    assert theta(tmp_path / "stopped") == theta(tmp_path / "whole")


def test_a_regression_learns_what_new_sinusoids_need(tmp_path):
    changes = [
        ("hidden = [8, 8]", "hidden = [40, 40]"),
        ("iterations = 7", "iterations = 250"),
        ("every = 2", "every = 250"),
        ("tasks = 5\n", "tasks = 25\n"),
        ("shots = [5, 5]", "shots = [10, 10]"),
        ("shots = 5", "shots = 10"),
    ]
    run(recipe(*changes, base=SINUSOID), tmp_path)
    [figure] = made(tmp_path).card.figures
    assert figure.mse < 0.75 * figure.mse_by_step[0]
    assert figure.mse < 3.0, "half of the mean of A² / 2, which answering 0 gives"


def test_anil_has_a_rate_for_the_head_alone_and_still_learns_the_network(tmp_path):
    tiny = recipe(*ANIL)
    run(tiny, tmp_path)
    model = made(tmp_path)
    assert set(model.card.alpha) == set(model.alpha) == {"head.weight", "head.bias"}
    fresh = model.learner.initial(tiny.seed)
    task = lone(make_pools()["test"].sample(TaskShape((3, 3), (2, 2), 1), 1, [0]), 0)
    phi, *_ = adapt(model.learner, model.theta, task.support, task.classes, model.alpha, 2)
    for name, value in model.theta.items():
        if name.startswith("network."):
            assert torch.equal(phi[name], value), "the inner loop leaves it"
            assert not torch.equal(fresh[name], value), "the outer loop moves it"
    assert not torch.equal(phi["head.weight"], model.theta["head.weight"].expand(3, -1))


def test_the_multi_step_loss_is_annealed_over_its_stage(tmp_path, monkeypatch):
    told, meta_gradient = [], job.meta_gradient

    def listening(*arguments, done, **options):
        told.append(done)
        return meta_gradient(*arguments, done=done, **options)

    monkeypatch.setattr(job, "meta_gradient", listening)
    run(recipe(('"maml"', '"multi-step-maml"')), tmp_path)
    assert told == [0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 3, 2 / 3], "of four and of three iterations"


def test_the_card_of_meta_sgd_holds_the_means_of_its_rates_and_loads_again(tmp_path):
    run(recipe(*META_SGD), tmp_path)
    model = made(tmp_path)
    assert set(model.alpha) == set(model.theta)
    for name, value in model.alpha.items():
        assert value.shape == (1, *model.theta[name].shape)
        [mean] = model.card.alpha[name]
        assert mean == pytest.approx(value.mean().item(), rel=1e-4, abs=1e-7)
    assert len(model.alpha["network.convs.0.weight"].unique()) > 10, "each learned by itself"
    figure = model.card.figures[0]
    assert measured_again(tmp_path, ways=4, shots=1, queries=3, tasks=6) == figure


def test_pretraining_publishes_the_network_with_a_head_that_was_never_trained(tmp_path):
    tiny = recipe(base=with_stage(PRETRAINING))
    recorder = Recorder()
    run(tiny, tmp_path, recorder)
    model = made(tmp_path)
    fresh = model.learner.initial(tiny.seed)
    assert set(model.theta) == set(fresh)
    for name, value in model.theta.items():
        assert torch.equal(value, fresh[name]) == name.startswith("head."), name
    assert (model.card.trained_ways, model.card.trained_shots) == ((3, 3), (1, 1))
    assert model.card.iterations == 3
    assert recorder.losses[0] == pytest.approx(np.log(12 * 8)), "of a classifier of zeros"
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as file:
        classifier = file.get_tensor("parameter.classifier")
    assert classifier.shape == (12 * 8, model.learner.feature_size)
    figure = model.card.figures[0]
    assert measured_again(tmp_path, ways=4, shots=1, queries=3, tasks=6) == figure


def test_a_killed_pretraining_goes_on_and_ends_with_the_same_theta_to_the_bit(tmp_path):
    tiny = recipe(base=with_stage(PRETRAINING))
    run(tiny, tmp_path / "whole")
    with pytest.raises(Killed):
        run(tiny, tmp_path / "stopped", Recorder({3: kill}))
    run(tiny, tmp_path / "stopped")
    assert theta(tmp_path / "stopped") == theta(tmp_path / "whole")


def test_without_symmetries_pretraining_tells_the_classes_themselves_apart(tmp_path):
    recorder = Recorder()
    run(recipe(("symmetries = true\n", ""), base=with_stage(PRETRAINING)), tmp_path, recorder)
    assert recorder.losses[0] == pytest.approx(np.log(12))


def test_an_absurd_rate_diverges_at_the_first_iteration(tmp_path):
    wild = recipe(("alpha_head = [0.02]", "alpha_head = [1e30]"), base=SINUSOID)
    with pytest.raises(Diverged, match="not finite at iteration 0: lower the learning rate or"):
        run(wild, tmp_path)
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["run"])["iteration"] == 0
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_a_model_whose_inner_loop_diverges_in_testing_is_not_published(tmp_path):
    """Its card would hold numbers that JSON has no words for."""
    wild = recipe(
        ("alpha_head = [0.02]", "alpha_head = [20.0]"),
        ("alpha_network = [0.01]", "alpha_network = []"),
        ("steps = 2", "steps = 50"),
        ("every = 2", "every = 100"),
        base=SINUSOID,
    )
    with pytest.raises(Diverged, match=r"diverges on some of the tasks, by step.*lower α"):
        run(wild, tmp_path)
    assert Registry(tmp_path / "models").names() == []
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
