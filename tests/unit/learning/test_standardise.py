import pytest
import torch
from torch import nn

from app.learning.heads import build_head
from app.learning.learner import Learner
from app.learning.networks import Mlp
from app.learning.standardise import Standardise


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 2)])
def test_each_place_of_the_first_axis_has_its_own_mean_and_scale(shape):
    inputs = torch.randn(6, *shape)
    mean, scale = [1.0, -2.0, 50.0], [2.0, 0.5, 10.0]
    standardised = Standardise(mean, scale, len(shape))(inputs)
    assert standardised.shape == inputs.shape
    for place in range(3):
        expected = (inputs[:, place] - mean[place]) / scale[place]
        torch.testing.assert_close(standardised[:, place], expected)


def test_a_learner_gives_its_network_standardised_inputs():
    network = Mlp((2, 4), hidden=(5,))
    plain = Learner(network, build_head("shared-row"), 5)
    learner = Learner(
        network, build_head("shared-row"), 5, standardise=Standardise([1.0, 2.0], [3.0, 4.0], 2)
    )
    theta = learner.initial(0)
    assert theta.keys() == plain.initial(0).keys(), "the statistics are not learned"
    inputs = torch.randn(3, 2, 4)
    by_hand = (inputs - torch.tensor([[1.0], [2.0]])) / torch.tensor([[3.0], [4.0]])
    torch.testing.assert_close(learner.features(theta, inputs), plain.features(theta, by_hand))


def test_what_is_no_parameter_moves_to_a_device_and_the_rest_stays():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))
    network[1].register_buffer("window", torch.ones(2))
    learner = Learner(
        network, build_head("shared-row"), 4, standardise=Standardise([0.0], [1.0], 2)
    )
    learner.to(torch.device("meta"))
    assert network[1].window.is_meta
    assert learner.standardise.mean.is_meta
    assert not network[1].weight.is_meta, "first values are drawn on the CPU"
    assert "1.window" in network.state_dict()
