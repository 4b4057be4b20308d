"""Arrays of any shape from a file: time series, measurements, feature vectors.

An .npz file of numpy with `inputs` (examples, *shape) of numbers and `labels` (examples,) of
strings or whole numbers; where it has `part` (examples,) as well, that says which of `train`,
`validation` and `test` each example belongs to.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.pools import RaggedPool, ragged_pools
from app.data.split import LEAST_CLASSES, PARTS, Split, shares, split_by_shares
from app.errors import DataError
from app.registry.card import InputSpec

BY_ARRAY = "part"
"""The split by the array of this name."""
_BROKEN = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a broken file of numpy's may raise."""

NAMES = ("inputs", "labels", "part")
"""The arrays that are looked for; the last need not be there."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Arrays:
    """The examples of a file in its order: `inputs` (E, *shape), their labels and parts (E,)."""

    inputs: Floats
    labels: NDArray[np.str_]
    part: NDArray[np.str_] | None


def load_arrays(
    path: Path, split: str, seed: int, *, standardise: bool
) -> tuple[InputSpec, dict[str, RaggedPool]]:
    """What an input is, and the pools `train`, `validation` and `test` of a file.

    Args:
        path: the .npz file, or a folder with one.
        split: percentages of the classes like "64/16/20", or "part" for the array of this name.
        seed: of the split by percentages.
        standardise: whether the model subtracts the mean and divides by the standard deviation, for
            each place of an input's first axis over all examples and other places. They are those
            of the training classes.

    Returns:
        Classes sorted by label, their examples in the order of the file.

    Raises:
        DataError: the file is missing or broken, or cannot be split so; the message names it.
    """
    path = find_arrays(path)
    arrays = read_arrays(path)
    names, row = np.unique(arrays.labels, return_inverse=True)
    inputs = arrays.inputs[row.argsort(kind="stable")]
    parts = _split(path, arrays, names, row, split, seed)
    pools = ragged_pools(inputs, names.tolist(), np.bincount(row), parts)
    mean, scale = None, None
    if standardise:
        mean, scale = _statistics(arrays.inputs[np.isin(arrays.labels, parts["train"])])
    return InputSpec(kind="values", shape=inputs.shape[1:], mean=mean, scale=scale), pools


def find_arrays(path: Path) -> Path:
    """The .npz file that `path` is, or the only one in the folder that it is.

    Raises:
        DataError: there is none, or more than one.
    """
    if path.is_file():
        return path
    found = sorted(path.glob("*.npz")) if path.is_dir() else []
    if not found:
        raise DataError(
            f"{path} is no .npz file, and no folder with one: write `inputs` and `labels` by "
            "numpy.savez, and name the file with --data"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{path} holds several .npz files ({names}): name one with --data")
    return found[0]


def read_arrays(path: Path) -> Arrays:
    """Reads and checks a file.

    Args:
        path: the .npz file.

    Raises:
        DataError: the file is broken, lacks an array, or holds what is no finite number or no
            label; the message names the file, and the first row that is to blame (from 0).
    """
    held = _load(path)
    inputs = _inputs(path, held["inputs"])
    labels = _labels(path, "labels", held["labels"], len(inputs))
    part = held.get("part")
    return Arrays(
        inputs, labels, None if part is None else _labels(path, "part", part, len(inputs))
    )


def _split(
    path: Path,
    arrays: Arrays,
    names: NDArray[np.str_],
    row: NDArray[np.int64],
    split: str,
    seed: int,
) -> Split:
    """The labels of each part; `row` (E,) is the place of each example's label in `names`."""
    of = shares(split)
    if of is not None and arrays.part is not None:
        raise DataError(
            f'{path} has an array `{BY_ARRAY}`: set split = "{BY_ARRAY}" to split it so, or take '
            "the array out"
        )
    if of is not None:
        try:
            return split_by_shares(names.tolist(), of, seed)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    if arrays.part is None:
        raise DataError(
            f"{path} has no array `{BY_ARRAY}` to split it by: add it, or set split to percentages "
            'like "64/16/20"'
        )
    return _split_by_array(path, arrays.part, names, row)


def _split_by_array(
    path: Path, part: NDArray[np.str_], names: NDArray[np.str_], row: NDArray[np.int64]
) -> Split:
    known = np.isin(part, PARTS)
    if not known.all():
        at = int((~known).argmax())
        raise DataError(
            f"{path}: `{BY_ARRAY}` row {at} is {str(part[at])!r}, which is none of "
            f"{', '.join(PARTS)}"
        )
    of_class = part[np.unique(row, return_index=True)[1]]  # of each class's first example
    shared = part != of_class[row]
    if shared.any():
        at = int(shared.argmax())
        raise DataError(
            f"{path}: row {at} puts the class {str(names[row[at]])!r} into {part[at]}, and an "
            f"earlier one into {of_class[row[at]]}: a class belongs to one part, so that it is "
            "tested on what is new"
        )
    split = {name: tuple(names[of_class == name].tolist()) for name in PARTS}
    for name, its in split.items():
        if len(its) < LEAST_CLASSES:
            raise DataError(f"{path}: `{BY_ARRAY}` has {len(its)} classes for {name}: at least two")
    return split


def _statistics(inputs: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation over all axes but the second; one where nothing varies."""
    axes = (0, *range(2, inputs.ndim))
    mean = inputs.mean(axes, dtype=np.float64)
    deviation = inputs.std(axes, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1.0)
    return tuple(mean.tolist()), tuple(scale.tolist())


def _load(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as opened:  # numpy itself does not close a broken file
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array without a name")
            names = sorted(file.files)
            held = {name: file[name] for name in NAMES if name in names}
    except _BROKEN as error:
        advice = "write it again by numpy.savez"
        if "Object arrays" in str(error):
            advice = "save labels as strings, and inputs of one shape"
        raise DataError(f"{path} is broken ({error}): {advice}") from error
    for name in NAMES[:2]:
        if name not in held:
            raise DataError(f"{path} has no array `{name}`, but {', '.join(names) or 'none'}")
    return held


def _inputs(path: Path, given: NDArray[np.generic]) -> Floats:
    if given.dtype.kind not in "fiub":
        raise DataError(f"{path}: `inputs` are {given.dtype}, where real numbers are needed")
    if given.ndim < 2 or not given.size:
        raise DataError(
            f"{path}: `inputs` have the shape {given.shape}, where (examples, ...) is needed, as "
            "(1000, 1) for a thousand single numbers"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named
        inputs = np.ascontiguousarray(given, np.float32)
    broken = ~np.isfinite(inputs).all(axis=tuple(range(1, inputs.ndim)))
    if broken.any():
        raise DataError(
            f"{path}: {int(broken.sum())} rows of `inputs` hold a number that is not finite in 32 "
            f"bits, the first is row {int(broken.argmax())}: leave them out, or fill them in"
        )
    return inputs


def _labels(path: Path, name: str, given: NDArray[np.generic], count: int) -> NDArray[np.str_]:
    if given.shape != (count,):
        raise DataError(
            f"{path}: `{name}` have the shape {given.shape}, where ({count},) is needed: one for "
            "each of `inputs`"
        )
    if given.dtype.kind not in "USiu":
        raise DataError(
            f"{path}: `{name}` are {given.dtype}, where strings or whole numbers are needed"
        )
    try:
        return given.astype(np.str_)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: `{name}` are bytes beyond ASCII: save them as strings") from error
