"""What the tests of pools share."""

import numpy as np
import torch
from torch import Tensor

from app.data.augment import Jitter
from app.data.pools import Augmentation
from app.learning.tasks import Task

VARIED = Augmentation(True, Jitter(20, 0.1, 0.1, 0.1), Jitter(10, 0.1, 0.1, 0.1))


def shots_of(task: Task) -> Tensor:
    """Support examples of each class of each task, (B, N)."""
    one_hot = torch.nn.functional.one_hot(task.support.labels, task.classes.shape[1])
    return (one_hot * task.support.mask[..., None]).sum(1)


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
