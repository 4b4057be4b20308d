"""Honest confidence: how sure an answer may be, and whether a query is of any known class at all.

Both are read off a task's φ with a few numbers that are fitted once for a θ, on tasks of classes
that θ was not trained on.

- Probabilities are softmax(logits / T) (temperature scaling, Guo et al. 2017, arXiv 1706.04599),
  with log T a linear function of log N and log K: tasks of another size are another problem.
- The probability that a query belongs to none of the N classes is a logistic regression on how far
  its features are from the nearest class mean, alone and as a share of the mean distance.

K is the harmonic mean of the shots: the variance of a class mean falls as one over its shots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.learning.losses import membership
from app.learning.tasks import Examples

TEMPERATURE_TERMS = 3
OUTLIER_TERMS = 6
BINS = 15
"""Of the expected calibration error, as in Guo et al. 2017."""
_LEAST = 1e-12
"""A squared distance below which it is no smaller."""


def class_means(features: Tensor, examples: Examples, ways: int) -> Tensor:
    """Mean feature vectors (N, D) of each class; zero for a class without examples.

    Args:
        features: (M, D), one for each example.
        examples: gives labels and mask (M,).
        ways: N.
    """
    member = membership(examples, ways).to(features.dtype)  # (M, N)
    return (member.T @ features) / member.sum(0).clamp(min=1)[:, None]


def task_size(shots: Tensor, classes: Tensor) -> Tensor:
    """Log N and log K, (2,), of a task with so many `shots` (N,) of the `classes` (N,) bool."""
    number = classes.sum()
    harmonic = number / (classes / shots.clamp(min=1)).sum()
    return torch.stack([number.to(harmonic.dtype), harmonic]).log()


def temperature(weights: Sequence[float] | Tensor, size: Tensor) -> Tensor:
    """T of tasks of a `size` (..., 2), see `task_size`."""
    weights = torch.as_tensor(weights, dtype=size.dtype, device=size.device)
    return (weights[0] + size @ weights[1:]).exp()


def outlier_terms(features: Tensor, means: Tensor, classes: Tensor, size: Tensor) -> Tensor:
    """What the logistic regression is on, (Q, 6).

    Args:
        features: of queries, (Q, D).
        means: of the classes, (N, D).
        classes: (N,) bool, which of them exist.
        size: (2,), see `task_size`.
    """
    # As differences whatever Q: by a matrix product they would depend on who else is asked about.
    distances = torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist")
    squared = distances.square().clamp(min=_LEAST)  # (Q, N)
    nearest = squared.masked_fill(~classes, torch.inf).amin(-1)
    mean = squared.masked_fill(~classes, 0).sum(-1) / classes.sum()
    near, share = nearest.log(), (nearest / mean).log()
    classes_log, shots_log = (each.expand_as(near) for each in size)
    terms = [torch.ones_like(near), near, share, classes_log, shots_log, near * classes_log]
    return torch.stack(terms, -1)


def outlier_probability(weights: Sequence[float] | Tensor, terms: Tensor) -> Tensor:
    """The probability (Q,) that a query is of no class, where half of all queries are of none."""
    weights = torch.as_tensor(weights, dtype=terms.dtype, device=terms.device)
    return (terms @ weights).sigmoid()


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Mean distance of confidence and accuracy over `BINS` bins of equal width, weighed by size.

    Args:
        confidence: (M,) in [0, 1].
        correct: (M,) bool.
    """
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, (confidence.double() - correct.double()))
    return float(gaps.abs().sum() / len(confidence))


def area_under_roc(positive: Tensor, negative: Tensor) -> float:
    """The probability that a score out of `positive` is above one out of `negative`; ties half."""
    scores = torch.cat([positive, negative]).double()
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[inverse]
    first, second = len(positive), len(negative)
    return float((ranks[:first].sum() - first * (first + 1) / 2) / (first * second))
