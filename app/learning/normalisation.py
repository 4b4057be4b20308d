"""Normalisation of activations: over one example alone, or over everything in a batch.

    y = γ (x - μ) / √(σ² + ε) + β

Group norm (Wu & He 2018) takes μ and σ over one example's positions and a group of its channels:
each example is answered on its own. Batch norm as the code of Finn et al. (2017) uses it takes them
over all examples of a forward pass, in testing too: an answer then depends on the other queries,
which is the transductive protocol.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-5


class BatchStatisticsNorm(nn.Module):
    """Batch norm by the statistics of the batch at hand, always; none are kept.

    Input and output (M, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Back to γ = 1 and β = 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalises each channel over examples and positions."""
        # Not F.batch_norm: where `torch.func.vmap` has made it one computation for many tasks, the
        # derivative of the gradient for γ takes μ and σ for constants (torch 2.13).
        return normalise_last(inputs.movedim(1, 3), self).movedim(3, 1)


Norm = nn.GroupNorm | BatchStatisticsNorm


def normalise_last(inputs: Tensor, norm: Norm) -> Tensor:
    """What `norm` does, for activations (M, H, W, C) whose channels come last."""
    hidden = inputs.flatten(1, 2)  # (M, P, C)
    centred = hidden - _mean(hidden, norm)
    scale = norm.weight * torch.rsqrt(_mean(centred * centred, norm) + EPSILON)
    return torch.addcmul(norm.bias, centred, scale).reshape(inputs.shape)


def _mean(hidden: Tensor, norm: Norm) -> Tensor:
    """Means of (M, P, C) that broadcast against it."""
    if isinstance(norm, BatchStatisticsNorm):
        return hidden.mean((0, 1))
    channels = hidden.mean(1).reshape(len(hidden), norm.num_groups, -1)  # (M, G, C / G)
    return channels.mean(-1, keepdim=True).expand_as(channels).flatten(1).unsqueeze(1)
