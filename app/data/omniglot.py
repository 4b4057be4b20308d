"""Omniglot (Lake, Salakhutdinov & Tenenbaum 2015): 1,623 characters of 50 alphabets.

Found in a folder as the two released archives or unpacked, downloaded from its authors' repository
where it is neither, and decoded once to a compact cache of 28 x 28 bytes a drawing.
"""

import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.cache import Progress, silent
from app.data.images import prepare_image
from app.data.pools import ClassPool
from app.errors import DataError
from app.files import write_atomically
from app.registry.card import InputSpec

INPUT = InputSpec(kind="image", shape=(1, 28, 28), dark_on_light=True)
SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
PARTS = {"images_background": (30, 964), "images_evaluation": (20, 659)}
"""Alphabets and characters of each part."""
DRAWERS = 20
VALIDATION_CHARACTERS = {"background/evaluation": 64, "1200/423": 100}
SPLIT_SEED = 20170309
"""Which characters are held out must never change: figures would no longer compare."""
CACHE = "omniglot-28x28.npz"
_BROKEN = (OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a broken zip file may raise."""


def load_omniglot(folder: Path, split: str, progress: Progress = silent) -> dict[str, ClassPool]:
    """The pools `train`, `validation` and `test` of a split.

    `background/evaluation`: the 30 background alphabets, 64 characters of which are held out for
    validation, and the 20 evaluation alphabets to test. `1200/423` (Finn et al. 2017): all
    characters shuffled, 1,200 to train, 100 of them held out for validation, 423 to test.

    Args:
        folder: where the data set lies, or will lie; the cache is written there too, or, where that
            is not allowed, made anew each time.
        split: one of the two.
        progress: told of downloads and decoding.

    Raises:
        DataError: a file is missing, broken or cannot be downloaded; the message names it.
    """
    if split not in VALIDATION_CHARACTERS:
        raise DataError(
            f"Omniglot has no split {split!r}: use one of {', '.join(VALIDATION_CHARACTERS)}"
        )
    pool = _load_all(folder, progress)
    background = PARTS["images_background"][1]
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(pool.names))
    held_out = VALIDATION_CHARACTERS[split]
    if split == "background/evaluation":
        learn = shuffled[shuffled < background]
        test = np.arange(background, len(pool.names))
    else:
        learn, test = shuffled[:1200], shuffled[1200:]
    parts = {"train": learn[held_out:], "validation": learn[:held_out], "test": test}
    return {
        part: ClassPool(pool.images[rows], tuple(pool.names[row] for row in rows))
        for part, rows in ((part, np.sort(rows)) for part, rows in parts.items())
    }


def _load_all(folder: Path, progress: Progress) -> ClassPool:
    cache = folder / CACHE
    if cache.exists():
        try:
            with np.load(BytesIO(cache.read_bytes()), allow_pickle=False) as stored:
                return ClassPool(stored["images"], tuple(str(name) for name in stored["names"]))
        except (*_BROKEN, ValueError, KeyError) as error:
            raise DataError(
                f"{cache} is broken ({error}): delete it, it will be made again"
            ) from error
    names, images = [], []
    for part, (_, characters) in PARTS.items():
        drawings = dict(_decode_part(folder, part, progress))
        if len(drawings) != characters:
            raise DataError(
                f"{folder / part} has {len(drawings)} characters instead of {characters}"
            )
        for name in sorted(drawings):
            names.append(name)
            images.append(drawings[name])
    pool = ClassPool(np.stack(images), tuple(names))
    buffer = BytesIO()
    np.savez_compressed(buffer, images=pool.images, names=np.array(names))
    try:
        write_atomically(cache, buffer.getvalue())
    except OSError:
        progress(f"{folder} cannot be written to, so nothing is cached", 0, 0)
    return pool


def _decode_part(
    folder: Path, part: str, progress: Progress
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yields "<alphabet>/<character>" with its drawings (20, 1, 28, 28), one for each drawer."""
    total = PARTS[part][1]
    drawings: dict[str, list[tuple[str, bytes]]] = {}
    for path, content in _files(folder, part, progress):
        if path.count("/") < 2:
            raise DataError(f"{path} in {folder} lies in no <alphabet>/<character>: take it away")
        *_, alphabet, character, file = path.split("/")
        drawings.setdefault(f"{alphabet}/{character}", []).append((file, content))
    for done, (name, files) in enumerate(drawings.items(), start=1):
        if len(files) != DRAWERS:
            raise DataError(
                f"{part}/{name} in {folder} has {len(files)} drawings instead of {DRAWERS}"
            )
        yield (
            name,
            np.stack([_decode(f"{part}/{name}/{file}", data) for file, data in sorted(files)]),
        )
        progress(f"Decoding {part}", done, total)


def _decode(path: str, data: bytes) -> NDArray[np.uint8]:
    try:
        return prepare_image(Image.open(BytesIO(data), formats=["PNG"]), INPUT)
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise DataError(f"{path} is no readable PNG ({error}): get the data set again") from error


def _files(folder: Path, part: str, progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Yields the path and content of every drawing of a part, from its folder or its archive."""
    if (folder / part).is_dir():
        for path in sorted((folder / part).rglob("*.png")):
            yield path.relative_to(folder).as_posix(), path.read_bytes()
        return
    archive = folder / f"{part}.zip"
    if not archive.exists():
        _download(SOURCE + archive.name, archive, progress)
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                if name.endswith(".png") and not name.startswith("__MACOSX"):
                    yield name, opened.read(name)
    except _BROKEN as error:
        raise DataError(
            f"{archive} is broken ({error}): delete it, it will be downloaded"
        ) from error


def _download(url: str, target: Path, progress: Progress) -> None:
    try:
        with urlopen(url, timeout=60) as response:  # noqa: S310 - a constant https address
            total = int(response.headers.get("Content-Length") or 0)
            content = bytearray()
            while chunk := response.read(1 << 16):
                content += chunk
                progress(f"Downloading {target.name}", len(content), total)
        if total and len(content) != total:
            raise OSError(f"it ended after {len(content)} of {total} bytes")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, bytes(content))
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise DataError(
            f"{target} is missing and {url} cannot be downloaded ({error}): "
            f"put {target.name} or the folder {target.stem} into {target.parent}"
        ) from error
