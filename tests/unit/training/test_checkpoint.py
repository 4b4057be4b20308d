from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.data.omniglot import INPUT
from app.errors import CheckpointError
from app.registry.registry import build_learner
from app.training.checkpoint import restore_checkpoint, save_checkpoint
from app.training.run import reserved
from app.training.state import State, initial_state, outer_step
from tests.unit.training.helpers import recipe

TINY = recipe()


def fresh() -> State:
    learner = build_learner(INPUT, TINY.network.model_dump(), TINY.head)
    return initial_state(TINY, learner, torch.device("cpu"))


def walk(state: State, steps: int) -> None:
    """Steps along made-up gradients; some parameters have none, as α of unused steps."""
    for _ in range(steps):
        for number, (name, parameter) in enumerate(state.parameters.items()):
            generator = torch.Generator().manual_seed(100 * state.iteration + number)
            absent = name.startswith("rate.network.") and state.iteration < 3
            parameter.grad = None if absent else torch.randn(parameter.shape, generator=generator)
        outer_step(TINY, state)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoint.safetensors"


@pytest.mark.parametrize("iteration", [0, 1, 2, 5])
def test_a_restored_run_goes_on_to_the_bit_as_one_that_never_stopped(path, iteration):
    whole, stopped = fresh(), fresh()
    walk(whole, 7)
    walk(stopped, iteration)
    stopped.wall_seconds, stopped.loss, stopped.score = 12.345678901234567, 0.1, None
    save_checkpoint(path, stopped, "digest")
    restored = fresh()
    restore_checkpoint(path, restored, "digest")
    assert restored.iteration == iteration
    assert (restored.wall_seconds, restored.loss, restored.score) == (
        12.345678901234567,
        0.1,
        None,
    )
    walk(restored, 7 - iteration)
    assert restored.iteration == 7
    for name, value in whole.parameters.items():
        assert torch.equal(restored.parameters[name], value), name
        moments, kept = whole.optimizer.state[value], restored.optimizer.state
        for key, moment in moments.items():
            assert torch.equal(kept[restored.parameters[name]][key], moment), (name, key)


def test_another_recipes_checkpoint_is_refused_and_changes_nothing(path):
    other = fresh()
    walk(other, 1)
    save_checkpoint(path, other, "another")
    state = fresh()
    with pytest.raises(CheckpointError, match=rf"{path} belongs to another recipe.*--run"):
        restore_checkpoint(path, state, "digest")
    assert state.iteration == 0
    assert torch.equal(state.parameters["head.weight"], fresh().parameters["head.weight"])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(path, share):
    save_checkpoint(path, fresh(), "digest")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=rf"{path} is no whole checkpoint.*delete it"):
        restore_checkpoint(path, fresh(), "digest")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"recipe": "digest"},
        {"run": "{}", "recipe": "digest"},
        {"run": "{", "recipe": "digest"},
    ],
    ids=["none", "no run", "empty run", "no JSON"],
)
def test_another_safetensors_file_is_refused_by_name(tmp_path, metadata):
    path = tmp_path / "checkpoint.safetensors"
    save_file({"weights": torch.zeros(2)}, path, metadata)
    with pytest.raises(CheckpointError, match=rf"{path} is no whole checkpoint"):
        restore_checkpoint(path, fresh(), "digest")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    path = tmp_path / "run" / "checkpoint.safetensors"
    with pytest.raises(CheckpointError, match=rf"{path} cannot be written"):
        save_checkpoint(path, fresh(), "digest")


def test_saving_replaces_the_file_and_leaves_no_other(path):
    state = fresh()
    for _ in range(3):
        walk(state, 1)
        save_checkpoint(path, state, "digest")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    restored = fresh()
    restore_checkpoint(path, restored, "digest")
    assert restored.iteration == 3


def test_a_run_folder_belongs_to_one_process_at_a_time(tmp_path):
    belongs = pytest.raises(CheckpointError, match="run belongs to a training that runs now")
    with reserved(tmp_path / "run"), belongs, reserved(tmp_path / "run"):
        pytest.fail("two have it")
    with reserved(tmp_path / "run"):
        pass


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    named = pytest.raises(CheckpointError, match="file/run cannot be written to")
    with named, reserved(tmp_path / "file" / "run"):
        pytest.fail("it was made")
