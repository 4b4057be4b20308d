"""Whole tasks of a few examples, batches of them, and gradients by name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.learning.heads import Params, build_head
from app.learning.learner import Learner
from app.learning.networks import Mlp
from app.learning.tasks import Examples, Task
from tests.unit.learning.common import VECTOR, examples_of, existing


def task_of(
    shape: Sequence[int], shots: Sequence[int], queries: Sequence[int], seed: int = 0
) -> Task:
    """Random examples of len(shots) classes, none of them padding."""
    support, query = examples_of(shape, shots, seed), examples_of(shape, queries, seed + 100)
    return Task(support, query, existing(len(shots)))


def regression_examples(size: int, outputs: int, seed: int = 0) -> Examples:
    """Random vectors and targets."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn((size, *VECTOR), generator=generator, dtype=torch.float64)
    targets = torch.randn((size, outputs), generator=generator, dtype=torch.float64)
    return Examples(inputs, targets, torch.ones(size, dtype=torch.bool))


def regression_task(outputs: int, seed: int = 0) -> Task:
    return Task(
        regression_examples(8, outputs, seed),
        regression_examples(6, outputs, seed + 100),
        existing(outputs),
    )


def regression_learner(outputs: int) -> Learner:
    network = Mlp(VECTOR, hidden=(7, 6))
    return Learner(network, build_head(f"linear-{outputs}"), network.features)


def stacked(tasks: Sequence[Task]) -> Task:
    """Tasks of one size as a batch."""
    supports, queries = [task.support for task in tasks], [task.query for task in tasks]
    parts = [Examples(*map(torch.stack, zip(*part, strict=True))) for part in (supports, queries)]
    return Task(*parts, torch.stack([task.classes for task in tasks]))


def leaves(parameters: Mapping[str, Tensor]) -> Params:
    """Copies that gradients are taken for."""
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> Params:
    """By name; zero where the loss does not depend on the parameter."""
    found = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, found, strict=True))


def random_alpha(theta: Mapping[str, Tensor], steps: int, seed: int = 8) -> Params:
    """Inner step sizes by parameter and step, in [0.1, 0.4)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 + 0.3 * torch.rand(steps, generator=generator, dtype=torch.float64)
        for name in theta
    }
