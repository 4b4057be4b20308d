"""Accuracy of θ on tasks it has not seen, by step, beside the nearest class mean."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from app.data.pools import ClassPool, TaskShape, sample_tasks
from app.learning.inner_loop import descend
from app.learning.learner import Learner
from app.learning.losses import membership
from app.learning.maml import query_accuracy
from app.learning.tasks import Examples, Task

TASKS_AT_ONCE_EXAMPLES = 2000
"""Examples in one batched computation: enough for batching to pay, few enough for memory.

Changing it changes the tasks that a seed draws."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over tasks, in percent.

    `interval` is 1.96 standard errors of the mean over tasks to either side (Finn et al. 2017).
    Every figure is of the same tasks.
    """

    mean: float
    interval: tuple[float, float]
    by_step: tuple[float, ...]
    nearest_class_mean: float
    queries: int
    """Queries of each class: fewer than asked for where a class has not as many pictures."""


def evaluate(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Mapping[str, Tensor],
    pool: ClassPool,
    *,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    steps: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Accuracy:
    """Adapts θ to each of `tasks` tasks and answers their queries, each query on its own.

    Args:
        learner: what the parameters belong to.
        theta: the initialisation.
        alpha: the inner step sizes by parameter.
        pool: the classes that tasks are drawn from.
        ways: classes of each task.
        shots: support examples of each class.
        queries: queries of each class, fewer where the pool has not as many pictures.
        tasks: number of tasks, at least 2.
        steps: inner steps.
        seed: the same seed draws the same tasks.
        progress: told of the tasks done.

    Raises:
        DataError: the pool is too small for such tasks.
    """
    device = next(iter(theta.values())).device
    queries = max(1, min(queries, pool.images.shape[1] - shots))
    shape = TaskShape((ways, ways), (shots, shots), queries)
    at_once = max(1, TASKS_AT_ONCE_EXAMPLES // (ways * (shots + queries)))

    def by_step(task: Task) -> Tensor:
        phis, _ = descend(learner, theta, task.support, task.classes, alpha, steps)
        return torch.stack(
            [_accuracy(learner.logits(phi, task.query.inputs), task) for phi in phis]
        )

    def nearest(task: Task) -> Tensor:
        return _accuracy(nearest_class_mean(learner, theta, task), task)

    adapted, baseline, done = [], [], 0
    with torch.no_grad():
        while done < tasks:
            count = min(at_once, tasks - done)
            batch = to_device(sample_tasks(pool, shape, count, [seed, done]), device)
            adapted.append(vmap(by_step)(batch).double().cpu())
            baseline.append(vmap(nearest)(batch).double().cpu())
            done += count
            progress(done)
    accuracy = 100 * torch.cat(adapted)  # (tasks, steps + 1)
    mean = accuracy[:, -1].mean().item()
    margin = 1.96 * accuracy[:, -1].std().item() / math.sqrt(tasks)
    return Accuracy(
        mean,
        (mean - margin, mean + margin),
        tuple(accuracy.mean(0).tolist()),
        (100 * torch.cat(baseline)).mean().item(),
        queries,
    )


def nearest_class_mean(learner: Learner, theta: Mapping[str, Tensor], task: Task) -> Tensor:
    """Negative squared distances (Q, N) of θ's features to the support set's class means.

    The rule of prototypical networks (Snell et al. 2017, Eq. 1 and 2), without any inner step.
    """
    phi = learner.start(theta, task.classes.shape[0])
    support = learner.features(phi, task.support.inputs)  # (M, D)
    query = learner.features(phi, task.query.inputs)  # (Q, D)
    member = membership(task.support, task.classes.shape[0])  # (M, N)
    means = (member.to(support.dtype).T @ support) / member.sum(0).clamp(min=1)[:, None]
    return -torch.cdist(query, means).square()


def to_device(task: Task, device: torch.device) -> Task:
    """The same tasks on the device."""
    return Task(
        Examples(*(tensor.to(device) for tensor in task.support)),
        Examples(*(tensor.to(device) for tensor in task.query)),
        task.classes.to(device),
    )


def _accuracy(logits: Tensor, task: Task) -> Tensor:
    return query_accuracy(logits, task.query, task.classes)
