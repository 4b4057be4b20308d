import os
import stat
from pathlib import Path

import pytest

from app.files import write_atomically


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theta.safetensors"


def test_content_is_written_and_nothing_else_is_left(path):
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_content_is_replaced_whole(path):
    path.write_bytes(b"much longer than the new one")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_the_file(path):
    write_atomically(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_at_any_moment_leaves_the_old_content_and_no_other_file(
    path, monkeypatch, old, call, failure
):
    if old is not None:
        path.write_bytes(old)

    def crash(*args: object, **options: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(type(failure)):
            write_atomically(path, b"new")
    assert [file.read_bytes() for file in path.parent.iterdir()] == ([] if old is None else [old])


def test_content_is_on_the_disk_before_the_name_points_to_it_and_then_the_name_is(
    path, monkeypatch
):
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            calls.append("fsync folder")
        else:
            calls.append(f"fsync file of {status.st_size} bytes")
        fsync(handle)

    def spy_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        assert Path(source).read_bytes() == b"new"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(path, b"new")
    assert calls == ["fsync file of 3 bytes", "replace", "fsync folder"]


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"new")
    assert list(tmp_path.iterdir()) == []
