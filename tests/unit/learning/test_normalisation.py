"""Group and batch norm, and networks made of them, in training and in evaluation mode."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from app.learning.heads import build_head
from app.learning.inner_loop import adapt
from app.learning.learner import Learner
from app.learning.maml import maml
from app.learning.networks import ConvNet, Mlp, build_network
from app.learning.normalisation import BatchStatisticsNorm, normalise_last
from tests.unit.learning.common import VECTOR, assert_same, theta_of
from tests.unit.learning.small_tasks import gradients, leaves, stacked, task_of

SHAPE = (2, 7, 6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filled(module: nn.Module) -> nn.Module:
    """In float64, and with random numbers for every parameter, so that their place matters."""
    module = module.double()
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 + 0.5 * normal(*parameter.shape, seed=index))
    return module


def by_hand(inputs: Tensor, norm: nn.Module) -> Tensor:
    """In NumPy: every set of activations that has a mean of its own, one after the other."""
    given, out = inputs.detach().numpy(), np.empty(inputs.shape)
    examples, channels = given.shape[:2]
    if isinstance(norm, BatchStatisticsNorm):
        sets = [np.s_[:, channel] for channel in range(channels)]
    else:
        size = channels // norm.num_groups
        sets = [
            np.s_[example, first : first + size]
            for example in range(examples)
            for first in range(0, channels, size)
        ]
    for place in sets:
        values = given[place]
        out[place] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    return torch.from_numpy(weight[:, None, None] * out + bias[:, None, None])


NORMS = {
    "batch": lambda: BatchStatisticsNorm(4),
    "each channel": lambda: nn.GroupNorm(4, 4),
    "two groups": lambda: nn.GroupNorm(2, 4),
    "all channels": lambda: nn.GroupNorm(1, 4),
}


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (1, 4, 3, 3), (5, 4, 1, 1)])
def test_batch_norm_is_the_formula_by_hand(shape):
    norm, inputs = filled(BatchStatisticsNorm(4)), 2 + 3 * normal(*shape)
    torch.testing.assert_close(norm(inputs), by_hand(inputs, norm), rtol=0, atol=1e-12)
    library = F.batch_norm(inputs, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(norm(inputs), library, rtol=0, atol=1e-12)


def test_batch_norm_keeps_nothing_of_a_batch_and_is_the_same_in_evaluation():
    norm, inputs = filled(BatchStatisticsNorm(4)), normal(3, 4, 2, 2)
    before = norm(inputs)
    norm(100 + 50 * normal(3, 4, 2, 2, seed=1))
    assert torch.equal(norm(inputs), before)
    assert torch.equal(norm.eval()(inputs), before)
    assert set(norm.state_dict()) == {"weight", "bias"}


def test_batch_norm_of_one_number_a_channel_is_the_bias():
    norm = filled(BatchStatisticsNorm(4))
    outputs = norm(normal(1, 4, 1, 1))
    torch.testing.assert_close(outputs[0, :, 0, 0], norm.bias, rtol=0, atol=1e-15)


def test_batch_norm_begins_with_scale_one_and_shift_zero_and_goes_back_to_them():
    norm = BatchStatisticsNorm(3)
    for _ in range(2):
        assert norm.weight.tolist() == [1, 1, 1]
        assert norm.bias.tolist() == [0, 0, 0]
        filled(norm).reset_parameters()


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (1, 4, 3, 3), (2, 4, 1, 1)])
def test_with_channels_last_it_is_what_the_norm_says(name, shape):
    norm, inputs = filled(NORMS[name]()), 2 + 3 * normal(*shape)
    got = normalise_last(inputs.permute(0, 2, 3, 1), norm).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, by_hand(inputs, norm), rtol=0, atol=1e-12)
    torch.testing.assert_close(got, norm(inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_its_first_and_second_derivatives_are_those_of_finite_differences(name):
    norm = NORMS[name]().double()
    values = [normal(2, 2, 1, 4), 1 + normal(4, seed=1), normal(4, seed=2)]
    values = [value.requires_grad_() for value in values]

    def normalised(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        norm.weight, norm.bias = weight, bias
        return normalise_last(inputs, norm)

    for parameter in ("weight", "bias"):
        delattr(norm, parameter)
    assert torch.autograd.gradcheck(normalised, values)
    assert torch.autograd.gradgradcheck(normalised, values)


@pytest.mark.parametrize("wanted", ["inputs", "weight", "bias"])
def test_backward_through_gradients_of_many_tasks_batch_norms_is_that_of_each(wanted):
    inputs, weight = normal(3, 4, 2, 2, 2), 1 + normal(3, 2, seed=1)
    values = leaves({"inputs": inputs, "weight": weight, "bias": normal(3, 2, seed=2)})
    norm, goal = BatchStatisticsNorm(2).double(), normal(4, 2, 2, 2, seed=3)

    def steepness(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A number that depends on the gradient of a loss, as the loss after a step does."""

        def loss(values: dict[str, Tensor]) -> Tensor:
            affine = {"weight": values["weight"], "bias": values["bias"]}
            outputs = torch.func.functional_call(norm, affine, (values["inputs"],))
            return (outputs.sin() * goal).sum()

        gradient = grad(loss)({"inputs": inputs, "weight": weight, "bias": bias})
        return gradient[wanted].pow(3).sum()

    got = gradients(vmap(steepness)(*values.values()).sum(), values)
    loop = [steepness(*task) for task in zip(*values.values(), strict=True)]
    assert_same(got, gradients(sum(loop), values), to=1e-10)
    assert got["inputs"].abs().max() > 1e-2


def conv_net(**arguments: object) -> ConvNet:
    return ConvNet(SHAPE, **{"filters": 4, "blocks": 2, "groups": 2, **arguments})


def conv_learner(**arguments: object) -> Learner:
    network = conv_net(**arguments)
    return Learner(network, build_head("fixed-3"), network.features)


@pytest.mark.parametrize("feature_norm", [False, True])
@pytest.mark.parametrize("readout", ["flatten", "mean"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_network_gives_the_same_in_training_and_in_evaluation(norm, readout, feature_norm):
    network = filled(conv_net(norm=norm, readout=readout, feature_norm=feature_norm))
    inputs = normal(5, *SHAPE).requires_grad_()
    parameters = {"inputs": inputs, **dict(network.named_parameters())}
    found = []
    for training in (True, False):
        features = network.train(training)(inputs)
        assert features.shape == (5, network.features)
        goal = normal(5, network.features, seed=1)
        found.append((features, gradients((features * goal).sum(), parameters)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-10)
    assert_same(found[0][1], found[1][1], to=1e-10)
    for name, gradient in found[0][1].items():
        assert gradient.abs().max() > 1e-4, name


def test_a_lone_example_with_one_position_left_is_answered_in_both_modes():
    network = filled(ConvNet((1, 2, 2), filters=4, blocks=1, norm="batch", feature_norm=False))
    inputs = normal(1, 1, 2, 2)
    expected = network.norms[0].bias.clamp(min=0)[None]
    torch.testing.assert_close(network(inputs), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(network.eval()(inputs), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_meta_gradient_of_many_tasks_is_that_of_each(norm, downsample):
    learner = conv_learner(norm=norm, downsample=downsample)
    theta = leaves(theta_of(learner))
    tasks = [task_of(SHAPE, (2, 1, 2), (1, 2, 1), seed) for seed in range(2)]
    batch = vmap(lambda task: maml(learner, theta, 0.1, task, 2).loss)(stacked(tasks))
    loop = torch.stack([maml(learner, theta, 0.1, task, 2).loss for task in tasks])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-10)
    expected = gradients(loop.sum(), theta)
    assert_same(gradients(batch.sum(), theta), expected, to=1e-10)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_an_answer_depends_on_the_other_queries_with_batch_norm_alone(norm, downsample, training):
    learner = conv_learner(norm=norm, downsample=downsample)
    learner.network.train(training)
    task = task_of(SHAPE, (1, 2, 1), (2, 2, 2))
    theta = theta_of(learner)
    phi, *_ = adapt(learner, theta, task.support, task.classes, 0.1, 2)
    among = learner.logits(phi, task.query.inputs)[0]
    with_others = task.query.inputs.clone()
    with_others[1:] = normal(5, *SHAPE, seed=4)
    difference = (learner.logits(phi, with_others)[0] - among).abs().max()
    assert learner.transductive is (norm == "batch")
    assert (difference > 1e-3) if learner.transductive else (difference < 1e-12)


def test_no_network_but_one_with_batch_norm_is_transductive():
    network = Mlp(VECTOR)
    assert Learner(network, build_head("fixed-3"), network.features).transductive is False
    wrapped = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), BatchStatisticsNorm(4)), nn.Flatten())
    assert Learner(wrapped, build_head("fixed-3"), 4).transductive is True


def test_a_convolution_has_a_bias_but_before_batch_norm():
    with_bias, without = set(conv_net().state_dict()), set(conv_net(norm="batch").state_dict())
    assert with_bias - without == {"convs.0.bias", "convs.1.bias"}
    assert without == {
        f"{kind}.{block}.{name}"
        for kind, name in (("convs", "weight"), ("norms", "weight"), ("norms", "bias"))
        for block in (0, 1)
    }


def test_before_batch_norm_a_bias_would_have_no_influence():
    network = filled(conv_net(norm="batch"))
    inputs = normal(4, *SHAPE)
    before = network(inputs)
    for conv in network.convs:
        conv.bias = nn.Parameter(normal(4))
    torch.testing.assert_close(network(inputs), before, rtol=0, atol=1e-10)


def test_mean_readout_is_the_mean_over_the_positions():
    flat = filled(conv_net(feature_norm=False))
    mean = filled(conv_net(feature_norm=False, readout="mean"))
    assert (flat.features, mean.features) == (4 * 2 * 2, 4)
    inputs = normal(3, *SHAPE)
    expected = flat(inputs).reshape(3, 4, 4).mean(2)
    torch.testing.assert_close(mean(inputs), expected, rtol=0, atol=1e-12)


def test_groups_bind_the_filters_with_group_norm_alone():
    network = ConvNet(SHAPE, filters=5, blocks=1, groups=2, norm="batch")
    assert network(torch.rand(2, *SHAPE)).shape == (2, network.features)
    with pytest.raises(ValueError, match=r"5.*2"):
        ConvNet(SHAPE, filters=5, blocks=1, groups=2)


@pytest.mark.parametrize(
    ("argument", "given", "choices"),
    [
        ("norm", "layer", '"group" or "batch"'),
        ("norm", "", '"group" or "batch"'),
        ("readout", "max", '"flatten" or "mean"'),
        ("downsample", "none", '"stride" or "pool"'),
    ],
)
def test_what_is_no_choice_is_refused_with_the_choices(argument, given, choices):
    with pytest.raises(ValueError, match=f"^no {argument} {given!r}: use {choices}$"):
        build_network(SHAPE, "conv", **{argument: given})
