"""How well θ does on tasks it has not seen, by step, beside the nearest class mean."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from app.data.distributions import Distribution
from app.data.pools import TaskShape
from app.learning.heads import LinearHead
from app.learning.inner_loop import Alpha, descend
from app.learning.learner import Learner
from app.learning.nearest_class_mean import nearest_class_mean
from app.learning.outcome import outcome
from app.learning.tasks import Examples, Task

DRAWN_AT_ONCE_NUMBERS = 2000 * 28 * 28
"""Numbers of all inputs drawn at once. Changing it changes the tasks that a seed draws."""
COMPUTED_AT_ONCE_NUMBERS = {"cpu": 400 * 28 * 28, "cuda": 10_000 * 28 * 28}
"""The same of one batched computation: enough for it to pay, few enough for a CPU's cache and for a
GPU's memory."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over tasks in percent, in regression the mean squared error.

    `interval` is 1.96 standard errors of the mean over tasks to either side (Finn et al. 2017).
    Every figure is of the same tasks.
    """

    mean: float
    interval: tuple[float, float]
    by_step: tuple[float, ...]
    nearest_class_mean: float | None
    """None where there are no classes."""
    nearest_class_mean_interval: tuple[float, float] | None
    queries: int
    """Queries of each class: fewer than asked for where a class has not as many pictures."""


def evaluate(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    source: Distribution,
    *,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    steps: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Adapts θ to each of `tasks` tasks and answers their queries.

    Each query is answered on its own, by a transductive learner with its task's whole query set.

    Args:
        learner: what the parameters belong to.
        theta: the initialisation.
        alpha: the inner step sizes by parameter.
        source: where tasks are drawn from.
        ways: classes of each task.
        shots: support examples of each class.
        queries: queries of each class, fewer where the pool has not as many pictures.
        tasks: number of tasks, at least 2.
        steps: inner steps.
        seed: the same seed draws the same tasks.
        progress: told of the tasks drawn so far, most of which are measured.

    Raises:
        DataError: the source is too small for such tasks.
    """
    device = next(iter(theta.values())).device
    queries = max(1, min(queries, source.most_queries(shots)))
    shape = TaskShape((ways, ways), (shots, shots), queries)
    numbers = (
        ways * (shots + queries) * math.prod(source.sample(shape, 1, [0]).query.inputs.shape[2:])
    )
    drawn_at_once = max(1, DRAWN_AT_ONCE_NUMBERS // numbers)
    computed_at_once = max(1, COMPUTED_AT_ONCE_NUMBERS[device.type] // numbers)
    classes = not isinstance(learner.head, LinearHead)

    def by_step(task: Task) -> Tensor:
        phis, _ = descend(learner, theta, task.support, task.classes, alpha, steps)
        outcomes = [outcome(learner, phi, task.query, task.classes) for phi in phis]
        # An accuracy is finite even where nothing else is.
        return torch.stack(
            [torch.where(its.loss.isfinite(), its.score, torch.nan) for its in outcomes]
        )

    def nearest(task: Task) -> Tensor:
        return learner.head.score(
            nearest_class_mean(learner, theta, task), task.query, task.classes
        )

    adapted, baseline, done = [], [], 0
    drawn: list[Task] = []
    with torch.no_grad():
        while done < tasks:
            count = min(drawn_at_once, tasks - done)
            drawn.append(source.sample(shape, count, [seed, done]))
            done += count
            if done == tasks or sum(len(task.classes) for task in drawn) >= computed_at_once:
                batch, drawn = to_device(_joined(drawn), device), []
                adapted.append(vmap(by_step, chunk_size=computed_at_once)(batch).double().cpu())
                if classes:
                    near = vmap(nearest, chunk_size=computed_at_once)(batch)
                    baseline.append(near.double().cpu())
            progress(done)
    scores = torch.cat(adapted) * (100 if classes else 1)  # (tasks, steps + 1)
    mean, interval = _mean_and_interval(scores[:, -1])
    nearest_mean, nearest_interval = (
        _mean_and_interval(100 * torch.cat(baseline)) if classes else (None, None)
    )
    return Evaluation(
        mean, interval, tuple(scores.mean(0).tolist()), nearest_mean, nearest_interval, queries
    )


def _mean_and_interval(scores: Tensor) -> tuple[float, tuple[float, float]]:
    mean = scores.mean().item()
    margin = 1.96 * scores.std().item() / math.sqrt(len(scores))
    return mean, (mean - margin, mean + margin)


def _joined(batches: Sequence[Task]) -> Task:
    """Batches of tasks of one shape as one."""
    joined: Task = tree_map(lambda *tensors: torch.cat(tensors), *batches)
    return joined


def to_device(task: Task, device: torch.device) -> Task:
    """The same tasks on the device."""
    return Task(
        examples_to_device(task.support, device),
        examples_to_device(task.query, device),
        task.classes.to(device),
    )


def examples_to_device(examples: Examples, device: torch.device) -> Examples:
    """The same examples on the device."""
    return Examples(*(tensor.to(device) for tensor in examples))
