import pytest
import torch
from torch import nn

from app.learning.networks import ConvNet, Mlp, build_network


def filled(network: nn.Module) -> nn.Module:
    """With random affine parameters of the norms too, so that their place matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def pictures(count: int, *shape: int) -> torch.Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "network",
    [
        ConvNet((3, 12, 12), filters=16, blocks=3),
        ConvNet((3, 12, 12), filters=16, blocks=3, downsample="pool", feature_norm=False),
        Mlp((3, 12, 12), hidden=(20, 10)),
    ],
    ids=["stride", "pool", "mlp"],
)
def test_an_example_is_answered_the_same_alone_and_among_others(network):
    network, inputs = filled(network).double(), pictures(7, 3, 12, 12).double()
    inputs[1::2] *= 1e6
    together = network(inputs)
    assert together.shape == (7, network.features)
    for index in range(7):
        alone = network(inputs[index : index + 1])[0]
        torch.testing.assert_close(alone, together[index], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("downsample", "size", "blocks", "features"),
    [
        ("stride", 28, 4, 8 * 2 * 2),  # 28 14 7 4 2
        ("pool", 28, 4, 8 * 1 * 1),  # 28 14 7 3 1
        ("stride", 84, 4, 8 * 6 * 6),  # 84 42 21 11 6
        ("pool", 84, 4, 8 * 5 * 5),  # 84 42 21 10 5
        ("stride", 9, 1, 8 * 5 * 5),
        ("pool", 9, 1, 8 * 4 * 4),
    ],
)
def test_blocks_halve_the_picture(downsample, size, blocks, features):
    network = ConvNet((1, size, size), filters=8, blocks=blocks, downsample=downsample)
    assert network.features == features
    assert network(pictures(2, 1, size, size)).shape == (2, features)


def test_pictures_need_not_be_square():
    network = ConvNet((2, 8, 20), filters=8, blocks=2, downsample="pool")
    assert network.features == 8 * 2 * 5
    assert network(pictures(3, 2, 8, 20)).shape == (3, 80)


def test_papers_network_has_as_many_parameters_as_by_hand():
    network = ConvNet((1, 28, 28), filters=64, blocks=4)
    first, others, norms = 64 * (1 * 3 * 3) + 64, 64 * (64 * 3 * 3) + 64, 4 * (64 + 64)
    assert first + 3 * others + norms == 111_936
    assert sum(parameter.numel() for parameter in network.parameters()) == 111_936


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_every_block_may_have_its_own_filters_and_stride(downsample):
    network = ConvNet(
        (1, 9, 8), filters=[8, 16, 24], strides=[1, 2, 2], blocks=3, downsample=downsample
    )
    assert [tuple(conv.weight.shape[:2]) for conv in network.convs] == [(8, 1), (16, 8), (24, 16)]
    left = (3, 2) if downsample == "stride" else (2, 2)
    assert network.features == 24 * left[0] * left[1]
    inputs = torch.rand(4, 1, 9, 8)
    served = network.eval()(inputs)
    assert served.shape == (4, network.features)
    torch.testing.assert_close(network.train()(inputs), served)


def test_conv_is_convolution_group_norm_relu_and_then_the_norm_of_the_features():
    network = filled(ConvNet((1, 4, 4), filters=4, blocks=1, groups=2))
    inputs = pictures(2, 1, 4, 4)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4))
    layers.load_state_dict(
        dict(zip(layers.state_dict(), network.state_dict().values(), strict=True))
    )
    hidden = layers(inputs).clamp(min=0).reshape(2, 16)
    centred = hidden - hidden.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(network(inputs), expected)


def test_too_many_blocks_are_refused():
    ConvNet((1, 8, 8), filters=8, blocks=3, downsample="pool")
    with pytest.raises(ValueError, match=r"4 blocks halve a \(1, 8, 8\) input to nothing"):
        ConvNet((1, 8, 8), filters=8, blocks=4, downsample="pool")


def test_networks_are_built_by_name_with_their_arguments():
    conv = build_network([1, 28, 28], "conv", filters=16, blocks=2)
    assert isinstance(conv, ConvNet)
    assert conv.features == 16 * 7 * 7
    mlp = build_network([4], "mlp", hidden=[3])
    assert isinstance(mlp, Mlp)
    assert mlp(pictures(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet", {}, "no network 'resnet': use one of conv, mlp"),
        ("conv", {"depth": 4}, "network 'conv': .*'depth'"),
        ("mlp", {"hidden": 64}, "network 'mlp': "),
        ("conv", {"filters": 30}, r"30.*8"),
        ("conv", {"filters": [8, 8, 8]}, "each of 4 blocks"),
        ("conv", {"strides": [2, 2, 2, 3]}, "1 or 2"),
        ("conv", {"downsample": "pooling"}, '\'pooling\': use "stride" or "pool"'),
        ("conv", {"groups": 0}, "at least 1"),
        ("conv", {"filters": -8}, "at least 1"),
        ("conv", {"blocks": -1}, "at least 1"),
    ],
)
def test_what_a_network_does_not_take_is_refused_with_the_choices(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_network((1, 28, 28), name, **arguments)
