"""The house's networks that turn inputs into feature vectors, by name.

Any `nn.Module` that answers each example on its own can stand in for them, see
`app.learning.own_network`: the inner loop calls it through `torch.func.functional_call`. With group
norm (Wu & He 2018) an answer does not depend on what else is in the batch; batch norm, by which the
published figures were made, makes a network transductive.
"""

from collections.abc import Iterable, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from app.learning.convolution import convolve, strided
from app.learning.normalisation import EPSILON, BatchStatisticsNorm, Norm, normalise_last
from app.learning.own_network import is_own, own_arguments


class ConvNet(nn.Module):
    """The convolutional network of few-shot learning: blocks of 3 x 3 convolution, norm and ReLU.

    With four blocks of 64 filters this is the network of Vinyals et al. (2016) and Finn et al.
    (2017). Each block halves the picture, by a stride of two or by 2 x 2 max pooling, or leaves its
    size where its number in `strides` is one. `filters` and `strides` are one number for all blocks
    or one for each. `norm` is "group", over `groups` groups of channels of each example, or
    "batch", over the whole batch: the network is then transductive. The features are the last
    block's activations or, where `readout` is "mean", their means over the positions, normalised
    over the example where `feature_norm` is set.

    In training mode convolutions are computed as `app.learning.convolution` does, which is faster
    for many tasks and in the second derivative, on the CPU only where they are strided. In
    evaluation mode, which serves requests, they are computed by the library, which answers a lone
    task sooner. Both give the same numbers to rounding.

    Input (M, C, H, W), output (M, features).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        filters: int | Sequence[int] = 64,
        strides: int | Sequence[int] = 2,
        blocks: int = 4,
        groups: int = 8,
        downsample: Literal["stride", "pool"] = "stride",
        feature_norm: bool = True,
        norm: Literal["group", "batch"] = "group",
        readout: Literal["flatten", "mean"] = "flatten",
    ):
        super().__init__()
        _check("downsample", downsample, ("stride", "pool"))
        _check("norm", norm, ("group", "batch"))
        _check("readout", readout, ("flatten", "mean"))
        widths, steps = _each("filters", filters, blocks), _each("strides", strides, blocks)
        if min(*widths, blocks, groups) < 1:
            raise ValueError("filters, blocks and groups must each be at least 1")
        if not set(steps) <= {1, 2}:
            raise ValueError("strides must be 1 or 2")
        channels, height, width = input_shape
        self.strided = downsample == "stride"
        # In memory, where pooling is then several times as fast; torch's group norm has no
        # derivative of it under `torch.func.vmap` (torch 2.13).
        self.channels_together = downsample == "pool" and norm == "batch"
        self.strides = steps
        self.feature_norm = feature_norm
        self.readout = readout
        self.convs: Iterable[nn.Conv2d] = nn.ModuleList(  # type: ignore[assignment]
            nn.Conv2d(
                before,
                after,
                3,
                stride if self.strided else 1,
                padding=1,
                bias=norm != "batch",  # which would take it away again
            )
            for before, after, stride in zip([channels, *widths], widths, steps, strict=False)
        )
        self.norms: Iterable[Norm] = nn.ModuleList(  # type: ignore[assignment]
            BatchStatisticsNorm(width) if norm == "batch" else nn.GroupNorm(groups, width, EPSILON)
            for width in widths
        )
        for stride in steps:
            height, width = (
                (strided(height, stride), strided(width, stride))
                if self.strided
                else (height // stride, width // stride)
            )
        if height < 1 or width < 1:
            raise ValueError(
                f"{blocks} blocks halve a {tuple(input_shape)} input to nothing: use fewer"
            )
        self.features = widths[-1] * (1 if readout == "mean" else height * width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of each input."""
        unfolded = self.training and (self.strided or inputs.device.type == "cuda")
        hidden = self._unfolded(inputs) if unfolded else self._plain(inputs)
        features = hidden.mean((2, 3)) if self.readout == "mean" else hidden.flatten(1)
        return F.layer_norm(features, features.shape[1:]) if self.feature_norm else features

    def _plain(self, hidden: Tensor) -> Tensor:
        if self.channels_together:
            hidden = hidden.movedim(1, 3).contiguous().movedim(3, 1)
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            hidden = F.relu(self._pooled(norm(conv(hidden)), stride))
        return hidden

    def _unfolded(self, hidden: Tensor) -> Tensor:
        hidden = hidden.movedim(1, 3)  # (M, H, W, C)
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            hidden = convolve(hidden, conv.weight, conv.bias, stride if self.strided else 1)
            hidden = normalise_last(hidden, norm)
            hidden = F.relu(self._pooled(hidden.movedim(3, 1), stride).movedim(1, 3))
        return hidden.movedim(3, 1)

    def _pooled(self, hidden: Tensor, stride: int) -> Tensor:
        """Pooled where the blocks pool; before the ReLU, which is the same and touches less."""
        return hidden if self.strided or stride == 1 else F.max_pool2d(hidden, stride)


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


def _each(argument: str, given: int | Sequence[int], blocks: int) -> list[int]:
    numbers = [given] * max(1, blocks) if isinstance(given, int) else list(given)
    if len(numbers) != max(1, blocks):
        raise ValueError(f"{argument} must be one number, or one for each of {blocks} blocks")
    return numbers


def _check(argument: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        choices = " or ".join(f'"{choice}"' for choice in known)
        raise ValueError(f"no {argument} {given!r}: use {choices}")


NETWORKS: dict[str, type[ConvNet] | type[Mlp]] = {"conv": ConvNet, "mlp": Mlp}


def network_arguments(name: str, **given: Any) -> dict[str, Any]:
    """A network's arguments, defaults included: a default must never change under a θ."""
    if is_own(name):
        return {"name": name, **own_arguments(name, given)}
    parameters = signature(NETWORKS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {"name": name, **defaults, **given}


def build_network(input_shape: Sequence[int], name: str, **arguments: Any) -> ConvNet | Mlp:
    """The network `name` for inputs of `input_shape`, with the recipe's arguments.

    Raises:
        ValueError: no such network, or arguments that it does not take.
    """
    if name not in NETWORKS:
        raise ValueError(
            f"no network {name!r}: use one of {', '.join(sorted(NETWORKS))}, or of your own one as "
            '"package.module:factory"'
        )
    try:
        return NETWORKS[name](input_shape, **arguments)
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from error
