"""φ of a session as one vector, so that one copy moves it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from app.learning.heads import Params
from app.learning.learner import NETWORK, Learner
from app.registry.card import Calibration

ALIGNED = 16
"""Parameters begin at multiples of so many numbers, as torch's own tensors do."""

VIEW_BYTES = 1024
"""About what a tensor takes beside its numbers: of a small network more than those."""


class Contents(NamedTuple):
    """What a vector holds, or with a leading dimension several of them.

    `parameters` of φ by name, the class means of φ's features `means` (rows, D), and the task's
    `size` (2,), see `app.learning.calibration.task_size`.
    """

    parameters: Params
    means: Tensor
    size: Tensor


class Ready(NamedTuple):
    """φ as queries need it.

    `weight` (rows, D) and `bias` (rows,) give logits that are divided by the temperature already,
    and -∞ for a row that is no class. `classes` (rows,) bool says which are. The network's
    `parameters` by name, sorted, `means` and `size` are those of `Contents`, and views where they
    are.
    """

    parameters: Params
    weight: Tensor
    bias: Tensor
    means: Tensor
    size: Tensor
    classes: Tensor
    calibration: Calibration | None
    """By which the temperature is."""

    @property
    def bytes(self) -> int:
        """Size, beyond what it is a view of."""
        views = VIEW_BYTES * (len(self.parameters) + 5)
        return self.weight.nbytes + self.bias.nbytes + self.classes.nbytes + views


@dataclass
class Phi:
    """φ of one session: a vector as `Layout` reads it, with `rows` rows of the head.

    A head of fixed width has more rows than the first `ways`. `ready` is there where φ is to answer
    alone, and need not be made so for every query; it may be of a calibration that is another now.
    """

    vector: Tensor
    ways: int
    rows: int
    ready: Ready | None = None

    @property
    def bytes(self) -> int:
        """Size, nearly all of it on the device."""
        return self.vector.nbytes + (0 if self.ready is None else self.ready.bytes)


class Layout:
    """Where the numbers of an adapted learner are in its vector.

    The network's parameters come first, in the order of their names: a φ that is kept must be read
    alike once its version is loaded anew. Then come the task's size, and row by row of the head its
    weights, its bias and the mean features of its class. So the vector of fewer rows is the
    beginning of one of more.

    Args:
        learner: whose φ.
        theta: gives the network's parameters their names and shapes.
    """

    def __init__(self, learner: Learner, theta: Params):
        self._features = learner.feature_size
        self._network: dict[str, tuple[slice, torch.Size]] = {}
        end = 0
        for name, value in sorted(theta.items()):  # a file's order is another whenever it is read
            if name.startswith(NETWORK):
                self._network[name] = slice(end, end + value.numel()), value.shape
                end = _aligned(end + value.numel())
        self._size = slice(end, end + 2)
        self._head = _aligned(end + 2)
        self._row = _aligned(2 * self._features + 1)

    def length(self, rows: int) -> int:
        """Numbers of a vector with so many rows."""
        return self._head + rows * self._row

    def write(self, vectors: Tensor, contents: Contents) -> Contents:
        """Writes contents with leading dimensions (...) to vectors (..., at least their length).

        Returns:
            The contents of the vectors, as `read` does.
        """
        into = self.read(vectors, rows=contents.means.shape[-2])
        for name, place in into.parameters.items():
            place.copy_(contents.parameters[name])
        into.means.copy_(contents.means)
        into.size.copy_(contents.size)
        return into

    def read(self, vectors: Tensor, rows: int) -> Contents:
        """The contents of vectors (..., at least the length of so many rows), as views of them."""
        parameters = {
            name: vectors[..., place].view((*vectors.shape[:-1], *shape))
            for name, (place, shape) in self._network.items()
        }
        head = vectors[..., self._head : self.length(rows)]
        head = head.view((*vectors.shape[:-1], rows, self._row))
        parameters["head.weight"] = head[..., : self._features]
        parameters["head.bias"] = head[..., self._features]
        means = head[..., self._features + 1 : 2 * self._features + 1]
        return Contents(parameters, means, vectors[..., self._size])


def _aligned(numbers: int) -> int:
    return -(-numbers // ALIGNED) * ALIGNED
