"""A disk that is full: the message names the file, and nothing that was kept is lost."""

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open

from app.errors import CheckpointError, RegistryError
from app.registry import Registry
from tests.unit.training.helpers import SINUSOID, Killed, Recorder, kill, recipe, run

TINY = recipe(base=SINUSOID)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """θ of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run(TINY, folder)
    return theta(folder)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch):
    """Call it, and from then on no file can be brought to the disk."""

    def fill() -> None:
        monkeypatch.setattr(os, "fsync", full)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    yield fill
    monkeypatch.undo()


def theta(folder: Path) -> bytes:
    return (folder / "models" / "tiny" / "1" / "theta.safetensors").read_bytes()


def checkpointed(folder: Path) -> int:
    with safe_open(folder / "run" / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["run"])["iteration"]


def check_goes_on(folder: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room again, the run ends as one that nothing stopped."""
    monkeypatch.undo()
    assert {path.name for path in (folder / "run").iterdir()} <= {
        "checkpoint.safetensors",
        "log.jsonl",
        "measured.json",
    }
    run(TINY, folder)
    assert theta(folder) == whole
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [2, 4, 6]


def test_before_the_first_iteration_it_is_the_checkpoint_that_is_named(tmp_path, disk):
    disk()
    recorder = Recorder()
    path = tmp_path / "run" / "checkpoint.safetensors"
    with pytest.raises(CheckpointError, match=rf"{path} cannot be written: No space left"):
        run(TINY, tmp_path, recorder)
    assert recorder.iterations == []
    assert list(path.parent.iterdir()) == []


def test_the_checkpoint_before_stays(tmp_path, disk, whole, monkeypatch):
    path = tmp_path / "run" / "checkpoint.safetensors"
    with pytest.raises(CheckpointError, match=rf"{path} cannot be written: No space left"):
        run(TINY, tmp_path, Recorder({3: disk}))
    assert checkpointed(tmp_path) == 2
    check_goes_on(tmp_path, whole, monkeypatch)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_line_of_the_log_that_found_no_room_is_written_later(tmp_path, whole, monkeypatch):
    path = tmp_path / "run" / "log.jsonl"
    kept = tmp_path / "kept"

    def fill() -> None:
        path.rename(kept)
        path.symlink_to("/dev/full")

    with pytest.raises(CheckpointError, match=rf"{path} cannot be written: .*No space left"):
        run(TINY, tmp_path, Recorder({3: fill}))
    assert checkpointed(tmp_path) == 4
    kept.replace(path)
    check_goes_on(tmp_path, whole, monkeypatch)


def test_going_on_names_the_log_that_cannot_be_cut(tmp_path, disk, whole, monkeypatch):
    with pytest.raises(Killed):
        run(TINY, tmp_path, Recorder({5: kill}))
    disk()
    path = tmp_path / "run" / "log.jsonl"
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"{path} cannot be written: No space left"):
        run(TINY, tmp_path)
    assert path.read_bytes() == before
    check_goes_on(tmp_path, whole, monkeypatch)


def test_figures_without_room_are_named_and_can_be_written_later(
    tmp_path, disk, whole, monkeypatch
):
    recorder = Recorder()
    recorder.measures = lambda *_: disk() if recorder.iterations[-1:] == [7] else None
    path = tmp_path / "run" / "measured.json"
    with pytest.raises(CheckpointError, match=rf"{path} cannot be written: No space left"):
        run(TINY, tmp_path, recorder)
    assert checkpointed(tmp_path) == 7
    check_goes_on(tmp_path, whole, monkeypatch)


def test_a_version_without_room_is_named_and_can_be_written_later(
    tmp_path, disk, whole, monkeypatch
):
    folder = tmp_path / "models" / "tiny" / "1"
    save = Registry.save

    def fill_and_save(*arguments) -> Path:
        disk()
        return save(*arguments)

    monkeypatch.setattr(Registry, "save", fill_and_save)
    with pytest.raises(RegistryError, match=rf"{folder} cannot be written: .*No space left"):
        run(TINY, tmp_path)
    assert Registry(tmp_path / "models").names() == []
    assert list(folder.iterdir()) == []
    assert checkpointed(tmp_path) == 7
    check_goes_on(tmp_path, whole, monkeypatch)
