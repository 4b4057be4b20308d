"""Mini-ImageNet (Vinyals et al. 2016) as Ravi & Larochelle (2017) split it: 100 classes of 600.

Found in a folder as pictures and the three released lists, and decoded once to one file of
84 x 84 pixels a part. These are mapped into memory, not read: the parts take 1.3 GB together.
"""

import csv
import hashlib
import os
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.cache import OtherContents, Progress, make_cache, open_cache, silent
from app.data.images import prepare_image
from app.data.pools import ClassPool
from app.errors import DataError
from app.registry.card import InputSpec

INPUT = InputSpec(kind="image", shape=(3, 84, 84), dark_on_light=False)
LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
"""The list of each part: a header `filename,label`, then one picture a row."""
CACHE = "mini-imagenet-84x84-{}.npy"
"""The cache of a part. What it holds is told beside it, in a file that ends in .json instead."""
LOCK = ".mini-imagenet.lock"

Classes = dict[str, list[str]]
"""File names by label; both are sorted."""


def load_mini_imagenet(folder: Path, progress: Progress = silent) -> dict[str, ClassPool]:
    """The pools `train`, `validation` and `test`, of 64, 16 and 20 classes where all is released.

    The pictures, JPEG or PNG, may lie anywhere below the folder: they are found by the file names
    in the lists, of several with one name the first. Where the caches are there, the pictures need
    not be. A cache is checked against its list, but its pixels are not looked at.

    Args:
        folder: where the lists and pictures lie; the caches are written there too.
        progress: told of decoding, in classes.

    Returns:
        Classes sorted by label, their pictures by file name; the arrays cannot be written to.

    Raises:
        DataError: a list, picture or cache is missing, broken or does not fit the others, or a
            cache cannot be written; the message names the file.
    """
    lists = {part: _read_list(folder / name) for part, name in LISTS.items()}
    _refuse_shared_classes(folder, lists)
    pools = {
        part: _open_cache(folder, part, classes)
        for part, classes in lists.items()
        if _cache(folder, part).exists()
    }
    missing = {part: classes for part, classes in lists.items() if part not in pools}
    if missing:
        pictures = _find_pictures(folder, missing)
        for part, classes in missing.items():
            make_cache(
                _cache(folder, part),
                _contents(classes),
                folder / LOCK,
                _cache(folder, part).exists,
                partial(_decode_classes, part, classes, pictures, progress),
            )
            pools[part] = _open_cache(folder, part, classes)
    return {part: pools[part] for part in lists}


def _read_list(path: Path) -> Classes:
    labels: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            if next(rows, None) != ["filename", "label"]:
                raise ValueError("its first line is not filename,label")
            for row in rows:
                if len(row) != 2 or not all(row):
                    raise ValueError(f"line {rows.line_num} is not a file name and a label")
                if row[0] in labels:
                    raise ValueError(f"line {rows.line_num} lists {row[0]} again")
                labels[row[0]] = row[1]
        if not labels:
            raise ValueError("it lists no pictures")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: put the train.csv, val.csv and test.csv of Ravi & Larochelle's "
            f"split into {path.parent}"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is broken ({error}): get the list again") from error
    classes: Classes = {}
    for name in sorted(labels):
        classes.setdefault(labels[name], []).append(name)
    fewest, most = (choose(classes, key=lambda label: len(classes[label])) for choose in (min, max))
    if len(classes[fewest]) != len(classes[most]):
        raise DataError(
            f"{path} lists {len(classes[fewest])} pictures of {fewest} and {len(classes[most])} of "
            f"{most}: classes need equally many, so get the list again"
        )
    return dict(sorted(classes.items()))


def _refuse_shared_classes(folder: Path, lists: dict[str, Classes]) -> None:
    part_of: dict[str, str] = {}
    for part, classes in lists.items():
        for label in classes:
            if label in part_of:
                raise DataError(
                    f"{folder / LISTS[part_of[label]]} and {folder / LISTS[part]} share the class "
                    f"{label}: a class belongs to one part, so get the lists again"
                )
            part_of[label] = part


def _find_pictures(folder: Path, lists: dict[str, Classes]) -> dict[str, Path]:
    """Where each listed picture lies, by one walk that also follows linked folders."""
    names = {
        part: [name for files in classes.values() for name in files]
        for part, classes in lists.items()
    }
    wanted = {name for listed in names.values() for name in listed}
    found: dict[str, Path] = {}
    walked: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()  # else which of several is the first would hang on the disk
        if (real := Path(place).resolve()) in walked:
            folders.clear()  # a link may lead back up
            continue
        walked.add(real)
        for name in wanted.intersection(files):
            found.setdefault(name, Path(place, name))
    for part, listed in names.items():
        absent = [name for name in listed if name not in found]
        if absent:
            raise DataError(
                f"{len(absent)} of the {len(listed)} pictures in {folder / LISTS[part]} are "
                f"missing, the first is {absent[0]}: put them anywhere below {folder}"
            )
    return found


def _cache(folder: Path, part: str) -> Path:
    return folder / CACHE.format(part)


def _contents(classes: Classes) -> dict[str, Any]:
    """What a cache of these classes holds, as it is told beside the cache."""
    files = [name for names in classes.values() for name in names]
    return {
        "shape": [len(classes), len(files) // len(classes), *INPUT.shape],
        "names": list(classes),
        "filenames_sha256": hashlib.sha256("\0".join(files).encode()).hexdigest(),
    }


def _open_cache(folder: Path, part: str, classes: Classes) -> ClassPool:
    """Maps a cache into memory, (classes, pictures, 3, 84, 84), where it is the one of its list."""
    cache = _cache(folder, part)
    try:
        images = open_cache(cache, _contents(classes))
    except Exception as error:
        reason = (
            f"of another list than {LISTS[part]}" if isinstance(error, OtherContents) else error
        )
        raise DataError(
            f"{cache} is broken or does not fit ({reason}): delete it, it will be made again from "
            "the pictures"
        ) from error
    return ClassPool(images, tuple(classes))


def _decode_classes(
    part: str, classes: Classes, pictures: dict[str, Path], progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    """The pictures of each class, (pictures, 3, 84, 84)."""
    for done, names in enumerate(classes.values(), start=1):
        yield np.stack([_decode(pictures[name]) for name in names])
        progress(f"Decoding {part}", done, len(classes))


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        return prepare_image(Image.open(BytesIO(path.read_bytes()), formats=["JPEG", "PNG"]), INPUT)
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise DataError(
            f"{path} is no readable JPEG or PNG ({error}): get the picture again"
        ) from error
