"""The meta-gradient of each algorithm, against the same done task by task."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from app.data.omniglot import INPUT
from app.data.sinusoid import Sinusoids
from app.learning.anil import anil
from app.learning.first_order_maml import first_order_maml
from app.learning.learner import Learner
from app.learning.maml import maml
from app.learning.multi_step_loss import multi_step_maml
from app.learning.outcome import Outcome, outcome
from app.learning.pretraining import pretrain_on_tasks
from app.learning.tasks import Examples, Task
from app.registry.registry import build_learner
from app.training import state as state_module
from app.training.distributed import World
from app.training.recipe import Recipe, Stage
from app.training.state import (
    State,
    initial_state,
    meta_gradient,
    outer_step,
    pretraining_gradient,
)
from tests.unit.training.helpers import PRETRAINING, SINUSOID, make_pool, recipe, with_stage

TASKS, STEPS, DONE = 5, 2, 0.25
STAGE = """
iterations = 8
algorithm = "maml"
steps = 2
ways = [3, 3]
shots = [2, 2]
queries = 2
tasks = 5
learning_rate = 0.01
"""
CLASSES, LINES = with_stage(STAGE).replace("shared-row", "fixed-3"), SINUSOID
CLASSES = CLASSES.replace("ways = 4", "ways = 3")
SHARED = with_stage(STAGE.replace("[3, 3]", "[2, 4]").replace("[2, 2]", "[1, 3]"))
META_SGD = ("alpha_network = [0.01]", 'alpha_network = [0.01]\nalpha_form = "parameter"')
WEIGHTS = [(1 - DONE) / STEPS, 1 - (1 - DONE) / STEPS]
"""Of the multi-step loss with two steps: v_1 = (1 - done) / 2, and the rest on the last."""


def of_task(task: Task, index: int) -> Task:
    """One task of a batch."""
    support, query = (Examples(*(t[index] for t in part)) for part in (task.support, task.query))
    return Task(support, query, task.classes[index])


def sgd_on_parts(learner: Learner, theta: dict, alpha: dict, task: Task) -> dict[str, Tensor]:
    """φ of Reptile by SGD, each step on every second example of each class."""
    phi = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    shots = len(task.support.mask) // len(task.classes)
    for step in range(STEPS):
        rows = [
            way * shots + shot
            for way in range(len(task.classes))
            for shot in range(step, shots, STEPS)
        ]
        part = Examples(*(tensor[rows] for tensor in task.support))
        loss = learner.head.loss(learner.logits(phi, part.inputs), part, task.classes)
        gradient = torch.autograd.grad(loss, list(phi.values()))
        for (name, value), g in zip(phi.items(), gradient, strict=True):
            rate = alpha[name][min(step, len(alpha[name]) - 1)]
            value.data -= rate * g
    return phi


def reptile_directly(learner: Learner, state: State, task: Task) -> tuple[dict, Outcome]:
    phi = sgd_on_parts(learner, state.theta, state.alpha, task)
    moved = {name: (value - phi[name]).detach() for name, value in state.theta.items()}
    return moved, outcome(learner, phi, task.query, task.classes)


def by_autograd(objective: Callable[..., Outcome], *more) -> Callable[..., tuple[dict, Outcome]]:
    def directly(learner: Learner, state: State, task: Task) -> tuple[dict, Outcome]:
        result = objective(learner, state.theta, state.alpha, task, STEPS, *more)
        values = torch.autograd.grad(
            result.loss, list(state.parameters.values()), allow_unused=True
        )
        return dict(zip(state.parameters, values, strict=True)), result

    return directly


DIRECTLY = {
    "maml": by_autograd(maml),
    "first-order-maml": by_autograd(first_order_maml),
    "anil": by_autograd(anil),
    "multi-step-maml": by_autograd(multi_step_maml, torch.tensor(WEIGHTS)),
    "pretraining-on-tasks": by_autograd(pretrain_on_tasks),
    "reptile": reptile_directly,
}


def set_up(base: str, algorithm: str, *changes) -> tuple[Recipe, Learner, State, Stage, Task]:
    """A state away from its start, and a meta-batch."""
    if algorithm == "anil":
        number = "[0.01]" if base is LINES else "[0.01, 0.005]"
        changes = (*changes, (f"alpha_network = {number}", "alpha_network = []"))
    tiny = recipe(*changes, base=base)
    update = {"algorithm": algorithm, "steps": STEPS, "tasks": TASKS}
    if base is LINES:
        update["shots"] = (6, 6)
        source, spec = Sinusoids(), Sinusoids().input
    else:
        source, spec = make_pool(6, seed=1), INPUT
    stage = tiny.stages[0].model_copy(update=update)
    learner = build_learner(spec, tiny.network.model_dump(), tiny.head)
    state = initial_state(tiny, learner, torch.device("cpu"))
    return tiny, learner, state, stage, source.sample(stage.shape(), TASKS, (4,))


def gradients(state: State) -> dict[str, Tensor | None]:
    return {name: value.grad for name, value in state.parameters.items()}


def check_same(got: dict, expected: dict) -> None:
    """Both have the same gradients; one that there is none of may be zero in the other."""
    for name, value in expected.items():
        one, other = (torch.zeros(()) if g is None else g for g in (got[name], value))
        torch.testing.assert_close(
            *torch.broadcast_tensors(one, other), rtol=1e-3, atol=1e-6, msg=name
        )


NOT_LEARNED = [("shared row", "reptile"), ("shared row", "pretraining-on-tasks")]
"""What recipes may not ask for: all rows are one there, and before a step all logits alike."""
BASES = {"fixed head": CLASSES, "shared row": SHARED, "sinusoid": LINES}


@pytest.mark.parametrize(
    ("base", "algorithm"),
    [(base, name) for base in BASES for name in DIRECTLY if (base, name) not in NOT_LEARNED],
)
def test_the_meta_gradient_is_the_mean_of_the_tasks_gradients(base, algorithm):
    _, learner, state, stage, tasks = set_up(BASES[base], algorithm)
    total = {name: torch.zeros_like(value) for name, value in state.parameters.items()}
    losses, scores = [], []
    for index in range(TASKS):
        gradient, result = DIRECTLY[algorithm](learner, state, of_task(tasks, index))
        for name, value in gradient.items():
            total[name] += 0 if value is None else value / TASKS
        losses.append(result.loss.item())
        scores.append(result.score.item())
    got = meta_gradient(learner, state, stage, tasks, done=DONE)
    check_same(gradients(state), total)
    assert any(value.abs().max() > 1e-3 for value in total.values())
    assert got.loss.item() == pytest.approx(sum(losses) / TASKS, rel=1e-4)
    assert got.score.item() == pytest.approx(sum(scores) / TASKS, rel=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
@pytest.mark.parametrize("algorithm", ["maml", "multi-step-maml", "reptile"])
def test_a_few_tasks_at_once_add_up_to_the_whole_meta_batch(algorithm, at_once):
    _, learner, state, stage, tasks = set_up(CLASSES, algorithm)
    whole = meta_gradient(learner, state, stage, tasks, done=DONE)
    expected = gradients(state)
    few = stage.model_copy(update={"tasks_at_once": at_once})
    got = meta_gradient(learner, state, few, tasks, done=DONE)
    check_same(gradients(state), expected)
    torch.testing.assert_close(tuple(got), tuple(whole))


def counted(monkeypatch) -> list[int]:
    """The numbers of tasks that are computed at once from now on."""
    sizes, vmap = [], state_module.vmap

    def counting(function):
        mapped = vmap(function)
        return lambda chunk: (sizes.append(len(chunk.classes)), mapped(chunk))[1]

    monkeypatch.setattr(state_module, "vmap", counting)
    return sizes


def test_no_more_tasks_than_asked_for_are_computed_at_once(monkeypatch):
    _, learner, state, stage, tasks = set_up(CLASSES, "maml")
    sizes = counted(monkeypatch)
    meta_gradient(learner, state, stage.model_copy(update={"tasks_at_once": 2}), tasks)
    assert sizes == [2, 2, 1]


def test_gradients_have_memory_of_their_own_laid_out_as_the_parameters():
    first, second = torch.ones(2, 3, requires_grad=True), torch.ones(3, 2).T.requires_grad_()
    state = SimpleNamespace(parameters={"first": first, "second": second})
    shared = state_module._gradients(state, (first + second).sum())
    for parameter, gradient in zip((first, second), shared, strict=True):
        assert gradient.stride() == parameter.stride()
        gradient.mul_(2)
    assert shared[0].tolist() == shared[1].tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("algorithm", ["maml", "first-order-maml"])
def test_a_cpu_computes_large_tasks_one_by_one(algorithm, monkeypatch):
    _, learner, state, stage, tasks = set_up(CLASSES, algorithm)
    meta_gradient(learner, state, stage, tasks)
    expected, sizes = gradients(state), counted(monkeypatch)
    numbers = tasks.support.inputs[0].numel() + tasks.query.inputs[0].numel()
    for limit in (numbers, numbers - 1):
        monkeypatch.setattr(state_module, "LARGE_TASK", limit)
        meta_gradient(learner, state, stage, tasks)
        check_same(gradients(state), expected)
    assert sizes == [TASKS] + [1] * TASKS
    assert learner.network.training == (algorithm == "maml"), "else by the library's convolutions"


@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_the_parts_of_all_processes_add_up_to_the_whole_meta_batch(algorithm):
    _, learner, state, stage, tasks = set_up(LINES, algorithm)
    whole = meta_gradient(learner, state, stage, tasks)
    expected = gradients(state)
    total = {name: torch.zeros_like(value) for name, value in state.parameters.items()}
    loss = score = 0.0
    for rank in range(3):
        part = World(rank, 3).part(TASKS)
        own = Sinusoids().sample(stage.shape(), TASKS, (4,), part=part)
        result = meta_gradient(learner, state, stage, own, total=TASKS)
        loss, score = loss + result.loss.item(), score + result.score.item()
        for name, value in gradients(state).items():
            total[name] += 0 if value is None else value
    check_same(total, expected)
    assert (loss, score) == pytest.approx((whole.loss.item(), whole.score.item()))


def test_the_parts_of_pretraining_add_up_to_the_gradient_by_autograd():
    tiny = recipe(base=with_stage(PRETRAINING))
    learner = build_learner(INPUT, tiny.network.model_dump(), tiny.head)
    state = initial_state(tiny, learner, torch.device("cpu"), classes=6 * 8)
    with torch.no_grad():
        state.parameters["classifier"].normal_(generator=torch.Generator().manual_seed(0))
    pool, augmentation = make_pool(6, seed=1), tiny.data.augmentation()
    examples = pool.sample_pictures(7, (2,), augmentation)
    logits = learner.features(state.theta, examples.inputs) @ state.parameters["classifier"].T
    picked = logits.log_softmax(-1)[torch.arange(7), examples.labels]
    loss = -picked.mean()
    values = torch.autograd.grad(loss, list(state.parameters.values()), allow_unused=True)
    expected = dict(zip(state.parameters, values, strict=True))
    total = {name: torch.zeros_like(value) for name, value in state.parameters.items()}
    losses, scores = [], []
    for rank in range(2):
        own = pool.sample_pictures(7, (2,), augmentation, World(rank, 2).part(7))
        result = pretraining_gradient(learner, state, own, total=7)
        losses.append(result.loss.item())
        scores.append(result.score.item())
        for name, value in gradients(state).items():
            total[name] += 0 if value is None else value
    check_same(total, expected)
    assert sum(losses) == pytest.approx(loss.item(), rel=1e-5)
    right = (logits.argmax(-1) == examples.labels).float().mean().item()
    assert sum(scores) == pytest.approx(right)


def test_pretraining_on_classes_moves_the_network_and_the_classifier_and_nothing_else():
    tiny = recipe(base=with_stage(PRETRAINING))
    learner = build_learner(INPUT, tiny.network.model_dump(), tiny.head)
    state = initial_state(tiny, learner, torch.device("cpu"), classes=6)
    before = {name: value.detach().clone() for name, value in state.parameters.items()}
    assert before["classifier"].shape == (6, learner.feature_size)
    assert not before["classifier"].any()
    for seed in (1, 2):  # in the first step a classifier of zeros gives the network no gradient
        pretraining_gradient(learner, state, make_pool(6, seed=1).sample_pictures(8, (seed,)))
        outer_step(tiny, state)
    moved = {n for n, value in state.parameters.items() if not torch.equal(value, before[n])}
    assert moved == {n for n in before if n.startswith("network.")} | {"classifier"}
    assert "classifier" not in state.theta


def test_meta_sgd_learns_a_rate_for_every_number_of_theta_and_may_change_its_sign():
    learned = ("learning_rate = 0.01", "learning_rate = 0.01\nalpha_learning_rate = 0.05")
    tiny, learner, state, stage, tasks = set_up(LINES, "maml", META_SGD, learned)
    first = {name: value.detach().clone() for name, value in state.alpha.items()}
    assert set(first) == set(state.theta)
    for name, value in first.items():
        assert value.shape == (1, *state.theta[name].shape)
        assert bool((value == (0.02 if name.startswith("head.") else 0.01)).all())
    meta_gradient(learner, state, stage, tasks)
    signs = {name: state.parameters[f"rate.{name}"].grad.sign() for name in first}
    outer_step(tiny, state)
    for name, value in state.alpha.items():  # the first step of Adam is its rate
        torch.testing.assert_close(
            value.detach(), first[name] - 0.05 * signs[name], rtol=0, atol=2e-3
        )
    assert any((value < 0).any() for value in state.alpha.values())


def test_the_multi_step_loss_is_all_on_the_last_step_at_the_end():
    _, learner, state, stage, tasks = set_up(LINES, "maml")
    maml_loss = meta_gradient(learner, state, stage, tasks).loss
    late = stage.model_copy(update={"algorithm": "multi-step-maml"})
    losses = [meta_gradient(learner, state, late, tasks, done=at).loss for at in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(losses[2], maml_loss)
    assert math.isclose(losses[1], (losses[0] + losses[2]) / 2, rel_tol=1e-5)
    assert not math.isclose(losses[0], losses[2], rel_tol=1e-3)
