"""Networks of somebody's own, good ones and bad ones, of inputs (8, 16)."""

from functools import cache

import numpy as np
import torch
from torch import nn

from app.learning.normalisation import BatchStatisticsNorm

SHAPE = (8, 16)
no_factory = 5


ACTIVATION = nn.ReLU()
"""Without parameters, so that networks may have it in common."""


class Good(nn.Module):
    """With arguments, a buffer, and first values that its modules would not give."""

    def __init__(self, input_shape, *, filters=4, widths=(3, 5)):
        super().__init__()
        assert hash(widths), "a list has none"
        self.convs = nn.ModuleList(
            nn.Conv1d(input_shape[0], filters, width, padding=width // 2) for width in widths
        )
        self.norm = nn.GroupNorm(2, len(widths) * filters)
        self.shift = nn.Parameter(torch.randn(len(widths) * filters, 1))
        nn.init.zeros_(self.convs[0].weight)
        self.register_buffer("window", torch.hann_window(input_shape[1]))

    def forward(self, inputs):
        hidden = torch.cat([conv(inputs * self.window) for conv in self.convs], 1)
        return (self.norm(hidden) + self.shift).tanh().flatten(1)


class Holder:
    factory = Good


class Layer(nn.Module):
    """One module that does as it is told with what a linear layer makes."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, inputs):
        return self.act(inputs)


def of(*modules):
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 8), *modules)


@cache
def made_once(input_shape):
    return of()


BACKBONE = of()


def around_a_backbone(input_shape):
    return nn.Sequential(BACKBONE, nn.Linear(8, 4), ACTIVATION)


def with_a_common_activation(input_shape):
    return of(ACTIVATION)


def lazy(input_shape):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6))


def normalised(input_shape):
    """The bias has no gradient, and the sum of the features' squares is always the same."""
    return nn.Sequential(
        nn.Conv1d(8, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.Flatten(), nn.LayerNorm(112)
    )


def no_parameters(input_shape):
    return nn.Flatten()


def transductive(input_shape):
    return nn.Sequential(nn.Conv2d(1, 4, 3), BatchStatisticsNorm(4), nn.Flatten())


def batch_norm(input_shape):
    return of(nn.Sequential(nn.BatchNorm1d(8)))


def running_instance_norm(input_shape):
    return nn.Sequential(nn.InstanceNorm1d(8, track_running_stats=True), nn.Flatten())


def dropout(input_shape):
    return of(nn.Dropout(0.1))


def recurrent(input_shape):
    return of(nn.GRU(8, 8))


def own_dropout(input_shape):
    return of(Layer(lambda hidden: nn.functional.dropout(hidden)))


def counting(input_shape):
    layer = Layer(None)
    layer.calls = 0

    def act(hidden):
        layer.calls += 1
        return hidden * layer.calls

    layer.act = act
    return of(nn.ReLU(), layer)


def running_mean(input_shape):
    layer = Layer(None)
    layer.register_buffer("mean", torch.zeros(8))

    def act(hidden):
        with torch.no_grad():
            layer.mean.lerp_(hidden.mean(0), 0.1)
        return hidden - layer.mean

    layer.act = act
    return of(layer)


def in_place(input_shape):
    return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten())


def centred_over_the_batch(input_shape):
    return of(nn.Sequential(Layer(lambda hidden: hidden - hidden.mean(0))))


def compared_with_the_first(input_shape):
    return of(Layer(lambda hidden: hidden - hidden[:1]))


class Unnamed(nn.Module):
    """Depends on the batch in its own forward, between modules."""

    def __init__(self, input_shape):
        super().__init__()
        self.before = of()
        self.after = nn.Linear(8, 8)

    def forward(self, inputs):
        return self.after(self.before(inputs) / len(inputs))


def by_values(input_shape):
    return of(Layer(lambda hidden: hidden * 2 if hidden[0, 0] > -99 else hidden))


def written_in_place(input_shape):
    def act(hidden):
        out = torch.zeros(len(hidden), 8)
        out[:] = hidden
        return out

    return of(Layer(act))


class Forgetful(torch.autograd.Function):
    """Its rule for many tasks at once is wrong."""

    @staticmethod
    def forward(inputs):
        return inputs * 2

    @staticmethod
    def setup_context(ctx, inputs, output): ...

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2

    @staticmethod
    def vmap(info, in_dims, inputs):
        return Forgetful.apply(inputs) * 3, in_dims[0]


def wrong_rule(input_shape):
    return of(Layer(Forgetful.apply))


def once_differentiable(input_shape):
    return nn.Sequential(Attention(), nn.Flatten())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, inputs):
        return self.attention(inputs, inputs, inputs, need_weights=False)[0]


def by_mode(input_shape):
    layer = Layer(None)
    layer.act = lambda hidden: hidden * 2 if layer.training else hidden
    return of(layer)


def unit_length(input_shape):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(128, 8, bias=False),
        Layer(lambda hidden: hidden / hidden.norm(dim=1, keepdim=True)),
    )


def root(input_shape):
    return of(Layer(lambda hidden: (hidden - hidden.detach()).abs().sqrt()))


def random_buffer(input_shape):
    network = of()
    network.register_buffer("projection", torch.randn(8, 8))
    network.append(Layer(lambda hidden: hidden @ network.projection))
    return network


def random_attribute(input_shape):
    projection = torch.randn(8, 8)
    return of(Layer(lambda hidden: hidden @ projection))


def of_numpy(input_shape):
    network = of()
    network[1].weight.data = torch.tensor(np.random.randn(8, 128), dtype=torch.float32)
    return network


def frozen(input_shape):
    network = of()
    network[1].weight.requires_grad_(False)
    return network


class _DoubleInside(nn.Linear):
    """Computes by 64-bit parameters and answers in 32 bits."""

    def forward(self, inputs):
        return super().forward(inputs.double()).float()


def double_inside(input_shape):
    return nn.Sequential(nn.Flatten(), _DoubleInside(128, 4).double())


def not_flat(input_shape):
    return nn.Conv1d(8, 8, 3)


def two_tensors(input_shape):
    return nn.Sequential(nn.Flatten(), Layer(lambda hidden: (hidden, hidden)))


def whole_numbers(input_shape):
    return nn.Sequential(nn.Flatten(), Layer(lambda hidden: hidden.long()))


def double(input_shape):
    return nn.Sequential(nn.Flatten(), Layer(lambda hidden: hidden.double()))


def only_serving(input_shape):
    layer = Layer(None)
    layer.act = lambda hidden: hidden.reshape(7, -1) if layer.training else hidden
    return of(layer)


def only_several(input_shape):
    return of(Layer(lambda hidden: hidden if len(hidden) > 1 else hidden[1:2].reshape(8)))


def another_size(input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(99, 8))


def no_module(input_shape):
    return 3


def failing(input_shape, *, depth):
    raise KeyError(depth)
