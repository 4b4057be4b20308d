"""A network for time series: convolutions over time, each normalised over one example alone."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class StrokeNet(nn.Module):
    """Blocks of convolution, group norm and ReLU, each of which halves the time.

    Input (M, C, T), output (M, features).
    """

    def __init__(
        self,
        input_shape: tuple[int, int],
        *,
        filters: int = 64,
        blocks: int = 3,
        width: int = 5,
        groups: int = 8,
    ):
        super().__init__()
        sizes = [input_shape[0], *[filters] * blocks]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(before, after, width, stride=2, padding=width // 2),
                    nn.GroupNorm(groups, after),
                    nn.ReLU(),
                )
                for before, after in pairwise(sizes)
            )
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of each series on its own."""
        features = self.blocks(inputs).flatten(1)
        return F.layer_norm(features, features.shape[1:])
