"""One's own pictures: a folder that holds a folder of PNG, JPEG or WebP files for each class.

They are decoded once, just as the service decodes them, to one file beside the class folders, and
again when a file was added, taken away or changed.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.cache import Progress, make_cache, open_cache, silent
from app.data.images import decode_image
from app.data.pools import RaggedPool, ragged_pools
from app.data.split import shares, split_by_list, split_by_shares
from app.errors import DataError
from app.registry.card import InputSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NAMED = 10
"""Most broken pictures that are named at once."""
LEAST_PICTURES = 2
"""Fewest pictures of a class: one to learn from and one to ask about."""
MOST_PIXELS = 1 << 28
"""Of a picture; what is larger is refused, before it takes gigabytes of memory."""
CACHE = ".innerloop-{}x{}x{}{}.npy"
LOCK = ".innerloop.lock"

Classes = dict[str, list[Path]]
"""The pictures of each class; both are sorted."""


def load_folder(
    folder: Path, spec: InputSpec, split: str, seed: int, progress: Progress = silent
) -> dict[str, RaggedPool]:
    """The pools `train`, `validation` and `test` of a folder of class folders.

    Args:
        folder: where the class folders lie; the cache is written there too.
        spec: what the pictures are made into.
        split: percentages of the classes like "64/16/20", or the name of a CSV file in the folder.
        seed: of the split by percentages.
        progress: told of decoding, in pictures.

    Returns:
        Classes sorted by name, their pictures by file name; the arrays cannot be written to.

    Raises:
        DataError: the folder does not hold what it should, pictures are broken, or the cache cannot
            be written; the message names the files or the folder.
    """
    classes = find_classes(folder)
    parts = split_classes(folder, classes, split, seed)
    images = _cached(folder, spec, classes, progress)
    sizes = np.array([len(files) for files in classes.values()])
    return ragged_pools(images, tuple(classes), sizes, parts)


def find_classes(folder: Path) -> Classes:
    """The class folders and the pictures that lie in them.

    Files that are no pictures by their names' endings do not count, and neither does what is
    hidden.

    Raises:
        DataError: there is no class folder, or one holds fewer than two pictures or another folder.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and _is_own(path))
        classes = {name: _pictures(folder / name) for name in names}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    if not classes:
        raise DataError(
            f"{folder} holds no class folders: make one folder for each class in it, and put the "
            "pictures of the class there"
        )
    small = [name for name, files in classes.items() if len(files) < LEAST_PICTURES]
    if small:
        more = f", as do {len(small) - 1} other folders" if small[1:] else ""
        raise DataError(
            f"{folder / small[0]} has {len(classes[small[0]])} pictures{more}: put at least "
            f"{LEAST_PICTURES} PNG, JPEG or WebP files there, or take the folder away"
        )
    return classes


def split_classes(
    folder: Path, classes: Classes, split: str, seed: int
) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each part; arguments and errors as in `load_folder`."""
    of = shares(split)
    if of is None:
        return split_by_list(tuple(classes), folder / split)
    try:
        return split_by_shares(tuple(classes), of, seed)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error


def read_picture(path: Path, spec: InputSpec) -> NDArray[np.uint8]:
    """A picture as the service would read it, (C, H, W).

    Raises:
        DataError: it is broken or cannot be read.
    """
    try:
        return decode_image(path.read_bytes(), spec, MOST_PIXELS)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def _is_own(path: Path) -> bool:
    """Whether a file or folder is the user's own, and not some program's."""
    return not path.name.startswith((".", "__"))


def _pictures(folder: Path) -> list[Path]:
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the name of {folder!r} is no UTF-8: rename it") from error
    own = sorted(path for path in folder.iterdir() if _is_own(path))
    for path in own:
        if path.is_dir():
            raise DataError(
                f"{path} is a folder within a class: the pictures of a class lie in its own "
                "folder, and every folder is a class"
            )
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no regular file: take it away")
    return [path for path in own if path.suffix.lower() in SUFFIXES]


def _cached(
    folder: Path, spec: InputSpec, classes: Classes, progress: Progress
) -> NDArray[np.uint8]:
    """All pictures (pictures, C, H, W), class after class.

    They come from a cache, which is made anew where it is missing, broken or out of date.
    """
    cache = folder / CACHE.format(*spec.shape, "-inverted" if spec.dark_on_light else "")
    files = [path for pictures in classes.values() for path in pictures]
    contents = {"shape": [len(files), *spec.shape], "files_sha256": _state(folder, files)}

    def find() -> NDArray[np.uint8] | None:
        try:
            return open_cache(cache, contents)
        except Exception:  # a parser of headers may raise anything on broken bytes
            return None

    def decode() -> Iterator[NDArray[np.uint8]]:
        broken: list[str] = []
        for done, path in enumerate(files, start=1):
            try:
                yield read_picture(path, spec)
            except DataError as error:
                broken.append(str(error))
            progress("Decoding pictures", done, len(files))
        if broken:
            more = len(broken) - NAMED
            rest = f"\nand {more} more" if more > 0 else ""
            raise DataError("\n".join(broken[:NAMED]) + rest)

    found = find()
    if found is None:
        make_cache(cache, contents, folder / LOCK, lambda: find() is not None, decode)
        found = open_cache(cache, contents)
    return found


def _state(folder: Path, files: list[Path]) -> str:
    """SHA-256 over the names, sizes and times of last change of all files."""
    digest = hashlib.sha256()
    for path in files:
        try:
            about = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        digest.update(os.fsencode(path.relative_to(folder)))
        digest.update(f"\0{about.st_size} {about.st_mtime_ns}\0".encode())
    return digest.hexdigest()
