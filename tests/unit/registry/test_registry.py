import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from app.errors import ModelNotFound, RegistryError
from app.learning.heads import Params
from app.registry import Card, InputSpec, Registry
from app.registry import registry as module
from app.registry.card import Calibration
from app.registry.registry import CARD, THETA, build_learner, encode_theta
from tests.fakes import make_card
from tests.unit.learning.own_networks import Good

SPEC = InputSpec(kind="values", shape=(4,))
NETWORK = {"name": "mlp", "hidden": [8]}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


def parameters(seed: int = 0) -> tuple[Params, Params]:
    theta = build_learner(SPEC, NETWORK, "shared-row").initial(seed)
    return theta, {name: torch.full((3,), 0.1 + seed) for name in theta}


def model(name: str = "omniglot", version: int = 1, **changes) -> tuple[Card, bytes]:
    """A card and the content of the θ that it speaks of."""
    theta, alpha = parameters(version)
    content = changes.pop("content", None) or encode_theta(theta, alpha)
    facts = {
        "alpha": {name: tuple(value.tolist()) for name, value in alpha.items()},
        "input": SPEC,
        "network": NETWORK,
        "head": "shared-row",
        "theta_sha256": hashlib.sha256(content).hexdigest(),
        "theta_bytes": len(content),
    }
    return make_card(name, version, **{**facts, **changes}), content


def assert_equal(one: Params, other: Params) -> None:
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_saved_is_listed_and_loaded(registry):
    card, content = model("omniglot", 2)
    folder = registry.save(card, content)
    assert folder == registry.root / "omniglot" / "2"
    assert sorted(path.name for path in folder.iterdir()) == [CARD, THETA]
    assert registry.names() == ["omniglot"]
    assert registry.versions("omniglot") == [2]
    assert registry.card("omniglot", 2) == registry.latest("omniglot") == card

    loaded = registry.load("omniglot", 2)
    theta, alpha = parameters(2)
    assert loaded.card == card
    assert_equal(loaded.theta, theta)
    assert_equal(loaded.alpha, alpha)
    inputs = torch.rand(3, 4)
    learner = build_learner(SPEC, NETWORK, "shared-row")
    phi = learner.start(theta, 5)
    assert torch.equal(
        loaded.learner.logits(loaded.learner.start(loaded.theta, 5), inputs),
        learner.logits(phi, inputs),
    )


def test_versions_ascend_as_numbers_and_the_newest_is_the_latest(registry):
    for version in (10, 9, 1):
        registry.save(*model("omniglot", version))
    registry.save(*model("a-model_2", 1))
    assert registry.names() == ["a-model_2", "omniglot"]
    assert registry.versions("omniglot") == [1, 9, 10]
    assert registry.latest("omniglot").version == 10


def test_an_empty_or_missing_root_has_no_models(registry):
    assert registry.names() == []
    registry.root.mkdir()
    assert registry.names() == []
    assert registry.versions("omniglot") == []
    with pytest.raises(ModelNotFound, match=r"no model 'omniglot'.*Models here: none"):
        registry.latest("omniglot")


def test_unknown_names_and_versions_are_not_found(registry):
    registry.save(*model("omniglot", 1))
    registry.save(*model("faces", 1))
    with pytest.raises(ModelNotFound, match=r"'birds'.*Models here: faces, omniglot"):
        registry.latest("birds")
    for name, version in (("omniglot", 2), ("omniglot", 0), ("birds", 1)):
        for ask in (registry.card, registry.load):
            with pytest.raises(ModelNotFound, match=f"version {version} of a model '{name}'"):
                ask(name, version)


def test_a_folder_without_a_card_is_no_version(registry):
    registry.save(*model("omniglot", 1))
    half = registry.root / "omniglot" / "2"
    half.mkdir()
    (half / THETA).write_bytes(b"half written")
    (registry.root / "faces" / "1").mkdir(parents=True)
    (registry.root / "README.md").write_text("not a model")
    (registry.root / "omniglot" / "recipe.toml").write_text("not a version")
    assert registry.names() == ["omniglot"]
    assert registry.versions("omniglot") == [1]
    assert [registry.holds("omniglot", version) for version in (1, 2, 3)] == [True, False, False]
    assert not registry.holds("../omniglot", 1)
    assert registry.latest("omniglot").version == 1
    with pytest.raises(ModelNotFound):
        registry.load("omniglot", 2)


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("no")],
    ids=["folder", "pipe", "loop", "dangling"],
)
def test_what_is_no_file_is_no_card(registry, make):
    registry.save(*model("omniglot", 1))
    odd = registry.root / "omniglot" / "2"
    odd.mkdir()
    make(odd / "card.json")
    assert registry.versions("omniglot") == [1]
    with pytest.raises(ModelNotFound):
        registry.card("omniglot", 2)


@pytest.mark.parametrize("folder", ["0", "01", "-1", "1.0", "v1", "latest", "1234567890"])
def test_only_plain_numbers_are_versions(registry, folder):
    registry.save(*model("omniglot", 3))
    saved = registry.root / "omniglot"
    (saved / "3").rename(saved / folder)
    assert registry.versions("omniglot") == []


@pytest.mark.parametrize(
    "name",
    ["../outside", "omniglot/../../outside", "..", ".", "", "/", "Outside", "outside\n", "a b"],
)
def test_names_that_lead_elsewhere_are_not_found(registry, tmp_path, name):
    registry.save(*model("omniglot", 1))
    Registry(tmp_path).save(*model("outside", 1))
    assert (registry.root / "../outside/1" / CARD).is_file()
    assert registry.versions(name) == []
    for ask in (
        lambda: registry.latest(name),
        lambda: registry.card(name, 1),
        lambda: registry.load(name, 1),
    ):
        with pytest.raises(ModelNotFound):
            ask()


def test_an_absolute_path_is_not_found(registry, tmp_path):
    Registry(tmp_path).save(*model("outside", 1))
    with pytest.raises(ModelNotFound):
        registry.load(str(tmp_path / "outside"), 1)


@pytest.mark.parametrize("place", [3, -1])
def test_one_wrong_bit_of_theta_is_refused_with_both_digests(registry, place):
    card, content = model()
    path = registry.save(card, content) / THETA
    damaged = bytearray(content)
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(RegistryError) as caught:
        registry.load("omniglot", 1)
    for part in (str(path), card.theta_sha256, hashlib.sha256(damaged).hexdigest()):
        assert part in str(caught.value)


def test_a_missing_theta_is_named(registry):
    path = registry.save(*model()) / THETA
    path.unlink()
    with pytest.raises(RegistryError, match=str(path)):
        registry.load("omniglot", 1)


def without(key: str):
    return lambda card: json.dumps({k: v for k, v in card.items() if k != key}).encode()


def with_more(**more):
    return lambda card: json.dumps({**card, **more}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda card: b"",
        lambda card: json.dumps(card).encode()[:-20],
        lambda card: b"\xff\xfe",
        lambda card: b"[]",
        without("theta_sha256"),
        with_more(unknown=1),
        with_more(steps=0),
        with_more(name="../omniglot"),
        with_more(name="faces"),
        with_more(version=2),
    ],
)
def test_a_broken_card_is_refused_by_its_path(registry, damage):
    path = registry.save(*model()) / CARD
    path.write_bytes(damage(json.loads(path.read_bytes())))
    for ask in (
        lambda: registry.card("omniglot", 1),
        lambda: registry.latest("omniglot"),
        lambda: registry.load("omniglot", 1),
    ):
        with pytest.raises(RegistryError, match=str(path)):
            ask()


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"name": "mlp", "hidden": [9]}},
        {"network": {"name": "mlp", "hidden": [8, 8]}},
        {"network": {"name": "resnet"}},
        {"network": {"name": "mlp", "depth": 2}},
        {"network": {"hidden": [8]}},
        {"head": "fixed-5"},
        {"head": "prototype"},
        {"content": encode_theta(parameters()[0], {})},
        {"content": encode_theta({}, parameters()[1])},
        {"content": b"no safetensors"},
    ],
)
def test_a_theta_that_does_not_fit_its_card_is_refused_by_its_path(registry, changes):
    path = registry.save(*model(**changes)) / THETA
    with pytest.raises(RegistryError, match=str(path)):
        registry.load("omniglot", 1)


OWN = "tests.unit.learning.own_networks:"


def own_model(network: dict, **changes) -> tuple[Card, bytes]:
    spec = InputSpec(kind="values", shape=(8, 16), **changes)
    theta = build_learner(spec, {"name": OWN + "Good", "filters": 2}, "shared-row").initial(0)
    content = encode_theta(theta, {name: torch.tensor([0.1]) for name in theta})
    alpha = dict.fromkeys(theta, (0.1,))
    return model(content=content, input=spec, network=network, alpha=alpha)


def test_a_network_of_ones_own_is_imported_when_its_model_is_loaded(registry):
    # The card holds the default of `widths`, a tuple, as a list.
    registry.save(*own_model({"name": OWN + "Good", "filters": 2, "widths": [3, 5]}))
    loaded = registry.load("omniglot", 1)
    assert isinstance(loaded.learner.network, Good)
    assert not loaded.learner.network.training
    plain = Good((8, 16), filters=2)
    plain.load_state_dict(
        {
            name.removeprefix("network."): v
            for name, v in loaded.theta.items()
            if "head" not in name
        },
        strict=False,  # the buffer is none of θ
    )
    inputs = torch.randn(3, 8, 16)
    torch.testing.assert_close(loaded.learner.features(loaded.theta, inputs), plain(inputs))


def test_the_statistics_of_the_inputs_come_back_as_they_were(registry):
    mean, scale = tuple((torch.arange(8) / 3).tolist()), tuple((torch.arange(8) / 7 + 1).tolist())
    registry.save(*own_model({"name": OWN + "Good", "filters": 2}, mean=mean, scale=scale))
    loaded = registry.load("omniglot", 1)
    assert (loaded.card.input.mean, loaded.card.input.scale) == (mean, scale)
    standardise = loaded.learner.standardise
    assert standardise.mean.flatten().tolist() == list(mean)
    assert standardise.scale.flatten().tolist() == pytest.approx(list(scale))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"name": "gone.networks:Good"}, "there is no module 'gone' to import: .*PYTHONPATH"),
        ({"name": OWN + "Better"}, "own_networks.* has no 'Better'"),
        ({"name": OWN + "no_factory"}, "cannot be called"),
        ({"name": OWN + "no_module"}, "it returned int, no nn.Module"),
        ({"name": OWN + "not_flat"}, r"floats \(3, features\) are needed"),
        ({"name": OWN + "compared_with_the_first"}, r"2 \(Layer\) answers an input differently al"),
        (
            {"name": OWN + "Good", "filters": 4},
            "does not hold the parameters of the card's network",
        ),
    ],
)
def test_a_network_of_ones_own_that_is_not_as_it_was_is_refused(registry, network, message):
    path = registry.save(*own_model(network)) / THETA
    with pytest.raises(RegistryError, match=message) as caught:
        registry.load("omniglot", 1)
    assert str(path) in str(caught.value)


def test_a_model_may_have_a_rate_for_the_head_alone(registry):
    theta, alpha = parameters()
    head = {name: value for name, value in alpha.items() if name.startswith("head.")}
    listed = {name: tuple(value.tolist()) for name, value in head.items()}
    registry.save(*model(content=encode_theta(theta, head), alpha=listed))
    assert_equal(registry.load("omniglot", 1).alpha, head)


def test_a_model_may_have_a_rate_for_every_number_of_theta(registry):
    theta, _ = parameters()
    alpha = {name: torch.rand(1, *value.shape) for name, value in theta.items()}
    means = {name: (value.mean().item(),) for name, value in alpha.items()}
    registry.save(*model(content=encode_theta(theta, alpha), alpha=means))
    assert_equal(registry.load("omniglot", 1).alpha, alpha)


@pytest.mark.parametrize("change", ["fewer in the file", "fewer on the card", "of no parameter"])
def test_rates_that_are_not_those_of_the_card_are_refused(registry, change):
    theta, alpha = parameters()
    listed = {name: tuple(value.tolist()) for name, value in alpha.items()}
    if change == "of no parameter":
        alpha["head.scale"] = torch.ones(3)
        listed["head.scale"] = (1.0, 1.0, 1.0)
    else:
        del (alpha if change == "fewer in the file" else listed)["head.bias"]
    path = registry.save(*model(content=encode_theta(theta, alpha), alpha=listed)) / THETA
    with pytest.raises(RegistryError, match=rf"{path} does not hold the parameters"):
        registry.load("omniglot", 1)


def test_a_head_of_regression_is_loaded(registry):
    theta = build_learner(SPEC, NETWORK, "linear-1").initial(0)
    content = encode_theta(theta, {name: torch.tensor([0.1]) for name in theta})
    alpha = dict.fromkeys(theta, (0.1,))
    registry.save(*model(content=content, head="linear-1", task="regression", alpha=alpha))
    assert registry.load("omniglot", 1).theta["head.weight"].shape == (1, 8)


def test_an_existing_version_is_never_overwritten(registry):
    card, content = model()
    folder = registry.save(card, content)
    other = encode_theta(*parameters(9))
    with pytest.raises(RegistryError, match=f"{folder} exists already"):
        registry.save(*model(content=other))
    assert (folder / THETA).read_bytes() == content
    assert registry.card("omniglot", 1) == card


def test_a_card_can_be_replaced_where_theta_stays_the_same(registry):
    card, content = model()
    registry.save(card, content)
    assert registry.card("omniglot", 1) == card
    calibration = Calibration(temperature=(0.1, 0.2, 0.3), outlier=(1, 2, 3, 4, 5, 6))
    registry.rewrite(card.model_copy(update={"calibration": calibration}))
    assert registry.load("omniglot", 1).card == card.model_copy(update={"calibration": calibration})
    with pytest.raises(RegistryError, match="another θ"):
        registry.rewrite(card.model_copy(update={"theta_sha256": "0" * 64}))
    with pytest.raises(ModelNotFound):
        registry.rewrite(card.model_copy(update={"version": 2}))


def test_a_save_that_was_cut_off_leaves_no_version_and_can_be_done_again(registry, monkeypatch):
    card, content = model()
    write = module.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == CARD:
            raise OSError(28, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", full)
        with pytest.raises(RegistryError, match=r"omniglot/1 cannot be written.*No space left"):
            registry.save(card, content)
    assert registry.names() == []
    registry.save(card, content)
    assert registry.load("omniglot", 1).card == card


def test_the_same_tensors_give_the_same_bytes():
    theta, alpha = parameters()
    content = encode_theta(theta, alpha)
    turned = {name: value.t().contiguous().t() for name, value in theta.items() if value.ndim == 2}
    assert not turned["network.layers.0.weight"].is_contiguous()
    again = dict(reversed({**theta, **turned}.items()))
    leaves = {name: value.clone().requires_grad_() for name, value in again.items()}
    assert encode_theta(leaves, dict(reversed(alpha.items()))) == content
    assert encode_theta(parameters(1)[0], alpha) != content
    assert encode_theta(theta, parameters(1)[1]) != content
