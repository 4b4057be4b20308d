"""Fitting and measuring how honest a model's confidence is, see `app.learning.calibration`.

Both are done on tasks of 2 N classes, of which a session knows the first N: queries of the others
belong to none of its labels.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from app.data.pools import Pool, TaskShape
from app.errors import Diverged
from app.learning.calibration import (
    area_under_roc,
    class_means,
    expected_calibration_error,
    outlier_probability,
    outlier_terms,
    task_size,
    temperature,
)
from app.learning.heads import FixedHead
from app.learning.inner_loop import Alpha, adapt
from app.learning.learner import Learner
from app.learning.losses import membership
from app.learning.tasks import Examples, Task
from app.registry.card import Calibration
from app.training.evaluate import COMPUTED_AT_ONCE_NUMBERS, to_device

WAYS = (2, 5, 10, 20, 50, 100)
SHOTS = (1, 2, 5, 10)
QUERIES = 5
"""Most queries of each class."""
CELL_QUERIES = 1500
"""Queries of known classes that a calibration sees of every number of ways and shots, or more."""
LEAST_TASKS = 4
RIDGE = 1e-5
"""Penalty on the squares of standardised weights: what the tasks do not tell stays at zero."""
STEPS = 500


@dataclass(frozen=True)
class Cell:
    """What a model says of tasks of one size."""

    logits: Tensor
    """Of queries of known classes (M, N)."""
    labels: Tensor
    """(M,)"""
    known: Tensor
    """Outlier terms of the same queries (M, 6)."""
    unknown: Tensor
    """Outlier terms of queries of other classes (M, 6)."""
    size: Tensor
    """log N and log K."""


@dataclass(frozen=True)
class Confidence:
    """How sure a calibrated model is of its answers."""

    top: Tensor
    """Probability of the answer to queries of known classes (M,)."""
    correct: Tensor
    """Whether it is right (M,)."""
    unknown: Tensor
    """Outlier probability of queries of other classes."""
    known: Tensor
    """The same of queries of known classes."""

    @property
    def calibration_error(self) -> float:
        """The expected calibration error."""
        return expected_calibration_error(self.top, self.correct)

    @property
    def outlier_auroc(self) -> float:
        """The area under the ROC curve of the outlier probability."""
        return area_under_roc(self.unknown, self.known)


def calibrate(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    pool: Pool,
    *,
    shots: int,
    steps: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Calibration | None:
    """Fits what makes probabilities honest on tasks of a pool.

    Args:
        learner: inductive, of classification.
        theta: the initialisation.
        alpha: the inner step sizes by parameter.
        pool: classes that θ was not trained on.
        shots: most examples of a class; fewer where the pool has not as many pictures.
        steps: inner steps.
        seed: draws the tasks.
        progress: told how many sizes of tasks are done, and of how many.

    Returns:
        None where the pool is too small for any task.
    """
    sizes = list(_sizes(learner, pool, shots))
    cells = []
    for done, (ways, each) in enumerate(sizes):
        progress(done, len(sizes))
        queries = min(QUERIES, pool.most_queries(each))
        tasks = max(LEAST_TASKS, math.ceil(CELL_QUERIES / (ways * queries)))
        shape = TaskShape((2 * ways, 2 * ways), (each, each), queries)
        cells.append(_answer(learner, theta, alpha, pool, shape, tasks, steps, seed))
    progress(len(sizes), len(sizes))
    if not cells:
        return None
    return Calibration(temperature=_fit_temperature(cells), outlier=_fit_outlier(cells))


def confidence(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    pool: Pool,
    calibration: Calibration,
    *,
    ways: int,
    shots: int,
    tasks: int,
    steps: int,
    seed: int,
) -> Confidence | None:
    """What a calibrated model says of tasks; None where the pool has no 2 N classes.

    Arguments as in `calibrate`.
    """
    queries = min(QUERIES, pool.most_queries(shots))
    if queries < 1 or 2 * ways > pool.most_ways(shots + queries):
        return None
    shape = TaskShape((2 * ways, 2 * ways), (shots, shots), queries)
    cell = _answer(learner, theta, alpha, pool, shape, tasks, steps, seed)
    heat = temperature(calibration.temperature, cell.size)
    top, guess = (cell.logits / heat).softmax(-1).max(-1)
    unknown, known = (
        outlier_probability(calibration.outlier, terms) for terms in (cell.unknown, cell.known)
    )
    return Confidence(top, guess == cell.labels, unknown, known)


def _sizes(learner: Learner, pool: Pool, shots: int) -> Iterator[tuple[int, int]]:
    head = learner.head
    for ways in [head.ways] if isinstance(head, FixedHead) else WAYS:
        for each in SHOTS:
            if each <= max(1, shots) and 2 * ways <= pool.most_ways(each + 1):
                yield ways, each


def _answer(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    pool: Pool,
    shape: TaskShape,
    tasks: int,
    steps: int,
    seed: int,
) -> Cell:
    """Adapts to the first half of the classes of each task and answers the queries of all."""
    ways, shots, device = shape.ways[0] // 2, shape.shots[0], next(iter(theta.values())).device

    def answer(task: Task) -> tuple[Tensor, Tensor, Tensor]:
        support = Examples(*(tensor[: ways * shots] for tensor in task.support))
        classes = task.classes[:ways]
        phi, _, features = adapt(learner, theta, support, classes, alpha, steps)
        queries = learner.features(phi, task.query.inputs)
        size = task_size(membership(support, ways).sum(0), classes)
        terms = outlier_terms(queries, class_means(features, support, ways), classes, size)
        known = queries[: ways * shape.queries]
        return learner.head.apply(phi, known, classes), terms, size

    numbers = 2 * ways * (shots + shape.queries) * math.prod(pool.input_shape)
    at_once = max(1, COMPUTED_AT_ONCE_NUMBERS["cpu"] // numbers)
    found: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for first in range(0, tasks, at_once):
            count = min(at_once, tasks - first)
            batch = to_device(pool.sample(shape, count, [seed, first, ways, shots]), device)
            found.append(tuple(value.double().cpu() for value in vmap(answer)(batch)))
    logits, terms, size = (torch.cat(values) for values in zip(*found, strict=True))
    if not (logits.isfinite().all() and terms.isfinite().all()):
        raise Diverged(
            f"The inner loop diverges on some {ways}-way {shots}-shot tasks: lower α, or take "
            "fewer steps."
        )
    labels = torch.arange(ways).repeat_interleave(shape.queries).repeat(tasks)
    known = labels.numel() // tasks
    return Cell(
        logits.flatten(0, 1),
        labels,
        terms[:, :known].flatten(0, 1),
        terms[:, known:].flatten(0, 1),
        size[0],
    )


def _fit_temperature(cells: Sequence[Cell]) -> tuple[float, ...]:
    """Least mean cross-entropy, each size of tasks weighing the same."""
    sizes = torch.stack([cell.size for cell in cells])  # (cells, 2)

    def loss(terms: Tensor, weights: Tensor) -> Tensor:
        logs = terms @ weights
        return torch.stack(
            [
                F.cross_entropy(cell.logits / log.exp(), cell.labels)
                for cell, log in zip(cells, logs, strict=True)
            ]
        ).mean()

    ones = torch.ones(len(cells), 1, dtype=sizes.dtype)
    return _minimise(loss, torch.cat([ones, sizes], 1))


def _fit_outlier(cells: Sequence[Cell]) -> tuple[float, ...]:
    """Logistic regression, each size of tasks weighing the same, and its two halves too."""
    halves = [half for cell in cells for half in (cell.known, cell.unknown)]
    weight = torch.cat([torch.full((len(half),), 1 / (len(half) * len(halves))) for half in halves])
    target = torch.cat([torch.full((len(half),), index % 2) for index, half in enumerate(halves)])

    def loss(terms: Tensor, weights: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(
            terms @ weights, target.to(terms.dtype), reduction="none"
        )
        return (losses * weight.to(terms.dtype)).sum()

    # The last term is the product of the second with log N. Where all cells have one N it must be
    # no second copy of the second, so log N is taken from its mean.
    terms = torch.cat(halves)
    middle = terms[:, 3].mean()
    terms[:, 5] = terms[:, 1] * (terms[:, 3] - middle)
    found = list(_minimise(loss, terms))
    found[1] -= float(middle) * found[5]
    return tuple(found)


def _minimise(loss: Callable[[Tensor, Tensor], Tensor], terms: Tensor) -> tuple[float, ...]:
    """The weights of `terms` (M, F), the first of which is 1, that minimise `loss(terms, weights)`.

    The ridge penalty is on the weights of standardised terms, but the first.
    """
    mean, deviation = terms.mean(0), terms.std(0, correction=0)
    mean[0] = 0
    varies = deviation > 1e-9
    scale = torch.where(varies, deviation, torch.ones_like(deviation))
    standard = (terms - mean) / scale
    weights = torch.zeros(terms.shape[1], dtype=terms.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        total = loss(standard, weights) + RIDGE * weights[1:].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = weights.detach() / scale
    found[0] -= (found * mean)[1:].sum()
    return tuple(found.tolist())
