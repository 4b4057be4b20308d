"""Random affine deformation of pictures."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Outside = Literal["zeros", "reflection"]
"""What lies outside a picture: the ground of drawings, or for photographs the picture mirrored."""


@dataclass(frozen=True)
class Jitter:
    """Half-widths of the uniform distributions that a deformation is drawn from."""

    degrees: float = 0.0
    """Rotation, in degrees."""
    scale: float = 0.0
    """Logarithm of the scale of each axis."""
    shear: float = 0.0
    """Shear, as the tangent of its angle."""
    shift: float = 0.0
    """Shift of each axis, as a share of the picture's size."""


def deformations(
    rng: np.random.Generator, of_class: Jitter, of_picture: Jitter, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Draws matrices (B, N, K, 2, 3): each picture deformed by itself, and then by its class."""
    by_class = _matrices(rng, of_class, (*shape[:2], 1))
    by_picture = _matrices(rng, of_picture, shape)
    return (by_picture @ by_class)[..., :2, :]


def deform(images: Tensor, matrices: NDArray[np.float32], outside: Outside = "zeros") -> Tensor:
    """Pictures (B, N, K, C, H, W), each deformed by its matrix and sampled bilinearly, once."""
    flat = images.flatten(0, 2)
    by_picture = torch.from_numpy(matrices.reshape(-1, 2, 3))
    grid = F.affine_grid(by_picture, list(flat.shape), align_corners=False)
    moved = F.grid_sample(flat, grid, padding_mode=outside, align_corners=False)
    return moved.reshape(images.shape)


def _matrices(
    rng: np.random.Generator, spread: Jitter, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Homogeneous matrices (*shape, 3, 3): rotation, shear and scale, then shift."""
    angle = np.deg2rad(rng.uniform(-spread.degrees, spread.degrees, shape))
    scale_x, scale_y = np.exp(rng.uniform(-spread.scale, spread.scale, (2, *shape)))
    shear = rng.uniform(-spread.shear, spread.shear, shape)
    shift_x, shift_y = 2 * rng.uniform(-spread.shift, spread.shift, (2, *shape))
    cos, sin = np.cos(angle), np.sin(angle)
    matrices = np.zeros((*shape, 3, 3))
    matrices[..., 0, 0] = scale_x * cos
    matrices[..., 0, 1] = scale_x * (shear * cos - sin)
    matrices[..., 1, 0] = scale_y * sin
    matrices[..., 1, 1] = scale_y * (shear * sin + cos)
    matrices[..., 0, 2] = shift_x
    matrices[..., 1, 2] = shift_y
    matrices[..., 2, 2] = 1
    return matrices.astype(np.float32)
