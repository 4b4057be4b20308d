"""Output layers: from features (M, D) to outputs (M, N), which the loss of a task is taken of."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from app.learning.losses import class_balanced_cross_entropy, mean_squared_error, query_accuracy
from app.learning.tasks import Examples

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

    def linear(self, phi: Mapping[str, Tensor], classes: Tensor) -> tuple[Tensor, Tensor]:
        """The linear function from features to outputs: its rows (N, D) and biases (N,).

        Of `classes` (N,) those that do not exist are padding: theirs mean nothing, whatever stands
        in their rows.
        """

    def apply(self, phi: Mapping[str, Tensor], features: Tensor, classes: Tensor) -> Tensor:
        """Outputs (M, N) of features (M, D), of classes their logits."""

    def loss(self, outputs: Tensor, examples: Examples, classes: Tensor) -> Tensor:
        """The loss of outputs (..., M, N), (...)."""

    def score(self, outputs: Tensor, examples: Examples, classes: Tensor) -> Tensor:
        """What a person judges the outputs by, a scalar: accuracy, or the mean squared error."""


class _AnyHead:
    """What all heads have in common."""

    def linear(
        self,
        phi: Mapping[str, Tensor],
        classes: Tensor,  # noqa: ARG002 - every output counts
    ) -> tuple[Tensor, Tensor]:
        """The rows and biases of φ, as they are."""
        return phi["head.weight"], phi["head.bias"]

    def apply(self, phi: Mapping[str, Tensor], features: Tensor, classes: Tensor) -> Tensor:
        """The linear function of the features."""
        return F.linear(features, *self.linear(phi, classes))


class _ClassesHead(_AnyHead):
    """What the heads of classification have in common."""

    def linear(self, phi: Mapping[str, Tensor], classes: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and biases, less what all classes have in common: no probability depends on it.

        As long as all rows are near one, that is hundreds of times what tells the classes apart,
        and costs two to three digits of float32: 1e-5 in probability. For the same reason no
        gradient would come back through it.
        """
        weight, bias = phi["head.weight"], phi["head.bias"]
        return weight - _mean(weight, classes), bias - _mean(bias, classes)

    def loss(self, outputs: Tensor, examples: Examples, classes: Tensor) -> Tensor:
        """Class-balanced cross-entropy."""
        return class_balanced_cross_entropy(outputs, examples, classes)

    def score(self, outputs: Tensor, examples: Examples, classes: Tensor) -> Tensor:
        """Accuracy in [0, 1], each class weighing the same."""
        return query_accuracy(outputs, examples, classes)


class SharedRowHead(_ClassesHead):
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


class FixedHead(_ClassesHead):
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


class LinearHead(_AnyHead):
    """The head of regression: K outputs, a linear function of the features."""

    starts_equal = False

    def __init__(self, outputs: int):
        self.outputs = outputs

    def initial(self, features: int, generator: torch.Generator) -> Params:
        """Rows (K, D) and biases (K,)."""
        weight = torch.randn(self.outputs, features, generator=generator) / features**0.5
        return {"head.weight": weight, "head.bias": torch.zeros(self.outputs)}

    def start(self, theta: Mapping[str, Tensor], ways: int) -> Params:
        """Its own rows; ValueError where the task has another number of outputs."""
        if ways != self.outputs:
            raise ValueError(f"this θ has {self.outputs} outputs, the task has {ways}")
        return {"head.weight": theta["head.weight"], "head.bias": theta["head.bias"]}

    def rows(self, padded: int) -> int:  # noqa: ARG002 - K never changes
        """K, always."""
        return self.outputs

    def rate_factor(self, classes: Tensor) -> Tensor | float:  # noqa: ARG002 - K never changes
        """One."""
        return 1.0

    def loss(self, outputs: Tensor, examples: Examples, classes: Tensor) -> Tensor:  # noqa: ARG002
        """The mean squared error."""
        return mean_squared_error(outputs, examples)

    score = loss


def _mean(rows: Tensor, classes: Tensor) -> Tensor:
    """The mean of the rows (N, ...) of `classes` (N,), as a constant to any derivative."""
    exists = classes.reshape(-1, *[1] * (rows.ndim - 1))
    return rows.detach().masked_fill(~exists, 0).sum(0) / classes.sum()


def build_head(name: str) -> SharedRowHead | FixedHead | LinearHead:
    """The head of a recipe or card: "shared-row", "fixed-N" (classes) or "linear-K" (outputs).

    Raises:
        ValueError: no such head.
    """
    if name == "shared-row":
        return SharedRowHead()
    kind, _, number = name.partition("-")
    if kind == "fixed" and number.isdecimal() and int(number) >= 2:
        return FixedHead(int(number))
    if kind == "linear" and number.isdecimal() and int(number) >= 1:
        return LinearHead(int(number))
    raise ValueError(
        f'no head {name!r}: use "shared-row", "fixed-5" for five classes, or "linear-1" for '
        "regression with one output"
    )
