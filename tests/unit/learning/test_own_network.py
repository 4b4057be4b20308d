import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from app.learning.conduct import check_second_derivative
from app.learning.networks import build_network, network_arguments
from app.learning.own_network import OwnNetwork, is_own, own_arguments
from tests.unit.learning.own_networks import SHAPE, Good

ZOO = "tests.unit.learning.own_networks:"


def own(name: str, **arguments) -> OwnNetwork:
    return OwnNetwork(SHAPE, ZOO + name, **arguments)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package `somebodys` that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "somebodys").mkdir()

    def write(name: str, text: str) -> None:
        (tmp_path / "somebodys" / f"{name}.py").write_text(textwrap.dedent(text))

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "somebodys"]:
        del sys.modules[name]


def test_a_name_with_a_colon_is_a_factory():
    assert is_own("package.module:factory")
    assert not is_own("conv")


def test_a_factory_is_called_with_the_shape_and_the_arguments():
    made = own("Good", filters=2)
    assert isinstance(made.network, Good)
    assert [tuple(conv.weight.shape) for conv in made.network.convs] == [(2, 8, 3), (2, 8, 5)]


def test_the_features_are_counted_by_a_dry_run():
    assert own("Good").features == 2 * 4 * 16
    assert own("lazy").features == 6
    assert own("no_parameters").features == 128


def test_what_has_no_gradient_is_not_judged_by_its_rounding_errors():
    made = own("normalised")
    check_second_derivative(made.network, SHAPE)


def test_a_factory_may_lie_within_another_object():
    assert isinstance(own("Holder.factory").network, Good)


def test_a_network_is_made_in_training_mode_with_the_first_values_of_its_seed():
    made = own("Good")
    assert made.network.training
    one, same, other = (dict(made.make(seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["shift"], other["shift"])
    assert not torch.equal(one["convs.1.weight"], other["convs.1.weight"])
    assert one["convs.0.weight"].abs().max() == 0, "as the network itself would have it"


def test_making_one_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    own("Good")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_card_names_the_arguments_with_their_defaults():
    name = ZOO + "Good"
    assert own_arguments(name, {"filters": 2}) == {"filters": 2, "widths": [3, 5]}
    assert network_arguments(name, filters=2) == {"name": name, "filters": 2, "widths": [3, 5]}


def test_a_default_that_a_card_has_made_a_list_is_given_as_it_was():
    arguments = own_arguments(ZOO + "Good", {})
    assert arguments["widths"] == [3, 5], "of which Good cannot be made"
    assert own("Good", **arguments).features == own("Good").features


def test_defaults_that_no_card_can_hold_are_left_out(package):
    package(
        "odd",
        """
        from torch import nn

        def network(input_shape, act=nn.ReLU, size=4, *, scale=float("nan"), **more):
            return nn.Sequential(nn.Flatten(), nn.Linear(128, size), act())
        """,
    )
    assert own_arguments("somebodys.odd:network", {"kind": "x"}) == {"size": 4, "kind": "x"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "somebodys.missing:network",
            "there is no module 'somebodys.missing' to import: .*PYTHONP",
        ),
        ("nobodys.networks:network", "there is no module 'nobodys' to import"),
        ("somebodys.needy:network", "there is no module 'not_installed' to import"),
        ("somebodys.broken:network", "importing 'somebodys.broken' failed: ZeroDivisionError"),
        ("somebodys.unfinished:network", "importing 'somebodys.unfinished' failed: SyntaxError"),
        ("somebodys/broken.py:network", "as Python imports it, not its file: package.module:fac"),
        ("somebodys.broken.py:network", "as Python imports it, not its file"),
        (ZOO + "nothing", r"module '.*own_networks' \(.*own_networks.py\) has no 'nothing'"),
        (ZOO, "has no ''"),
        (ZOO + "no_factory", "'no_factory' in module .* is of type int and cannot be called"),
    ],
)
def test_what_is_no_factory_is_refused_by_its_name(package, name, message):
    package("needy", "import not_installed")
    package("broken", "1 / 0")
    package("unfinished", "def network(")
    with pytest.raises(ValueError, match=message) as caught:
        OwnNetwork(SHAPE, name)
    assert str(caught.value).startswith(f"network '{name}': ")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("no_module", {}, "it returned int, no nn.Module"),
        ("failing", {"depth": 4}, r"the call with \(8, 16\) and {'depth': 4} failed: KeyError: 4"),
        ("failing", {}, "failed: TypeError: .*'depth'"),
        ("Good", {"depth": 4}, "failed: TypeError: .*'depth'"),
        ("not_flat", {}, r"inputs \(3, 8, 16\) it returns torch.float32 of shape \(3, 8, 14\)"),
        ("two_tensors", {}, r"it returns tuple, where 32-bit floats \(3, features\) are needed"),
        ("whole_numbers", {}, "it returns torch.int64"),
        ("double", {}, "it returns torch.float64 .*, where 32-bit floats"),
        ("another_size", {}, r"inputs \(3, 8, 16\) fail: RuntimeError: .*shapes"),
    ],
)
def test_what_makes_no_features_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        own(name, **arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_norm", "2.0: batch norm .* use nn.GroupNorm"),
        ("running_instance_norm", "0: .*leave track_running_stats False"),
        ("dropout", "2: dropout draws at random, .* set p = 0"),
        ("recurrent", "2: .*use the cell .*GRUCell"),
        ("double_inside", "1.weight, 1.bias: of torch.float64, but"),
        ("frozen", "1.weight: requires no gradient"),
        ("only_serving", r"2 \(Layer\) fails in training mode on inputs \(2, 8, 16\): RuntimeErr"),
        ("only_several", r"2 \(Layer\) fails in evaluation mode on inputs \(1, 8, 16\): Runtime"),
        ("own_dropout", r"2 \(Layer\) answers the same input differently the second time"),
        ("counting", r"3 \(Layer\) answers the same input differently the second time"),
        ("running_mean", r"the buffer 2.mean changes in the forward pass"),
        ("in_place", "the forward pass changes its input in place"),
        ("centred_over_the_batch", r"2.0 \(Layer\) answers an input differently alone and among"),
        ("compared_with_the_first", r"2 \(Layer\) answers an input differently alone and among"),
        ("Unnamed", "Unnamed answers an input differently alone and among others: .*GroupNorm"),
        ("by_values", r"2 \(Layer\) cannot run under torch.func.vmap and grad, .*no `if`"),
        ("written_in_place", r"2 \(Layer\) cannot run under torch.func.vmap and grad, .*in place"),
        ("wrong_rule", "torch.func.vmap over tasks gives another gradient than a task alone"),
        ("by_mode", r"2 \(Layer\) answers differently in training mode"),
        ("unit_length", "for an input of zeros, .* are not finite"),
        ("root", "for an input of zeros, .* are not finite"),
        ("random_buffer", "the buffer projection is drawn at random when the network is made"),
        ("random_attribute", "something that is no parameter is drawn at random"),
        ("made_once", "the network itself is the same object in every network that is made"),
        ("around_a_backbone", "the module '0' is the same object in every network that is made"),
        ("of_numpy", "made again with the same seed it has other parameters"),
    ],
)
def test_what_cannot_be_served_query_by_query_is_refused_by_its_module(name, message):
    with pytest.raises(ValueError, match=f"^network '{ZOO}{name}': {message}") as caught:
        own(name)
    assert "\n" not in str(caught.value)


def test_what_has_no_parameters_may_be_part_of_several_networks():
    assert own("with_a_common_activation").features == 8


def test_a_transductive_network_may_depend_on_its_batch():
    assert OwnNetwork((1, 6, 6), ZOO + "transductive").features == 64


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_has_no_second_derivative_is_said_so():
    check_second_derivative(own("Good").network, SHAPE)
    check_second_derivative(own("no_parameters").network, SHAPE)
    attention = own("once_differentiable").network
    with pytest.raises(ValueError, match=r"cannot be differentiated twice .*first-order-maml"):
        check_second_derivative(attention, SHAPE)


def test_threads_that_make_it_at_the_same_time_get_the_same_numbers():
    made = own("Good")
    with ThreadPoolExecutor(4) as pool:
        networks = list(pool.map(made.make, [0] * 100))
    for network in networks:
        for ours, theirs in zip(made.network.parameters(), network.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_trying_a_network_out_leaves_it_as_it_was_made():
    made = own("Good")
    fresh = made.make(0)
    for ours, theirs in zip(
        made.network.state_dict().values(), fresh.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert not any(module._forward_hooks for module in made.network.modules())


def test_an_unknown_name_tells_of_factories():
    with pytest.raises(ValueError, match='or of your own one as "package'):
        build_network(SHAPE, "resnet")
