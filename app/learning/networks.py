"""Networks that turn inputs into feature vectors, by name.

Any `nn.Module` that answers each example on its own can stand here: the inner loop calls it through
`torch.func.functional_call`. Normalisation is per example (group norm, Wu & He 2018), so that an
answer does not depend on what else is in the batch.
"""

from collections.abc import Sequence
from inspect import signature
from itertools import pairwise
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """The convolutional network of few-shot learning: blocks of 3 x 3 convolution, norm and ReLU.

    With four blocks of 64 filters this is the network of Vinyals et al. (2016) and Finn et al.
    (2017). Each block halves the picture, by a stride of two or by 2 x 2 max pooling. The features
    are the last block's activations, normalised over the example where `feature_norm` is set.

    Input (M, C, H, W), output (M, features).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        filters: int = 64,
        blocks: int = 4,
        groups: int = 8,
        downsample: Literal["stride", "pool"] = "stride",
        feature_norm: bool = True,
    ):
        super().__init__()
        if downsample not in ("stride", "pool"):
            raise ValueError(f'no downsample {downsample!r}: use "stride" or "pool"')
        if min(filters, blocks, groups) < 1:
            raise ValueError("filters, blocks and groups must each be at least 1")
        channels, height, width = input_shape
        self.groups = groups
        self.downsample = downsample
        self.feature_norm = feature_norm
        stride = 2 if downsample == "stride" else 1
        self.convs = nn.ModuleList(
            nn.Conv2d(channels if block == 0 else filters, filters, 3, stride, padding=1)
            for block in range(blocks)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(groups, filters) for _ in range(blocks))
        for _ in range(blocks):
            height, width = (
                ((height + 1) // 2, (width + 1) // 2) if stride == 2 else (height // 2, width // 2)
            )
        if height < 1 or width < 1:
            raise ValueError(
                f"{blocks} blocks halve a {tuple(input_shape)} input to nothing: use fewer"
            )
        self.features = filters * height * width

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of each input on its own."""
        hidden = inputs
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.relu(norm(conv(hidden)))
            if self.downsample == "pool":
                hidden = F.max_pool2d(hidden, 2)
        features = hidden.flatten(1)
        return F.layer_norm(features, features.shape[1:]) if self.feature_norm else features


class Mlp(nn.Module):
    """Fully connected layers with ReLU between them. Input (M, *shape), output (M, features)."""

    def __init__(self, input_shape: Sequence[int], *, hidden: Sequence[int] = (64, 64)):
        super().__init__()
        size = 1
        for length in input_shape:
            size *= length
        sizes = [size, *hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.features = sizes[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of each input on its own."""
        hidden = inputs.flatten(1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return hidden


NETWORKS: dict[str, type[ConvNet] | type[Mlp]] = {"conv": ConvNet, "mlp": Mlp}


def network_arguments(name: str, **given: Any) -> dict[str, Any]:
    """A network's arguments, defaults included: a default must never change under a θ."""
    parameters = signature(NETWORKS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {"name": name, **defaults, **given}


def build_network(input_shape: Sequence[int], name: str, **arguments: Any) -> ConvNet | Mlp:
    """The network `name` for inputs of `input_shape`, with the recipe's arguments.

    Raises:
        ValueError: no such network, or arguments that it does not take.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}: use one of {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[name](input_shape, **arguments)
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from error
