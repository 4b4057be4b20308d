"""Pools of classes, and few-shot tasks drawn from them by seed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.data.augment import Jitter, deform, deformations
from app.data.images import to_float
from app.errors import DataError
from app.learning.tasks import Examples, Task

WHOLE = slice(None)
SYMMETRIES = 8
"""Turns by 90 degrees, plain and mirrored."""


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
    `of_picture` each by itself.
    """

    symmetries: bool
    of_class: Jitter
    of_picture: Jitter


@dataclass(frozen=True)
class ClassPool:
    """Classes of equally many pictures: `images` (classes, pictures, C, H, W) uint8."""

    images: NDArray[np.uint8]
    names: tuple[str, ...]

    def most_queries(self, shots: int) -> int:
        """How many queries of a class there are beside its shots."""
        return int(self.images.shape[1]) - shots

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
        from different entries of the pool, pictures within a class without replacement.

        Args:
            shape: the range of sizes.
            tasks: the number of tasks B.
            seed: non-negative integers, always as many of them: trailing zeros do not count.
            augmentation: how classes and pictures are varied, or None to take them as they are.
            part: which of the tasks to return; the others are drawn, but not made.

        Returns:
            A task whose tensors have a leading dimension B; inputs are float32 in [0, 1].

        Raises:
            DataError: the pool has too few classes, or its classes too few pictures.
        """
        rng = np.random.default_rng(list(seed))
        classes, pictures = self.images.shape[:2]
        if shape.ways[1] > classes or shape.shots[1] + shape.queries > pictures:
            raise DataError(
                f"tasks of {shape.ways[1]} classes with {shape.shots[1]} + {shape.queries} "
                f"pictures cannot be drawn from {classes} classes of {pictures}: ask for smaller "
                "tasks"
            )
        ways = int(rng.integers(shape.ways[0], shape.ways[1] + 1))
        most = int(rng.integers(shape.shots[0], shape.shots[1] + 1))
        shots = rng.integers(shape.shots[0], most + 1, size=(tasks, ways))
        shots[:, 0] = most  # one class has them all, so that padding is never more than needed
        drawn = np.stack([rng.permutation(classes)[:ways] for _ in range(tasks)])  # (B, N)
        count = most + shape.queries
        order = rng.permuted(np.tile(np.arange(pictures), (tasks, ways, 1)), axis=-1)[..., :count]
        varied = _Variation(rng, augmentation, (tasks, ways), count)
        images = self.images[drawn[part, :, None], order[part]]  # (B, N, K + Q, C, H, W)
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
        classes, pictures = self.images.shape[:2]
        drawn = rng.integers(classes, size=(count, 1))
        which = rng.integers(pictures, size=(count, 1))
        varied = _Variation(rng, augmentation, (count, 1), 1)
        inputs = varied(self.images[drawn[part], which[part], None], part)
        labels = torch.from_numpy(drawn * varied.per_class + varied.symmetry)[part, 0]
        return Examples(inputs[:, 0, 0], labels, torch.ones(len(labels), dtype=torch.bool))

    def augmented_classes(self, augmentation: Augmentation) -> int:
        """How many classes there are when symmetries count as classes."""
        return len(self.names) * (SYMMETRIES if augmentation.symmetries else 1)


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
        still = augmentation is None or augmentation.of_class == augmentation.of_picture == Jitter()
        self._matrices = (
            None
            if augmentation is None or still
            else deformations(rng, augmentation.of_class, augmentation.of_picture, (*classes, each))
        )

    def __call__(self, images: NDArray[np.uint8], part: slice) -> Tensor:
        """The pictures (B, N, K, C, H, W) of a part of the batch, varied, float32 in [0, 1]."""
        if self.per_class > 1:
            images = _symmetries(images, self.symmetry[part])
        inputs = torch.from_numpy(to_float(images))
        return inputs if self._matrices is None else deform(inputs, self._matrices[part])


def data_digest(pools: Mapping[str, ClassPool]) -> str:
    """SHA-256 over the names and pictures of all pools, in order."""
    digest = hashlib.sha256()
    for part in sorted(pools):
        digest.update("\0".join((part, *pools[part].names)).encode())
        digest.update(np.ascontiguousarray(pools[part].images).data)
    return digest.hexdigest()


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
