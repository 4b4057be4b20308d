"""Reptile against torch.optim.SGD on minibatches dealt out by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from app.learning.inner_loop import adapt
from app.learning.learner import HEAD, Learner
from app.learning.reptile import reptile
from app.learning.tasks import Examples, Task
from tests.unit.learning.common import (
    PICTURE,
    VECTOR,
    SgdRun,
    assert_same,
    conv_learner,
    loop_loss,
    mlp_learner,
    theta_of,
)
from tests.unit.learning.small_tasks import (
    random_alpha,
    regression_learner,
    regression_task,
    stacked,
    task_of,
)

WAYS = 3


def by_class(task: Task) -> Task:
    """The same task with the support set's classes one after the other."""
    order = task.support.labels.argsort(stable=True)
    return task._replace(support=Examples(*(tensor[order] for tensor in task.support)))


def task_by_class(shots: int, seed: int = 0, shape: tuple[int, ...] = VECTOR) -> Task:
    return by_class(task_of(shape, (shots,) * WAYS, (2, 1, 3), seed))


def dealt(support: Examples, steps: int) -> list[Examples]:
    """As cards are: each class's examples to the steps in turn."""
    hands: list[list[int]] = [[] for _ in range(steps)]
    for label in range(WAYS):
        examples = [i for i, other in enumerate(support.labels.tolist()) if other == label]
        for turn, example in enumerate(examples):
            hands[turn % steps].append(example)
    return [Examples(*(tensor[hand] for tensor in support)) for hand in hands]


@pytest.mark.parametrize(("shots", "steps"), [(1, 1), (3, 1), (2, 2), (4, 2), (6, 3), (4, 4)])
def test_direction_is_theta_less_where_sgd_gets_on_the_dealt_out_minibatches(shots, steps):
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_by_class(shots)
    run = SgdRun(learner, theta, WAYS)
    for part in dealt(task.support, steps):
        run.train(part, 1, lambda name, step: 0.2)
    direction, _ = reptile(learner, theta, 0.2, task, steps)
    expected = {name: theta[name] - value for name, value in run.parameters.items()}
    assert_same(direction, expected, to=1e-12)
    assert all(value.abs().max() > 1e-6 for value in direction.values())


def test_alpha_by_parameter_and_step_is_sgd_with_changing_rates():
    learner = conv_learner("fixed-3")
    theta, task = theta_of(learner), task_by_class(4, shape=PICTURE)
    alpha = random_alpha(theta, 2)
    run = SgdRun(learner, theta, WAYS)
    for at, part in zip((0, 1, 1, 1), dealt(task.support, 4), strict=True):
        run.train(part, 1, lambda name, step, at=at: float(alpha[name][at]))
    direction, _ = reptile(learner, theta, alpha, task, 4)
    expected = {name: theta[name] - value for name, value in run.parameters.items()}
    assert_same(direction, expected, to=1e-10)


def test_outcome_is_phis_on_the_query_set():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_by_class(4)
    direction, outcome = reptile(learner, theta, 0.2, task, 2)
    phi = {name: theta[name] - value for name, value in direction.items()}
    logits = learner.logits(phi, task.query.inputs)
    expected = loop_loss(logits, task.query.labels)
    torch.testing.assert_close(outcome.loss, expected, rtol=0, atol=1e-12)
    right = logits.argmax(1) == task.query.labels
    shares = [right[task.query.labels == label].double().mean() for label in range(WAYS)]
    assert float(outcome.score) == pytest.approx(float(sum(shares)) / WAYS, abs=1e-12)


def test_query_set_has_no_influence_on_the_direction():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_by_class(4)
    other = task._replace(query=task_by_class(4, seed=7).query)
    direction, outcome = reptile(learner, theta, 0.2, task, 2)
    same, another = reptile(learner, theta, 0.2, other, 2)
    assert_same(same, direction, to=0)
    assert outcome.loss != another.loss


class Watched(Learner):
    """Writes down which examples the inner steps descend on."""

    def inner_loss(self, head, features, *, examples, classes):
        self.seen.append(examples)
        return super().inner_loss(head, features, examples=examples, classes=classes)


@pytest.mark.parametrize(("shots", "steps"), [(2, 2), (6, 2), (6, 3), (5, 5)])
def test_every_step_sees_all_classes_and_all_steps_together_each_example_once(shots, steps):
    plain = mlp_learner("fixed-3")
    learner = Watched(plain.network, plain.head, plain.feature_size)
    learner.seen = []
    task = task_by_class(shots)
    reptile(learner, theta_of(plain), 0.2, task, steps)
    assert len(learner.seen) == steps
    for part in learner.seen:
        assert torch.bincount(part.labels).tolist() == [shots // steps] * WAYS
        assert bool(part.mask.all())
    rows = [
        (label, *picture)
        for part in learner.seen
        for label, picture in zip(part.labels.tolist(), part.inputs.tolist(), strict=True)
    ]
    given = zip(task.support.labels.tolist(), task.support.inputs.tolist(), strict=True)
    assert sorted(rows) == sorted((label, *picture) for label, picture in given)


def test_steps_on_parts_are_not_steps_on_the_whole():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_by_class(2)
    direction, _ = reptile(learner, theta, 1.0, task, 2)
    phi, *_ = adapt(learner, theta, task.support, task.classes, 1.0, 2)
    name = HEAD + "weight"
    assert (theta[name] - phi[name] - direction[name]).abs().max() > 1e-3


@pytest.mark.parametrize(("shots", "steps"), [(1, 2), (3, 2), (5, 3), (4, 8)])
def test_shots_that_cannot_be_dealt_out_evenly_are_refused(shots, steps):
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_by_class(shots)
    with pytest.raises(ValueError, match=f"^{shots} shots cannot be dealt out to {steps} steps"):
        reptile(learner, theta, 0.2, task, steps)


def test_a_parameter_without_alpha_has_no_direction():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_by_class(2)
    alpha = {name: rate for name, rate in random_alpha(theta, 2).items() if name.startswith(HEAD)}
    direction, _ = reptile(learner, theta, alpha, task, 2)
    assert set(direction) == set(theta)
    moved = {name for name, value in direction.items() if value.abs().max() > 0}
    assert moved == {HEAD + "weight", HEAD + "bias"}


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_batch_of_tasks_without_a_graph_is_a_loop_over_them(kind):
    learner = {"mlp": mlp_learner, "conv": conv_learner}[kind]("fixed-3")
    shape = {"mlp": VECTOR, "conv": PICTURE}[kind]
    theta = {name: value.requires_grad_() for name, value in theta_of(learner).items()}
    tasks = [task_by_class(4, seed, shape) for seed in range(3)]
    with torch.no_grad():
        directions, outcomes = vmap(lambda task: reptile(learner, theta, 0.2, task, 2))(
            stacked(tasks)
        )
    assert not any(value.requires_grad for value in (*directions.values(), *outcomes))
    for index, task in enumerate(tasks):
        expected, outcome = reptile(learner, theta, 0.2, task, 2)
        assert_same({k: v[index] for k, v in directions.items()}, expected, to=1e-10)
        got = [value[index] for value in outcomes]
        torch.testing.assert_close(got, [value.detach() for value in outcome])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_regressions_examples_are_dealt_out_in_turn(steps):
    learner = regression_learner(1)
    theta, task = theta_of(learner), regression_task(1)
    run = SgdRun(learner, theta, 1)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss: Tensor = nn.MSELoss()(
            run.model(task.support.inputs[step::steps]), task.support.labels[step::steps]
        )
        loss.backward()
        optimizer.step()
    direction, outcome = reptile(learner, theta, 0.1, task, steps)
    expected = {name: theta[name] - value for name, value in run.parameters.items()}
    assert_same(direction, expected, to=1e-12)
    loss = nn.MSELoss()(run.model(task.query.inputs), task.query.labels).detach()
    torch.testing.assert_close(outcome.loss, loss, rtol=0, atol=1e-12)
    assert outcome.score == outcome.loss
