"""Runs that begin with another version's θ."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.data.omniglot import INPUT
from app.errors import CheckpointError, RecipeError, RegistryError
from app.registry import LoadedModel, Registry
from tests.unit.training.helpers import (
    FIXED,
    PRETRAINING,
    SINUSOID,
    TEXT,
    Killed,
    Recorder,
    kill,
    recipe,
    run,
    text,
    with_stage,
)


def beginning_with(initial: str, *changes: tuple[str, str], base: str = TEXT):
    """The tiny recipe as version 2, which begins with another version."""
    content = text(("version = 1", "version = 2"), *changes, base=base)
    return recipe(base=f'initial = "{initial}"\n{content}')


@pytest.fixture
def first(tmp_path: Path, whole_run: Path) -> LoadedModel:
    """Version 1, in the registry that version 2 will come to."""
    shutil.copytree(whole_run / "models", tmp_path / "models")
    return Registry(tmp_path / "models").load("tiny", 1)


def begin(tiny, folder: Path) -> dict[str, torch.Tensor]:
    """The parameters at iteration 0, as the checkpoint holds them."""
    with pytest.raises(Killed):
        run(tiny, folder, Recorder({1: kill}))
    tensors = load_file(folder / "run" / "checkpoint.safetensors")
    return {
        name.removeprefix("parameter."): value
        for name, value in tensors.items()
        if name.startswith("parameter.")
    }


@pytest.mark.parametrize("initial", ["1", "../tiny/1", "../../models/tiny/1"])
def test_a_run_begins_with_the_versions_theta_and_its_own_alpha(tmp_path, first, initial):
    found = begin(beginning_with(initial), tmp_path)
    for name, value in first.theta.items():
        assert torch.equal(found[name], value), name
    for name in first.alpha:
        expected = [0.1, 0.05] if name.startswith("head.") else [0.01, 0.005]
        torch.testing.assert_close(found[f"rate.{name}"].exp(), torch.tensor(expected))


def test_a_head_of_another_size_begins_afresh(tmp_path, first):
    tiny = beginning_with("1", *FIXED)
    found = begin(tiny, tmp_path)
    fresh = first.learner.initial(tiny.seed)
    for name, value in first.theta.items():
        if name.startswith("network."):
            assert torch.equal(found[name], value)
            assert not torch.equal(found[name], fresh[name])
    assert found["head.weight"].shape == (4, first.learner.feature_size)
    assert found["head.bias"].tolist() == [0.0] * 4


def test_meta_training_begins_with_a_pretrained_network(tmp_path):
    run(recipe(base=with_stage(PRETRAINING)), tmp_path)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    pretrained = Registry(tmp_path / "models").load("tiny", 1).theta
    found = begin(beginning_with("1"), tmp_path)
    assert all(torch.equal(found[name], value) for name, value in pretrained.items())
    assert "classifier" not in found


def test_the_run_is_the_same_wherever_the_first_version_lies(tmp_path, first):
    run(beginning_with("1"), tmp_path)
    shutil.copytree(tmp_path / "models" / "tiny" / "1", tmp_path / "else" / "tiny" / "1")
    other = beginning_with("../../../else/tiny/1")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    run(other, tmp_path / "elsewhere")
    thetas = [
        (folder / "models" / "tiny" / "2" / "theta.safetensors").read_bytes()
        for folder in (tmp_path, tmp_path / "elsewhere")
    ]
    assert thetas[0] == thetas[1]


@pytest.mark.parametrize(
    "changes",
    [
        [("filters = 4", "filters = 8")],
        [("blocks = 3", "blocks = 2")],
        [("groups = 2", "groups = 4")],
        [("groups = 2", 'groups = 2\ndownsample = "pool"')],
        [("groups = 2", "groups = 2\nfeature_norm = false")],
        [('name = "conv"\nfilters = 4\nblocks = 3\ngroups = 2', 'name = "mlp"\nhidden = [16]')],
    ],
    ids=lambda changes: changes[0][1].splitlines()[-1],
)
def test_another_network_is_refused_even_where_its_parameters_would_fit(tmp_path, first, changes):
    with pytest.raises(RecipeError, match=r"initial = '1' is of another network.*the recipe's is"):
        run(beginning_with("1", *changes), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_network_for_other_inputs_is_refused(tmp_path):
    run(recipe(base=SINUSOID), tmp_path)
    shutil.rmtree(tmp_path / "run")
    oracle = beginning_with("1", ('split = "function"', 'split = "oracle"'), base=SINUSOID)
    with pytest.raises(RecipeError, match=r"another network.*shape=\(1,\).*shape=\(3,\)"):
        run(oracle, tmp_path)


def test_defaults_written_out_are_the_same_network(tmp_path, first):
    begin(beginning_with("1", ("groups = 2", 'groups = 2\nnorm = "group"')), tmp_path)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ("7", "initial = '7' is not there: There is no version 7 of a model 'tiny'"),
        ("../none/1", "initial = '../none/1' is not there: .* 'none'"),
        ("1/theta.safetensors", "is no version: end it with its number"),
        ("..", "is no version: end it with its number"),
    ],
)
def test_a_version_that_is_not_there_is_said_so(tmp_path, first, initial, message):
    with pytest.raises(RecipeError, match=message):
        run(beginning_with(initial), tmp_path)


def test_a_broken_version_is_named(tmp_path, first):
    path = tmp_path / "models" / "tiny" / "1" / "theta.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RegistryError, match=str(path)):
        run(beginning_with("1"), tmp_path)


def test_a_checkpoint_that_began_with_another_theta_is_refused(tmp_path, first):
    begin(beginning_with("1"), tmp_path)
    shutil.rmtree(tmp_path / "models" / "tiny" / "1")
    run(recipe(("seed = 3", "seed = 4")), tmp_path / "other")
    shutil.copytree(
        tmp_path / "other" / "models" / "tiny" / "1", tmp_path / "models" / "tiny" / "1"
    )
    with pytest.raises(CheckpointError, match="belongs to another recipe or data set"):
        run(beginning_with("1"), tmp_path)


def test_the_card_says_what_it_began_with(tmp_path, first):
    run(beginning_with("1"), tmp_path)
    card = Registry(tmp_path / "models").card("tiny", 2)
    assert card.recipe["initial"] == "1"
    assert card.input == INPUT
    assert json.loads(card.model_dump_json())["recipe"]["initial"] == "1"
