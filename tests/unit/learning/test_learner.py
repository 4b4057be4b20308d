import pytest
import torch
from torch import nn

from app.learning.heads import build_head
from app.learning.learner import Learner
from app.learning.networks import ConvNet
from tests.unit.learning.common import PICTURE, assert_same, conv_learner, mlp_learner, theta_of


def test_the_same_seed_gives_the_same_theta_whatever_the_global_generator_does():
    torch.manual_seed(1)
    first = conv_learner().initial(7)
    torch.manual_seed(2)
    learner = conv_learner()
    learner.initial(3)
    assert_same(learner.initial(7), first, to=0)


def test_other_seeds_give_another_theta():
    first, second = conv_learner().initial(7), conv_learner().initial(8)
    for name in ("network.convs.0.weight", "network.convs.1.weight", "head.weight"):
        assert not torch.equal(first[name], second[name])


def test_initial_leaves_the_global_generator_alone():
    learner = conv_learner()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learner.initial(7)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_theta_stays_as_it_is_when_the_next_is_made():
    learner = conv_learner()
    first = learner.initial(7)
    kept = {name: value.clone() for name, value in first.items()}
    learner.initial(8)
    assert_same(first, kept, to=0)


def test_answers_come_from_the_parameters_passed_in_alone():
    learner, theta = mlp_learner("fixed-3"), theta_of(mlp_learner("fixed-3"))
    inputs = torch.rand(4, 5, dtype=torch.float64)
    hidden = (inputs @ theta["network.layers.0.weight"].T + theta["network.layers.0.bias"]).relu()
    hidden = (hidden @ theta["network.layers.1.weight"].T + theta["network.layers.1.bias"]).relu()
    expected = hidden @ theta["head.weight"].T + theta["head.bias"]
    expected -= expected.mean(1, keepdim=True)
    learner.initial(99)
    torch.testing.assert_close(learner.logits(theta, inputs), expected, rtol=0, atol=1e-12)


class Tied(nn.Module):
    """x ↦ x W W, with one W in two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(self.first(inputs))


class Buffered(Tied):
    """The same, where one of the places is a buffer's."""

    def __init__(self):
        super().__init__()
        del self.second
        self.register_buffer("again", self.first.weight)

    def forward(self, inputs):
        return self.first(inputs) @ self.again.T


@pytest.mark.parametrize("make", [Tied, Buffered])
def test_a_parameter_that_stands_in_two_places_is_the_given_one_in_both(make):
    network = make()
    learner = Learner(network, build_head("fixed-2"), 5)
    theta, inputs = learner.initial(1), torch.rand(4, 5)
    network.first.requires_grad_(False).weight.zero_()
    weight = theta["network.first.weight"]
    torch.testing.assert_close(learner.features(theta, inputs), inputs @ weight.T @ weight.T)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), "1"),
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(36, 8), nn.BatchNorm1d(8))), "1.1"),
    ],
)
def test_batch_norm_is_refused_by_its_name(network, name):
    with pytest.raises(ValueError, match=rf"^{name}: batch norm .* use nn.GroupNorm"):
        Learner(network, build_head("shared-row"), 8)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.InstanceNorm2d(1, track_running_stats=True), "^InstanceNorm2d: .*track_running_stats"),
        (nn.Sequential(nn.Dropout2d(0.2), nn.AlphaDropout(0.1)), "^0, 1: dropout draws at random"),
        (nn.Sequential(nn.Identity(), nn.LSTM(4, 4)), "^1: .*nn.LSTMCell"),
        (nn.LazyBatchNorm2d(), "^LazyBatchNorm2d: batch norm"),
    ],
)
def test_what_would_train_otherwise_than_it_serves_is_refused_by_its_name(network, message):
    with pytest.raises(ValueError, match=message):
        Learner(network, build_head("shared-row"), 8)


def test_norms_over_one_example_and_dropout_of_nothing_are_welcome():
    network = nn.Sequential(
        nn.InstanceNorm2d(1), nn.GroupNorm(1, 1), nn.LayerNorm(6), nn.Dropout(0.0), nn.Flatten()
    )
    assert Learner(network, build_head("shared-row"), 36).network is network


def test_a_network_that_makes_itself_has_the_first_values_that_it_makes():
    def make(seed: int) -> nn.Module:
        network = nn.Linear(4, 2)
        nn.init.constant_(network.weight, seed)
        return network

    learner = Learner(make(0), build_head("shared-row"), 2, make=make)
    assert learner.initial(7)["network.weight"].unique().tolist() == [7]
    assert learner.network.weight.unique().tolist() == [0]


def test_papers_network_with_a_head_of_five_has_as_many_parameters_as_by_hand():
    network = ConvNet((1, 28, 28))
    learner = Learner(network, build_head("fixed-5"), network.features)
    convolutions = (1 * 9 + 1) * 64 + 3 * (64 * 9 + 1) * 64
    norms = 4 * 2 * 64
    head = (64 * 2 * 2 + 1) * 5
    theta = learner.initial(0)
    assert sum(value.numel() for value in theta.values()) == convolutions + norms + head
    assert {name.partition(".")[0] for name in theta} == {"network", "head"}


def test_buffers_of_a_network_are_no_parameters():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((36,), 0.5))
            self.linear = nn.Linear(36, 4)

        def forward(self, inputs):
            return self.linear(inputs.flatten(1) - self.mean)

    learner = Learner(Centred(), build_head("shared-row"), 4)
    theta = learner.initial(0)
    assert set(theta) == {
        "network.linear.weight",
        "network.linear.bias",
        "head.weight",
        "head.bias",
    }
    inputs = torch.rand(3, *PICTURE)
    expected = (inputs.flatten(1) - 0.5) @ theta["network.linear.weight"].T
    torch.testing.assert_close(
        learner.features(theta, inputs), expected + theta["network.linear.bias"]
    )
