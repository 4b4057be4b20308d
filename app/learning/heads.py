"""Output layers: from features (M, D) to logits (M, N)."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Params = dict[str, Tensor]


class Head(Protocol):
    """What the inner loop needs to know of an output layer."""

    starts_equal: bool
    """Whether every class starts with the same row w. Then all logits of the first forward pass
    are equal, and the gradient of anything below the head is Σ_c (p_c - y_c) w = 0, exactly."""

    def initial(self, features: int, generator: torch.Generator) -> Params:
        """The head's part of a fresh θ, for feature vectors of length `features`."""

    def start(self, theta: Mapping[str, Tensor], ways: int) -> Params:
        """The head's part of φ before the first step: weight (ways, D), bias (ways,)."""

    def rows(self, padded: int) -> int:
        """How many rows stand for a task whose classes are padded to `padded`."""

    def rate_factor(self, classes: Tensor) -> Tensor | float:
        """What α of the head's parameters is multiplied by, for a task with `classes` (N,)."""


def logits(phi: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Logits (M, N) of features (M, D): the same for every head once it has its N rows."""
    return F.linear(features, phi["head.weight"], phi["head.bias"])


class SharedRowHead:
    """A head for any number of classes: one learned row that every class starts from.

    Each class's row is w_c = w before the first step (UNICORN-MAML, Ye & Chao 2022), so the order
    of the labels cannot matter. With p = 1/N for every class the gradient of the class-balanced
    loss for w_c is (mean over classes of f̄ - f̄_c) / N, with f̄_c the mean feature vector of class
    c. Hence α of the rows is multiplied by N: a row's step then depends on neither N nor the shots.
    """

    starts_equal = True

    def initial(self, features: int, generator: torch.Generator) -> Params:
        """One row (1, D) and one bias (1,)."""
        weight = torch.randn(1, features, generator=generator) / features**0.5
        return {"head.weight": weight, "head.bias": torch.zeros(1)}

    def start(self, theta: Mapping[str, Tensor], ways: int) -> Params:
        """The one row for every class."""
        return {
            "head.weight": theta["head.weight"].expand(ways, -1),
            "head.bias": theta["head.bias"].expand(ways),
        }

    def rows(self, padded: int) -> int:
        """As many as asked for."""
        return padded

    def rate_factor(self, classes: Tensor) -> Tensor | float:
        """N, see above."""
        return classes.sum()


class FixedHead:
    """The head of Finn et al. (2017): N rows of its own, for tasks of exactly N classes."""

    starts_equal = False

    def __init__(self, ways: int):
        self.ways = ways

    def initial(self, features: int, generator: torch.Generator) -> Params:
        """Rows (N, D) and biases (N,)."""
        weight = torch.randn(self.ways, features, generator=generator) / features**0.5
        return {"head.weight": weight, "head.bias": torch.zeros(self.ways)}

    def start(self, theta: Mapping[str, Tensor], ways: int) -> Params:
        """Its own rows; ValueError where the task has another number of classes."""
        if ways != self.ways:
            raise ValueError(f"this θ has a head for {self.ways} classes, the task has {ways}")
        return {"head.weight": theta["head.weight"], "head.bias": theta["head.bias"]}

    def rows(self, padded: int) -> int:  # noqa: ARG002 - N never changes
        """N, always."""
        return self.ways

    def rate_factor(self, classes: Tensor) -> Tensor | float:  # noqa: ARG002 - N never changes
        """One. The paper's code sums its loss over classes: its α stands for N α here."""
        return 1.0


def build_head(name: str) -> SharedRowHead | FixedHead:
    """The head of a recipe or card: "shared-row", or "fixed-N" for N classes.

    Raises:
        ValueError: no such head.
    """
    if name == "shared-row":
        return SharedRowHead()
    kind, _, ways = name.partition("-")
    if kind == "fixed" and ways.isdecimal() and int(ways) >= 2:
        return FixedHead(int(ways))
    raise ValueError(f'no head {name!r}: use "shared-row", or "fixed-5" for five classes')
