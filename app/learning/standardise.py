"""Inputs of mean 0 and standard deviation 1, by the statistics of the training classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """x ↦ (x - μ) / σ, with μ and σ for each place of an input's first axis.

    Input and output (M, C, ...).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], scale: Sequence[float], dimensions: int):
        """`mean` and `scale` hold C numbers each; an input has so many `dimensions`."""
        super().__init__()
        shape = (-1, *[1] * (dimensions - 1))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(shape))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).reshape(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardises each input."""
        return (inputs - self.mean) / self.scale
