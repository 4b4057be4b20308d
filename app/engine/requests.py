"""What the engine is asked and what it answers: plain arrays, no HTTP, no database, no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ModelKey:
    """One version of a model in the registry."""

    name: str
    version: int


@dataclass(frozen=True)
class SupportSet:
    """A session's support set. `inputs` (M, *input_shape) float32, `labels` (M,) in [0, ways)."""

    inputs: Floats
    labels: NDArray[np.int64]
    ways: int


@dataclass(frozen=True)
class Answers:
    """The answers to Q queries.

    `probabilities` (Q, ways), each row summing to one, and `outlier` (Q,), the probability of
    belonging to none of the classes; None where θ was not calibrated.
    """

    probabilities: Floats
    outlier: Floats | None

    def rows(self, start: int, end: int) -> "Answers":
        """The answers to some of the queries."""
        outlier = None if self.outlier is None else self.outlier[start:end]
        return Answers(self.probabilities[start:end], outlier)


@dataclass(frozen=True)
class Adapted:
    """The answer to an adaptation.

    `support_loss` has steps + 1 numbers: before the first step and after each.
    `answers` is None where there was no query, `weights`, φ by parameter name, where nobody asked
    for them.
    """

    support_loss: tuple[float, ...]
    answers: Answers | None
    weights: dict[str, Floats] | None = None


class PhiMissing(Exception):
    """φ is not in the cache: adapt again with the stored support set."""
