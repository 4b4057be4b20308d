"""3 x 3 convolution as a matrix product, for many sets of weights at once.

A convolution whose weights differ from task to task is a grouped convolution to `torch.func.vmap`,
and its second derivative a loop over the groups. As an unfolding and a matrix product it is a
batched matrix product in every derivative, which runs near the machine's rate. With a stride of two
the unfolded picture is only 9/4 of the picture, with a stride of one it is nine times as much.
Channels come last, so that what is copied is contiguous.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

SIDE = 3


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 2) -> Tensor:
    """Convolution with a border of one zero.

    Args:
        inputs: (M, H, W, C).
        weight: (O, C, 3, 3), as in `torch.nn.Conv2d`.
        bias: (O,) or None.
        stride: s, of both sides.

    Returns:
        (M, ⌈H / s⌉, ⌈W / s⌉, O).
    """
    patches = _unfold(inputs, stride)
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)  # (9 C, O)
    positions = patches.shape[1] * patches.shape[2]
    by_picture = patches.device.type == "cuda" and positions >= matrix.shape[1]
    outputs = _product(patches, matrix, by_picture=by_picture)
    return outputs if bias is None else outputs + bias


def strided(length: int, stride: int) -> int:
    """The length of a side after a convolution with a border of one."""
    return (length - 1) // stride + 1


def _product(patches: Tensor, matrix: Tensor, *, by_picture: bool) -> Tensor:
    """Patches (M, H, W, K) times a matrix (K, O).

    By picture the gradient of the matrix is a sum of M products over the H W positions of one
    picture, not one product over all M H W: with so few numbers in the result, that one would leave
    most of a GPU idle.
    """
    if by_picture:
        outputs = patches.flatten(1, 2) @ matrix.expand(len(patches), -1, -1)
    else:
        outputs = patches.flatten(0, 2) @ matrix
    return outputs.reshape(*patches.shape[:3], -1)


class _Unfold(Function):
    """Pictures (M, H, W, C) to their 3 x 3 patches (M, ⌈H / s⌉, ⌈W / s⌉, 9 C); linear."""

    @staticmethod
    def forward(pictures: Tensor, stride: int) -> Tensor:
        examples, height, width, channels = pictures.shape
        padded = F.pad(pictures, (0, 0, 1, 1, 1, 1))
        of_example, of_row, of_column, _ = padded.stride()
        patches = padded.as_strided(  # the columns and channels of a patch's row are in one piece
            (examples, strided(height, stride), strided(width, stride), SIDE, SIDE * channels),
            (of_example, stride * of_row, stride * of_column, of_row, 1),
        )
        return patches.flatten(3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:  # noqa: ARG004
        pictures, ctx.stride = inputs
        ctx.height, ctx.width = pictures.shape[1:3]

    @staticmethod
    def backward(ctx: Any, patches: Tensor) -> tuple[Tensor, None]:
        return _fold(patches, ctx.height, ctx.width, ctx.stride), None

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int, None],
        pictures: Tensor,
        stride: int,
    ) -> tuple[Tensor, int]:
        pictures = pictures.movedim(in_dims[0], 0)
        patches = _unfold(pictures.flatten(0, 1), stride)
        return patches.reshape(*pictures.shape[:2], *patches.shape[1:]), 0


class _Fold(Function):
    """The transpose of `_Unfold`: sums patches into pictures of `height` x `width`."""

    @staticmethod
    def forward(patches: Tensor, height: int, width: int, stride: int) -> Tensor:
        examples, rows, columns, _ = patches.shape
        patches = patches.reshape(*patches.shape[:3], SIDE, SIDE, -1)
        reach = stride * (rows - 1) + SIDE, stride * (columns - 1) + SIDE
        padded = patches.new_zeros(examples, *reach, patches.shape[-1])
        for row in range(SIDE):
            for column in range(SIDE):
                into_rows = slice(row, row + stride * (rows - 1) + 1, stride)
                into_columns = slice(column, column + stride * (columns - 1) + 1, stride)
                padded[:, into_rows, into_columns] += patches[:, :, :, row, column]
        missing = height + 1 - reach[0], width + 1 - reach[1]  # a last row that no patch reaches
        return F.pad(padded, (0, 0, -1, missing[1], -1, missing[0]))

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, int, int, int],
        output: Tensor,  # noqa: ARG004
    ) -> None:
        ctx.stride = inputs[3]

    @staticmethod
    def backward(ctx: Any, pictures: Tensor) -> tuple[Tensor, None, None, None]:
        return _unfold(pictures, ctx.stride), None, None, None

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int, None, None, None],
        patches: Tensor,
        height: int,
        width: int,
        stride: int,
    ) -> tuple[Tensor, int]:
        patches = patches.movedim(in_dims[0], 0)
        pictures = _fold(patches.flatten(0, 1), height, width, stride)
        return pictures.reshape(*patches.shape[:2], *pictures.shape[1:]), 0


def _unfold(pictures: Tensor, stride: int) -> Tensor:
    patches: Tensor = _Unfold.apply(pictures, stride)  # type: ignore[no-untyped-call]
    return patches


def _fold(patches: Tensor, height: int, width: int, stride: int) -> Tensor:
    pictures: Tensor = _Fold.apply(patches, height, width, stride)  # type: ignore[no-untyped-call]
    return pictures
