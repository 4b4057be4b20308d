"""Pools of classes, and few-shot tasks drawn from them by seed."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.data.augment import Jitter, Outside, deform, deformations
from app.data.images import to_float
from app.errors import DataError
from app.learning.tasks import Examples, Task

WHOLE = slice(None)
SYMMETRIES = 8
"""Turns by 90 degrees, plain and mirrored."""

Stored = NDArray[Any]
"""Pictures as uint8, or what is no picture as float32, which a network sees as it is."""


@dataclass(frozen=True)
class TaskShape:
    """The size of tasks: inclusive ranges of ways and shots, and queries of each class."""

    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: int


@dataclass(frozen=True)
class Augmentation:
    """What makes new classes and new pictures out of those there are.

    With `symmetries` a class is turned by a multiple of 90 degrees and perhaps mirrored, which
    makes eight classes of one; `of_class` deforms all pictures of a class in a task alike,
    `of_picture` each by itself. `outside` is what then moves into a picture. With
    `turned_together` the classes of a task stand in one symmetry, and are harder to tell apart.
    """

    symmetries: bool
    of_class: Jitter
    of_picture: Jitter
    outside: Outside = "zeros"
    turned_together: bool = False


class Pool(ABC):
    """Classes of pictures that tasks are drawn from."""

    names: tuple[str, ...]

    @abstractmethod
    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, (classes,)."""

    @abstractmethod
    def take(self, classes: NDArray[np.int64], numbers: NDArray[np.int64]) -> Stored:
        """The pictures (..., C, H, W) of these numbers within these classes."""

    @abstractmethod
    def contents(self) -> Iterator[NDArray[np.generic]]:
        """All that makes the pool what it is beside its names, in contiguous pieces."""

    @abstractmethod
    def symmetric(self) -> Self:
        """The pool in which each class stands eight times, once in every symmetry of the square."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one picture, (C, H, W)."""
        first = np.zeros(1, np.int64)
        return self.take(first, first).shape[1:]

    def most_queries(self, shots: int) -> int:
        """How many queries there are beside its shots of every class that has any."""
        counts = self.counts()
        return int(counts.min(where=counts > shots, initial=counts.max())) - shots

    def most_ways(self, pictures: int) -> int:
        """How many classes have at least so many pictures."""
        return int((self.counts() >= pictures).sum())

    def sample(
        self,
        shape: TaskShape,
        tasks: int,
        seed: Sequence[int],
        augmentation: Augmentation | None = None,
        part: slice = WHOLE,
    ) -> Task:
        """Draws a batch of tasks; the same seed draws the same tasks.

        One number of ways and one range of shots is drawn for the whole batch; the shots of a class
        within that range may differ, and the support sets are then padded. Classes of a task come
        from different entries of the pool, those that have pictures for the most shots of the batch
        and the queries; pictures within a class are drawn without replacement.

        Args:
            shape: the range of sizes.
            tasks: the number of tasks B.
            seed: non-negative integers, always as many of them: trailing zeros do not count.
            augmentation: how classes and pictures are varied, or None to take them as they are.
            part: which of the tasks to return; the others are drawn, but not made.

        Returns:
            A task whose tensors have a leading dimension B; inputs are float32 in [0, 1].

        Raises:
            DataError: the pool has too few classes with as many pictures.
        """
        rng = np.random.default_rng(list(seed))
        self._check_size(shape)
        counts = self.counts()
        ways = int(rng.integers(shape.ways[0], shape.ways[1] + 1))
        most = int(rng.integers(shape.shots[0], shape.shots[1] + 1))
        shots = rng.integers(shape.shots[0], most + 1, size=(tasks, ways))
        shots[:, 0] = most  # one class has them all, so that padding is never more than needed
        count = most + shape.queries
        able = np.flatnonzero(counts >= count)
        drawn = np.stack([able[rng.permutation(len(able))[:ways]] for _ in range(tasks)])  # (B, N)
        order = _orders(rng, counts, drawn)[..., :count]
        varied = _Variation(rng, augmentation, (tasks, ways), count)
        images = self.take(drawn[part, :, None], order[part])  # (B, N, K + Q, C, H, W)
        inputs = varied(images, part)
        present = np.arange(most) < shots[part, :, None]  # (B, N, K)
        queries = torch.ones(len(inputs), ways, shape.queries, dtype=torch.bool)
        return Task(
            _examples(inputs[:, :, :most], torch.from_numpy(present)),
            _examples(inputs[:, :, most:], queries),
            torch.ones(len(inputs), ways, dtype=torch.bool),
        )

    def sample_pictures(
        self,
        count: int,
        seed: Sequence[int],
        augmentation: Augmentation | None = None,
        part: slice = WHOLE,
    ) -> Examples:
        """Draws pictures of any class, labelled by class out of `augmented_classes`.

        Args:
            count: the number of pictures M.
            seed: as in `sample`.
            augmentation: how classes and pictures are varied, or None to take them as they are.
            part: which of the pictures to return.
        """
        rng = np.random.default_rng(list(seed))
        drawn = rng.integers(len(self.names), size=(count, 1))
        which = rng.integers(self.counts()[drawn])
        varied = _Variation(rng, augmentation, (count, 1), 1)
        inputs = varied(self.take(drawn[part, :, None], which[part, :, None]), part)
        labels = torch.from_numpy(drawn * varied.per_class + varied.symmetry)[part, 0]
        return Examples(inputs[:, 0, 0], labels, torch.ones(len(labels), dtype=torch.bool))

    def augmented_classes(self, augmentation: Augmentation) -> int:
        """How many classes there are when symmetries count as classes."""
        return len(self.names) * (SYMMETRIES if augmentation.symmetries else 1)

    def _check_size(self, shape: TaskShape) -> None:
        able = self.most_ways(shape.shots[1] + shape.queries)
        if shape.ways[1] > able:
            least, most = self.counts().min(), self.counts().max()
            has = f"{len(self.names)} classes of {least}"
            if least < most:
                has += f" to {most}, {able} of which have as many"
            raise DataError(
                f"tasks of {shape.ways[1]} classes with {shape.shots[1]} + {shape.queries} "
                f"examples cannot be drawn from {has}: ask for smaller tasks"
            )


@dataclass(frozen=True)
class ClassPool(Pool):
    """Classes of equally many pictures: `images` (classes, pictures, C, H, W) uint8."""

    images: NDArray[np.uint8]
    names: tuple[str, ...]

    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, (classes,)."""
        classes, pictures = self.images.shape[:2]
        return np.full(classes, pictures)

    def take(self, classes: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pictures (..., C, H, W) of these numbers within these classes."""
        return self.images[classes, numbers]

    def contents(self) -> Iterator[NDArray[np.generic]]:
        """The pictures."""
        yield np.ascontiguousarray(self.images)

    def symmetric(self) -> Self:
        """The pool in which each class stands eight times, once in every symmetry of the square."""
        images = np.tile(self.images, (SYMMETRIES, 1, 1, 1, 1))
        choice = np.arange(SYMMETRIES).repeat(len(self.names))
        return replace(
            self, images=_symmetries(images[None], choice[None])[0], names=_eightfold(self.names)
        )


@dataclass(frozen=True)
class RaggedPool(Pool):
    """Classes that differ in their number of pictures.

    `images` (all pictures, C, H, W) uint8, or in place of pictures float32 of any shape; those of
    class n are `sizes[n]` from `starts[n]` on.
    """

    images: Stored
    names: tuple[str, ...]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, (classes,)."""
        return self.sizes

    def take(self, classes: NDArray[np.int64], numbers: NDArray[np.int64]) -> Stored:
        """The pictures (..., C, H, W) of these numbers within these classes."""
        images: Stored = self.images[self.starts[classes] + numbers]
        return images

    def contents(self) -> Iterator[NDArray[np.generic]]:
        """How many pictures each class has, and then the pictures."""
        yield self.sizes
        for start, size in zip(self.starts, self.sizes, strict=True):
            yield np.ascontiguousarray(self.images[start : start + size])

    def symmetric(self) -> Self:
        """The pool in which each class stands eight times, once in every symmetry of the square."""
        own = np.concatenate(list(self.contents())[1:])
        eight = np.broadcast_to(own, (1, SYMMETRIES, *own.shape))
        sizes = np.tile(self.sizes, SYMMETRIES)
        return replace(
            self,
            images=_symmetries(eight, np.arange(SYMMETRIES)[None])[0].reshape(-1, *own.shape[1:]),
            names=_eightfold(self.names),
            starts=sizes.cumsum() - sizes,
            sizes=sizes,
        )


def ragged_pools(
    images: Stored,
    names: Sequence[str],
    sizes: NDArray[np.int64],
    parts: Mapping[str, tuple[str, ...]],
) -> dict[str, RaggedPool]:
    """A pool of each part's classes, all of the same pictures.

    Args:
        images: all pictures, class after class.
        names: of all classes, in that order.
        sizes: pictures of each of them.
        parts: the names of each part's classes.
    """
    starts = sizes.cumsum() - sizes
    row_of = {name: row for row, name in enumerate(names)}
    rows = {part: [row_of[name] for name in its] for part, its in parts.items()}
    return {
        part: RaggedPool(images, its, starts[rows[part]], sizes[rows[part]])
        for part, its in parts.items()
    }


class _Variation:
    """One draw of how every class and picture of a batch is varied."""

    def __init__(
        self,
        rng: np.random.Generator,
        augmentation: Augmentation | None,
        classes: tuple[int, int],
        each: int,
    ):
        symmetries = augmentation is not None and augmentation.symmetries
        self.per_class = SYMMETRIES if symmetries else 1
        self.symmetry = (
            rng.integers(SYMMETRIES, size=classes) if symmetries else np.zeros(classes, int)
        )
        if augmentation is not None and augmentation.turned_together:
            self.symmetry[:] = self.symmetry[:, :1]
        still = augmentation is None or augmentation.of_class == augmentation.of_picture == Jitter()
        self._outside: Outside = "zeros" if augmentation is None else augmentation.outside
        self._deformations = (
            None
            if augmentation is None or still
            else deformations(rng, augmentation.of_class, augmentation.of_picture, (*classes, each))
        )

    def __call__(self, images: Stored, part: slice) -> Tensor:
        """The pictures (B, N, K, C, H, W) of a part of the batch, varied, float32 in [0, 1]."""
        if self.per_class > 1:
            images = _symmetries(images, self.symmetry[part])
        inputs = torch.from_numpy(to_float(images) if images.dtype == np.uint8 else images)
        if self._deformations is None:
            return inputs
        return deform(inputs, self._deformations.part(part), self._outside)


def data_digest(pools: Mapping[str, Pool]) -> str:
    """SHA-256 over the names and pictures of all pools, in order."""
    digest = hashlib.sha256()
    for part in sorted(pools):
        digest.update("\0".join((part, *pools[part].names)).encode())
        for piece in pools[part].contents():
            digest.update(piece.data)
    return digest.hexdigest()


def _eightfold(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name} {symmetry}" for symmetry in range(SYMMETRIES) for name in names)


def _orders(
    rng: np.random.Generator, counts: NDArray[np.int64], drawn: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The pictures of each drawn class (B, N) in random order: its own first, (B, N, most)."""
    order = rng.permuted(np.tile(np.arange(counts.max()), (*drawn.shape, 1)), axis=-1)
    missing = order >= counts[drawn][..., None]
    return np.take_along_axis(order, missing.argsort(axis=-1, kind="stable"), axis=-1)


def _examples(inputs: torch.Tensor, mask: torch.Tensor) -> Examples:
    """Flattens (B, N, K, ...) to (B, N K, ...), with labels by position."""
    tasks, ways, each = mask.shape
    labels = torch.arange(ways).repeat_interleave(each).expand(tasks, -1)
    return Examples(inputs.flatten(1, 2), labels, mask.flatten(1))


def _symmetries(images: NDArray[np.uint8], choice: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Gives every class of every task its symmetry of the square, `choice` (B, N) in [0, 8)."""
    turned = np.empty_like(images)
    for symmetry in range(SYMMETRIES):
        chosen = np.rot90(images[choice == symmetry], symmetry % 4, axes=(-2, -1))
        turned[choice == symmetry] = chosen[..., ::-1] if symmetry >= 4 else chosen
    return turned
