"""3 x 3 convolution of stride two as a matrix product, for many sets of weights at once.

A convolution whose weights differ from task to task is a grouped convolution to `torch.func.vmap`,
and its second derivative a loop over the groups. As an unfolding and a matrix product it is a
batched matrix product in every derivative, which runs near the machine's rate. With a stride of two
the unfolded picture is only 9/4 of the picture. Channels come last, so that what is copied is
contiguous.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function

STRIDE = 2
OFFSETS = [(row, column) for row in range(3) for column in range(3)]


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution with stride two and a border of one zero.

    Args:
        inputs: (M, H, W, C).
        weight: (O, C, 3, 3), as in `torch.nn.Conv2d`.
        bias: (O,) or None.

    Returns:
        (M, ⌈H / 2⌉, ⌈W / 2⌉, O).
    """
    patches = _unfold(inputs)
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)  # (9 C, O)
    outputs = (patches.flatten(0, 2) @ matrix).reshape(*patches.shape[:3], -1)
    return outputs if bias is None else outputs + bias


class _Unfold(Function):
    """Pictures (M, H, W, C) to their 3 x 3 patches (M, ⌈H / 2⌉, ⌈W / 2⌉, 9 C); linear."""

    @staticmethod
    def forward(pictures: Tensor) -> Tensor:
        examples, height, width, channels = pictures.shape
        rows, columns = halved(height), halved(width)
        patches = pictures.new_zeros(examples, rows, columns, len(OFFSETS), channels)
        for position, (row, column) in enumerate(OFFSETS):
            into_row, from_row = _spans(row, height)
            into_column, from_column = _spans(column, width)
            patches[:, into_row, into_column, position] = pictures[:, from_row, from_column]
        return patches.flatten(3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.size = inputs[0].shape[1:3]

    @staticmethod
    def backward(ctx: Any, patches: Tensor) -> Tensor:
        return _fold(patches, *ctx.size)

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int],
        pictures: Tensor,
    ) -> tuple[Tensor, int]:
        pictures = pictures.movedim(in_dims[0], 0)
        patches = _unfold(pictures.flatten(0, 1))
        return patches.reshape(*pictures.shape[:2], *patches.shape[1:]), 0


class _Fold(Function):
    """The transpose of `_Unfold`: sums patches into pictures of `height` x `width`."""

    @staticmethod
    def forward(patches: Tensor, height: int, width: int) -> Tensor:
        patches = patches.reshape(*patches.shape[:3], len(OFFSETS), -1)
        pictures = patches.new_zeros(patches.shape[0], height, width, patches.shape[-1])
        for position, (row, column) in enumerate(OFFSETS):
            from_row, into_row = _spans(row, height)
            from_column, into_column = _spans(column, width)
            pictures[:, into_row, into_column] += patches[:, from_row, from_column, position]
        return pictures

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        """Nothing of the inputs is needed."""

    @staticmethod
    def backward(ctx: Any, pictures: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return _unfold(pictures), None, None

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int, None, None],
        patches: Tensor,
        height: int,
        width: int,
    ) -> tuple[Tensor, int]:
        patches = patches.movedim(in_dims[0], 0)
        pictures = _fold(patches.flatten(0, 1), height, width)
        return pictures.reshape(*patches.shape[:2], *pictures.shape[1:]), 0


def _unfold(pictures: Tensor) -> Tensor:
    patches: Tensor = _Unfold.apply(pictures)  # type: ignore[no-untyped-call]
    return patches


def _fold(patches: Tensor, height: int, width: int) -> Tensor:
    pictures: Tensor = _Fold.apply(patches, height, width)  # type: ignore[no-untyped-call]
    return pictures


def halved(length: int) -> int:
    """The length of a side after a stride of two."""
    return (length + 1) // STRIDE


def _spans(offset: int, length: int) -> tuple[slice, slice]:
    """Along one side: the patches whose place `offset` lies inside, and those places."""
    first = 1 if offset == 0 else 0
    last = min(halved(length), (length - offset) // STRIDE + 1)
    start = first * STRIDE + offset - 1
    return slice(first, last), slice(start, start + (last - first) * STRIDE, STRIDE)
