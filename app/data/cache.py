"""Decoded pictures in a file that is mapped into memory, not read, and beside it what it holds.

The cache is a .npy file of uint8; the file beside it ends in .json instead.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import DataError
from app.files import write_atomically

Progress = Callable[[str, int, int], None]
"""Told of a name, how much is done and how much there is (0 where unknown)."""


def silent(name: str, done: int, total: int) -> None:
    """Tells nobody."""


class OtherContents(ValueError):
    """The cache is of other pictures."""


def open_cache(cache: Path, contents: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Maps a cache into memory; the array cannot be written to.

    Args:
        cache: the .npy file.
        contents: what it must hold, as JSON can say it; `shape` is that of the array.

    Raises:
        OtherContents: it holds something else.
        Exception: of any kind, where it is broken: a parser of headers meets any bytes here.
    """
    beside = cache.with_suffix(".json")
    if json.loads(beside.read_bytes()) != contents:
        raise OtherContents(f"{beside.name} says that it holds something else")
    images: NDArray[np.uint8] = np.lib.format.open_memmap(cache, mode="r")
    if list(images.shape) != contents["shape"] or images.dtype != np.uint8:
        raise ValueError(f"it holds {images.shape} of {images.dtype}")
    assert isinstance(images, np.memmap)
    if not images.flags.c_contiguous or images.offset + images.nbytes != cache.stat().st_size:
        raise ValueError("its bytes are not laid out as they were written")
    return images


def make_cache(
    cache: Path,
    contents: Mapping[str, Any],
    lock: Path,
    is_made: Callable[[], bool],
    decode: Callable[[], Iterable[NDArray[np.uint8]]],
) -> None:
    """Writes a cache, which is there whole or not at all.

    Jobs that start together decode once: one does and the others wait for it. What a killed job
    left is overwritten.

    Args:
        cache: the .npy file.
        contents: as in `open_cache`.
        lock: the file that jobs lock while they decode.
        is_made: whether another job has made it meanwhile.
        decode: gives the array in pieces.

    Raises:
        DataError: the cache cannot be written.
    """
    temporary = cache.with_name(f".{cache.name.lstrip('.')}.part")
    try:
        with lock.open("a") as locked:
            fcntl.flock(locked, fcntl.LOCK_EX)
            if is_made():
                return
            try:
                _write_array(temporary, tuple(contents["shape"]), decode())
                # An old cache must not be taken for what the file beside it says from now on, nor a
                # new one be there before it is said what it holds.
                cache.unlink(missing_ok=True)
                write_atomically(cache.with_suffix(".json"), json.dumps(contents).encode())
                temporary.replace(cache)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise DataError(
            f"{cache} cannot be written ({error}): it is too large to decode each time, so allow "
            f"writing into {cache.parent} and make room for {np.prod(contents['shape']) / 1e6:,.0f}"
            " MB"
        ) from error


def _write_array(target: Path, shape: tuple[int, ...], pieces: Iterable[NDArray[np.uint8]]) -> None:
    """Writes an array that comes in pieces to a .npy file.

    Not into a memory map, where a full disk kills the process by a signal instead of raising.
    """
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        for piece in pieces:
            file.write(piece.tobytes())
        file.flush()
        os.fsync(file.fileno())
