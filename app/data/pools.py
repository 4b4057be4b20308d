"""Pools of classes, and few-shot tasks drawn from them by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.data.augment import Jitter, jitter
from app.data.images import to_float
from app.errors import DataError
from app.learning.tasks import Examples, Task


@dataclass(frozen=True)
class ClassPool:
    """Classes of equally many pictures: `images` (classes, pictures, C, H, W) uint8."""

    images: NDArray[np.uint8]
    names: tuple[str, ...]


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


def sample_tasks(
    pool: ClassPool,
    shape: TaskShape,
    tasks: int,
    seed: Sequence[int],
    augmentation: Augmentation | None = None,
) -> Task:
    """Draws a batch of tasks; the same seed draws the same tasks.

    One number of ways and one range of shots is drawn for the whole batch; the shots of a class
    within that range may differ, and the support sets are then padded. Classes of a task come from
    different entries of the pool, pictures within a class without replacement.

    Args:
        pool: the classes to draw from.
        shape: the range of sizes.
        tasks: the number of tasks B.
        seed: non-negative integers, always as many of them: trailing zeros do not count.
        augmentation: how classes and pictures are varied, or None to take them as they are.

    Returns:
        A task whose tensors have a leading dimension B; inputs are float32 in [0, 1].

    Raises:
        DataError: the pool has too few classes, or its classes too few pictures.
    """
    rng = np.random.default_rng(list(seed))
    classes, pictures = pool.images.shape[:2]
    if shape.ways[1] > classes or shape.shots[1] + shape.queries > pictures:
        raise DataError(
            f"tasks of {shape.ways[1]} classes with {shape.shots[1]} + {shape.queries} pictures "
            f"cannot be drawn from {classes} classes of {pictures}: ask for smaller tasks"
        )
    ways = int(rng.integers(shape.ways[0], shape.ways[1] + 1))
    most = int(rng.integers(shape.shots[0], shape.shots[1] + 1))
    shots = rng.integers(shape.shots[0], most + 1, size=(tasks, ways))
    shots[:, 0] = most  # one class has them all, so that padding is never more than needed
    drawn = np.stack([rng.permutation(classes)[:ways] for _ in range(tasks)])  # (B, N)
    count = most + shape.queries
    order = rng.permuted(np.tile(np.arange(pictures), (tasks, ways, 1)), axis=-1)[..., :count]
    images = pool.images[drawn[..., None], order]  # (B, N, K + Q, C, H, W)
    if augmentation is not None and augmentation.symmetries:
        images = _symmetries(images, rng)
    inputs = torch.from_numpy(to_float(images))
    if augmentation is not None:
        inputs = jitter(inputs, rng, augmentation.of_class, augmentation.of_picture)
    present = np.arange(most) < shots[..., None]  # (B, N, K)
    return Task(
        _examples(inputs[:, :, :most], torch.from_numpy(present)),
        _examples(inputs[:, :, most:], torch.ones(tasks, ways, shape.queries, dtype=torch.bool)),
        torch.ones(tasks, ways, dtype=torch.bool),
    )


def _examples(inputs: torch.Tensor, mask: torch.Tensor) -> Examples:
    """Flattens (B, N, K, ...) to (B, N K, ...), with labels by position."""
    tasks, ways, each = mask.shape
    labels = torch.arange(ways).repeat_interleave(each).expand(tasks, -1)
    return Examples(inputs.flatten(1, 2), labels, mask.flatten(1))


def _symmetries(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Gives every class of every task one of the eight symmetries of the square."""
    turned = np.empty_like(images)
    choice = rng.integers(8, size=images.shape[:2])
    for symmetry in range(8):
        chosen = np.rot90(images[choice == symmetry], symmetry % 4, axes=(-2, -1))
        turned[choice == symmetry] = chosen[..., ::-1] if symmetry >= 4 else chosen
    return turned
