"""Tasks as a batch: vmap over different tasks, and padding that has no influence."""

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from app.learning.first_order_maml import first_order_maml
from app.learning.inner_loop import Adaptation, adapt
from app.learning.maml import maml
from app.learning.outcome import Outcome
from app.learning.tasks import Examples, Task
from tests.unit.learning.common import (
    PICTURE,
    assert_same,
    conv_learner,
    examples_of,
    existing,
    theta_of,
)

SHOTS = [(1, 1), (3, 1, 2), (1, 2, 1, 1, 2)]
"""Of each task in the batch; so they have 2, 6 and 7 examples."""
QUERIES = [(2, 1), (1, 1, 1), (2, 1, 1, 1, 1)]
SIZE, WAYS = 9, 6
"""What all of them are padded to."""


def padded(examples: Examples, size: int, garbage: float, seed: int) -> Examples:
    """The examples among `size`, in random places; elsewhere is garbage, labels included."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(size, generator=generator)[: len(examples.labels)]
    noise = torch.randn((size, *PICTURE), generator=generator).to(examples.inputs.dtype)
    inputs, mask = garbage * noise, torch.zeros(size, dtype=torch.bool)
    labels = torch.randint(WAYS, (size,), generator=generator)
    inputs[places], labels[places], mask[places] = examples.inputs, examples.labels, True
    return Examples(inputs, labels, mask)


def tasks_of(dtype: torch.dtype = torch.float64) -> list[Task]:
    def examples(shots: tuple[int, ...], seed: int) -> Examples:
        drawn = examples_of(PICTURE, shots, seed)
        return drawn._replace(inputs=drawn.inputs.to(dtype))

    return [
        Task(examples(shots, seed), examples(queries, seed + 10), existing(len(shots)))
        for seed, (shots, queries) in enumerate(zip(SHOTS, QUERIES, strict=True))
    ]


def batch_of(tasks: list[Task], garbage: float) -> Task:
    supports = [padded(task.support, SIZE, garbage, i) for i, task in enumerate(tasks)]
    queries = [padded(task.query, SIZE, garbage, 50 + i) for i, task in enumerate(tasks)]
    classes = torch.stack([torch.arange(WAYS) < len(task.classes) for task in tasks])
    stack = [Examples(*map(torch.stack, zip(*part, strict=True))) for part in (supports, queries)]
    return Task(*stack, classes)


def alpha_of(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.tensor([0.1, 0.3], dtype=value.dtype) for name, value in theta.items()}


@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e12])
def test_a_batch_of_padded_tasks_is_a_loop_over_the_tasks_as_they_are(garbage):
    learner = conv_learner()
    theta, tasks = theta_of(learner), tasks_of()
    alpha, batch = alpha_of(theta), batch_of(tasks, garbage)

    def adapt_one(support: Examples, classes: Tensor) -> Adaptation:
        return adapt(learner, theta, support, classes, alpha, 3)

    phis, losses, _ = vmap(adapt_one)(batch.support, batch.classes)
    for index, task in enumerate(tasks):
        phi, loss, _ = adapt_one(task.support, task.classes)
        got = {name: value[index] for name, value in phis.items()}
        ways = len(task.classes)
        got["head.weight"], got["head.bias"] = got["head.weight"][:ways], got["head.bias"][:ways]
        assert_same(got, phi, to=1e-10)
        torch.testing.assert_close(losses[index], loss, rtol=0, atol=1e-10)


@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e12])
@pytest.mark.parametrize("objective", [maml, first_order_maml])
def test_meta_gradient_of_a_batch_is_the_mean_over_the_tasks_as_they_are(objective, garbage):
    learner = conv_learner()
    values = theta_of(learner)
    tasks = tasks_of()
    batch = batch_of(tasks, garbage)
    theta = {name: value.clone().requires_grad_() for name, value in values.items()}
    alpha = {name: value.requires_grad_() for name, value in alpha_of(values).items()}
    wanted = [*theta.values(), *alpha.values()]

    outcomes = vmap(lambda task: objective(learner, theta, alpha, task, 3))(batch)
    got = torch.autograd.grad(outcomes.loss.mean(), wanted)
    loop = [objective(learner, theta, alpha, task, 3) for task in tasks]
    expected = torch.autograd.grad(sum(outcome.loss for outcome in loop) / len(loop), wanted)

    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    torch.testing.assert_close(outcomes, Outcome(*map(torch.stack, zip(*loop, strict=True))))
    assert all(gradient.abs().max() > 0 for gradient in expected[: len(theta)])


@pytest.mark.parametrize("garbage", [1.0, 1e6])
def test_padding_has_no_influence_in_single_precision(garbage):
    learner, tasks = conv_learner(), tasks_of(torch.float32)
    theta = {name: value.float().requires_grad_() for name, value in theta_of(learner).items()}

    def gradients(batch: Task) -> tuple[Tensor, ...]:
        outcomes = vmap(lambda task: maml(learner, theta, 0.2, task, 3))(batch)
        return torch.autograd.grad(outcomes.loss.sum(), list(theta.values()))

    clean, dirty = gradients(batch_of(tasks, 0.0)), gradients(batch_of(tasks, garbage))
    for one, other in zip(dirty, clean, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
