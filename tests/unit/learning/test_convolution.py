"""Convolution as a matrix product against the library's, and its derivatives under torch.func."""

from collections.abc import Callable
from functools import partial
from math import ceil

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from app.learning.convolution import _product, convolve, strided

SIDES = [(6, 6), (5, 5), (5, 8), (8, 5), (3, 2), (2, 2), (1, 1), (1, 4), (5, 1), (2, 1)]
CHANNELS = [(1, 1), (1, 4), (3, 1), (2, 5)]
Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def by_library(inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 2) -> Tensor:
    outputs = F.conv2d(inputs.permute(0, 3, 1, 2), weight, bias, stride=stride, padding=1)
    return outputs.permute(0, 2, 3, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def parts_of(
    sides: tuple[int, int], before: int, after: int, *, tasks: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """Three pictures, a weight and a bias, with leading dimensions for tasks."""
    return (
        normal(*tasks, 3, *sides, before, seed=1),
        normal(*tasks, after, before, 3, 3, seed=2),
        normal(*tasks, after, seed=3),
    )


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("before", "after"), CHANNELS)
@pytest.mark.parametrize("sides", SIDES)
def test_it_is_the_librarys_convolution_with_the_channels_last(
    sides, before, after, with_bias, stride
):
    inputs, weight, bias = parts_of(sides, before, after)
    bias = bias if with_bias else None
    outputs = convolve(inputs, weight, bias, stride)
    assert outputs.shape == (3, ceil(sides[0] / stride), ceil(sides[1] / stride), after)
    close(outputs, by_library(inputs, weight, bias, stride))


@pytest.mark.parametrize("tasks", [(), (2,)])
def test_a_product_for_each_picture_has_the_same_numbers_and_derivatives(tasks):
    patches, matrix = normal(*tasks, 3, 4, 5, 6, seed=1), normal(*tasks, 6, 2, seed=2)
    weights = normal(3, 4, 5, 2, seed=3)

    def steepness(by_picture: bool) -> tuple[Tensor, Tensor]:
        def loss(patches: Tensor, matrix: Tensor) -> Tensor:
            return (_product(patches, matrix, by_picture=by_picture) * weights).sum().sin()

        def squares(patches: Tensor, matrix: Tensor) -> Tensor:
            return sum(part.square().sum() for part in grad(loss, argnums=(0, 1))(patches, matrix))

        both = grad(squares, argnums=(0, 1))
        return (vmap(both) if tasks else both)(patches, matrix)

    for got, expected in zip(steepness(True), steepness(False), strict=True):
        close(got, expected)


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("stride", [1, 2])
def test_a_side_is_divided_by_the_stride_and_rounded_up(length, stride):
    assert strided(length, stride) == ceil(length / stride)


def test_single_precision_stays_single():
    inputs, weight, bias = (part.float() for part in parts_of((5, 4), 2, 3))
    outputs = convolve(inputs, weight, bias)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, by_library(inputs, weight, bias))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(4, 3), (1, 2), (1, 1)])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_first_and_second_derivatives_are_those_of_finite_differences(sides, before, after, stride):
    inputs, weight, bias = parts_of(sides, before, after)
    values = [value.requires_grad_() for value in (inputs[:2].clone(), weight, bias)]
    assert torch.autograd.gradcheck(partial(convolve, stride=stride), values)
    assert torch.autograd.gradgradcheck(partial(convolve, stride=stride), values)


@pytest.mark.parametrize("batched", ["both", "inputs", "weights"])
@pytest.mark.parametrize("sides", [(6, 5), (1, 3)])
def test_one_computation_for_many_tasks_is_a_loop_over_them(sides, batched):
    many, one = parts_of(sides, 2, 3, tasks=(4,)), parts_of(sides, 2, 3)
    inputs = one[0] if batched == "weights" else many[0]
    weight, bias = one[1:] if batched == "inputs" else many[1:]
    of_weights = None if batched == "inputs" else 0
    in_dims = (None if batched == "weights" else 0, of_weights, of_weights)
    got = vmap(convolve, in_dims)(inputs, weight, bias)
    for index in range(4):
        task = [
            part if dim is None else part[index]
            for part, dim in zip((inputs, weight, bias), in_dims, strict=True)
        ]
        close(got[index], by_library(*task))


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, -1])
def test_the_dimension_of_the_tasks_may_stand_anywhere(place):
    inputs, weight, bias = parts_of((4, 3), 2, 3, tasks=(5,))
    moved = inputs.movedim(0, place).contiguous()
    got = vmap(convolve, (place, 0, 0))(moved, weight, bias)
    close(got, vmap(by_library)(inputs, weight, bias))


def test_tasks_of_tasks_are_two_loops():
    inputs, weight, bias = parts_of((3, 4), 2, 2, tasks=(2, 3))
    got = vmap(vmap(convolve))(inputs, weight, bias)
    for outer in range(2):
        for inner in range(3):
            task = (part[outer, inner] for part in (inputs, weight, bias))
            close(got[outer, inner], by_library(*task))


def loss_by(convolution: Convolution) -> Callable[..., Tensor]:
    """A loss that is no linear function of anything, so that no derivative is a constant."""

    def loss(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolution(inputs, weight, bias).sin().square().mean()

    return loss


@pytest.mark.parametrize("shared", [False, True], ids=["weights of each", "one set of weights"])
@pytest.mark.parametrize("sides", [(4, 5), (1, 1)])
def test_gradients_of_many_tasks_are_those_of_each(sides, shared):
    inputs, weight, bias = parts_of(sides, 2, 3, tasks=(3,))
    weight, bias = (weight[0], bias[0]) if shared else (weight, bias)
    of_weights = None if shared else 0
    got = vmap(grad(loss_by(convolve), (0, 1, 2)), (0, of_weights, of_weights))(
        inputs, weight, bias
    )
    for index in range(3):
        task = (inputs[index], *((weight, bias) if shared else (weight[index], bias[index])))
        expected = grad(loss_by(by_library), (0, 1, 2))(*task)
        for one, other in zip(got, expected, strict=True):
            close(one[index], other)


@pytest.mark.parametrize("sides", [(4, 5), (1, 1)])
def test_gradient_of_a_sum_over_many_tasks_is_the_sum_of_gradients(sides):
    inputs, weight, bias = parts_of(sides, 2, 3, tasks=(3,))
    weight, bias = weight[0], bias[0]

    def total(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return vmap(loss_by(convolve), (0, None, None))(inputs, weight, bias).sum()

    got = grad(total, (0, 1, 2))(inputs, weight, bias)
    each = [grad(loss_by(by_library), (0, 1, 2))(task, weight, bias) for task in inputs]
    close(got[0], torch.stack([gradient[0] for gradient in each]))
    close(got[1], sum(gradient[1] for gradient in each))
    close(got[2], sum(gradient[2] for gradient in each))


def after_a_step(convolution: Convolution) -> Callable[..., Tensor]:
    """The loss of other pictures after one step of the weight and the bias."""
    loss = loss_by(convolution)

    def adapted(inputs: Tensor, weight: Tensor, bias: Tensor, others: Tensor) -> Tensor:
        by_weight, by_bias = grad(loss, (1, 2))(inputs, weight, bias)
        return loss(others, weight - 0.5 * by_weight, bias - 0.5 * by_bias)

    return adapted


@pytest.mark.parametrize("sides", [(4, 5), (1, 2)])
def test_gradient_through_a_gradient_step_of_many_tasks_is_that_of_each(sides):
    inputs, weight, bias = parts_of(sides, 2, 3, tasks=(3,))
    others = normal(*inputs.shape, seed=9)
    got = vmap(grad(after_a_step(convolve), (0, 1, 2, 3)))(inputs, weight, bias, others)
    for index in range(3):
        task = [part[index] for part in (inputs, weight, bias, others)]
        expected = grad(after_a_step(by_library), (0, 1, 2, 3))(*task)
        for one, other in zip(got, expected, strict=True):
            close(one[index], other)


@pytest.mark.parametrize("sides", [(4, 5), (1, 2)])
def test_backward_through_gradient_steps_of_many_tasks_reaches_the_one_weight(sides):
    inputs, weight, bias = parts_of(sides, 2, 3, tasks=(3,))
    others = normal(*inputs.shape, seed=9)
    weight, bias = weight[0].requires_grad_(), bias[0].requires_grad_()
    losses = vmap(after_a_step(convolve), (0, None, None, 0))(inputs, weight, bias, others)
    got = torch.autograd.grad(losses.sum(), (weight, bias))
    loop = [
        after_a_step(by_library)(one, weight, bias, other)
        for one, other in zip(inputs, others, strict=True)
    ]
    close(losses, torch.stack(loop))
    for one, other in zip(got, torch.autograd.grad(sum(loop), (weight, bias)), strict=True):
        close(one, other)
