"""How good a session is on labelled examples that it has not learned from."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from app.engine.requests import Floats
from app.services.views import Evaluation

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def evaluate(labels: Sequence[str], true: NDArray[np.int64], probabilities: Floats) -> Evaluation:
    """Compare predictions with true labels.

    Args:
        labels: the session's labels.
        true: (Q,) indices of the true labels, Q at least 1.
        probabilities: (Q, ways).
    """
    ways, n = len(labels), len(true)
    counts = np.zeros((ways, ways), int)
    np.add.at(counts, (true, probabilities.argmax(axis=1)), 1)
    correct = int(counts.trace())
    return Evaluation(
        n=n,
        accuracy=correct / n,
        confidence_interval_95=wilson_interval(correct, n),
        confusion={
            label: dict(zip(labels, row, strict=True))
            for label, row in zip(labels, counts.tolist(), strict=True)
        },
    )


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion, at least one trial.

    With p = correct / n and z the normal quantile:

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Unlike the normal approximation it stays within [0, 1] and has a width where p is 0 or 1.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22 (1927), 209-212.
    """
    p, z2_n = correct / n, Z_95**2 / n
    centre = p + z2_n / 2
    half = Z_95 * sqrt(p * (1 - p) / n + z2_n / (4 * n))
    # At its ends the interval is exact: rounding would leave it a hair inside or outside of [0, 1].
    low = 0.0 if correct == 0 else (centre - half) / (1 + z2_n)
    high = 1.0 if correct == n else (centre + half) / (1 + z2_n)
    return low, high
