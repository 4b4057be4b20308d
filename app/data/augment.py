"""Random deformation of pictures: affine, elastic, and of the width of strokes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Outside = Literal["zeros", "reflection"]
"""What lies outside a picture: the ground of drawings, or for photographs the picture mirrored."""

KNOTS = 4
"""Control points along each axis of an elastic deformation."""


@dataclass(frozen=True)
class Jitter:
    """What a deformation is drawn from: half-widths of uniform distributions, but for `elastic`."""

    degrees: float = 0.0
    """Rotation, in degrees."""
    scale: float = 0.0
    """Logarithm of the scale of each axis."""
    shear: float = 0.0
    """Shear, as the tangent of its angle."""
    shift: float = 0.0
    """Shift of each axis, as a share of the picture's size."""
    elastic: float = 0.0
    """Standard deviation of an elastic deformation's displacements, as a share of that size."""
    stroke: float = 0.0
    """How much of the way strokes go to being a pixel wider on either side, or narrower."""


@dataclass(frozen=True)
class Deformations:
    """What befalls each of the pictures (B, N, K)."""

    matrices: NDArray[np.float32]
    """Affine maps (B, N, K, 2, 3) from where a pixel comes to lie to where it is taken from."""
    bends: NDArray[np.float32] | None
    """Displacements (B, N, K, 2, KNOTS, KNOTS) in x and y that bend the grid, or None."""
    strokes: NDArray[np.float32] | None
    """Changes of stroke width (B, N, K) in [-1, 1], or None."""

    def part(self, tasks: slice) -> "Deformations":
        """Those of some of the tasks."""
        bends = None if self.bends is None else self.bends[tasks]
        strokes = None if self.strokes is None else self.strokes[tasks]
        return Deformations(self.matrices[tasks], bends, strokes)


def deformations(
    rng: np.random.Generator, of_class: Jitter, of_picture: Jitter, shape: tuple[int, int, int]
) -> Deformations:
    """Draws deformations of pictures (B, N, K): each by itself, and then by its class."""
    classes = (*shape[:2], 1)
    by_class = _matrices(rng, of_class, classes)
    by_picture = _matrices(rng, of_picture, shape)
    bends = strokes = None
    if of_class.elastic or of_picture.elastic:
        bends = _bends(rng, of_class, classes) + _bends(rng, of_picture, shape)
    if of_class.stroke or of_picture.stroke:
        strokes = _strokes(rng, of_class, classes) + _strokes(rng, of_picture, shape)
        strokes = strokes.clip(-1, 1)
    return Deformations((by_picture @ by_class)[..., :2, :], bends, strokes)


def deform(images: Tensor, by: Deformations, outside: Outside = "zeros") -> Tensor:
    """Pictures (B, N, K, C, H, W) in [0, 1], each deformed and sampled bilinearly, once."""
    flat = images.flatten(0, 2)
    if by.strokes is not None:
        flat = _with_strokes(flat, torch.from_numpy(by.strokes.reshape(-1, 1, 1, 1)))
    matrices = torch.from_numpy(by.matrices.reshape(-1, 2, 3))
    height, width = flat.shape[-2:]
    if height != width:  # the grid's axes both go from -1 to 1
        aspect = torch.tensor([[1, height / width, 1], [width / height, 1, 1]])
        matrices = matrices * aspect
    grid = F.affine_grid(matrices, list(flat.shape), align_corners=False)
    if by.bends is not None:
        knots = torch.from_numpy(by.bends.reshape(-1, 2, KNOTS, KNOTS))
        smooth = F.interpolate(knots, flat.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + smooth.movedim(1, -1)
    moved = F.grid_sample(flat, grid, padding_mode=outside, align_corners=False)
    return moved.reshape(images.shape)


def _bends(rng: np.random.Generator, spread: Jitter, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Displacements (*shape, 2, KNOTS, KNOTS), in units of half a picture."""
    drawn = rng.standard_normal((*shape, 2, KNOTS, KNOTS), np.float32)
    return drawn * np.float32(2 * spread.elastic)


def _strokes(
    rng: np.random.Generator, spread: Jitter, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    return rng.uniform(-spread.stroke, spread.stroke, shape).astype(np.float32)


def _with_strokes(images: Tensor, widths: Tensor) -> Tensor:
    """Pictures (M, C, H, W) on the way, by `widths` (M, 1, 1, 1), to their dilation or erosion."""
    around = F.pad(images, (1, 1, 1, 1), mode="replicate")
    wider = F.max_pool2d(around, 3, stride=1)
    narrower = -F.max_pool2d(-around, 3, stride=1)
    return (
        images + widths.clamp(min=0) * (wider - images) + widths.clamp(max=0) * (images - narrower)
    )


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
