"""Which classes are for training, for validation and for testing."""

import csv
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from app.errors import DataError

PARTS = ("train", "validation", "test")
LEAST_CLASSES = 2
"""Fewest classes of a part: one alone has nothing to be told apart from."""
HEADER = ["class", "part"]

Split = dict[str, tuple[str, ...]]
"""The names of each part's classes, sorted."""


def shares(split: str) -> tuple[int, int, int] | None:
    """The percentages of "64/16/20", None where it is nothing of that form."""
    if not re.match(r"^[1-9]\d?/[1-9]\d?/[1-9]\d?$", split):
        return None
    train, validation, test = map(int, split.split("/"))
    return (train, validation, test) if train + validation + test == 100 else None


def split_by_shares(names: Sequence[str], of: tuple[int, int, int], seed: int) -> Split:
    """Deals classes out by percentages, at least two to each part.

    The order in which they are dealt is that of a hash of their names: one class more or less moves
    hardly any other to another part.

    Raises:
        DataError: there are fewer than six classes.
    """
    least = LEAST_CLASSES * len(PARTS)
    if len(names) < least:
        raise DataError(
            f"there are {len(names)} classes, and at least {least} are needed to split them into "
            f"{', '.join(PARTS[:2])} and {PARTS[2]}: add classes"
        )
    _, *held_out = (max(LEAST_CLASSES, round(len(names) * share / 100)) for share in of)
    while sum(held_out) > len(names) - LEAST_CLASSES:
        held_out[held_out.index(max(held_out))] -= 1
    dealt = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    validation, test = held_out
    return {
        "train": tuple(sorted(dealt[test + validation :])),
        "validation": tuple(sorted(dealt[test : test + validation])),
        "test": tuple(sorted(dealt[:test])),
    }


def split_by_list(names: Sequence[str], path: Path) -> Split:
    """Reads the part of each class from a CSV file with the header `class,part`.

    An umlaut is the same as one character and as two, which file systems and editors mix.

    Raises:
        DataError: the file is missing or broken, or does not name each of the classes once.
    """
    part_of: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            first = next(rows, [])
            if _stripped(first) != HEADER:
                raise ValueError(f"its first line is not class,part but {','.join(first)!r}")
            for row in map(_stripped, rows):
                if len(row) != 2 or row[1] not in PARTS:
                    raise ValueError(
                        f"line {rows.line_num} is not a class and one of {', '.join(PARTS)}: "
                        f"{','.join(row)!r}"
                    )
                if row[0] in part_of:
                    raise ValueError(f"line {rows.line_num} lists {row[0]} again")
                part_of[row[0]] = row[1]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8: save it as UTF-8") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be used to split the classes: {error}") from error
    listed = set(map(_composed, names))
    for which, odd in (
        ("lists no part of", sorted(listed - part_of.keys())),
        ("lists what has no folder,", sorted(part_of.keys() - listed)),
    ):
        if odd:
            more = f" and {len(odd) - 1} more" if odd[1:] else ""
            raise DataError(f"{path} {which} {odd[0]}{more}: it must list every class once")
    split = {
        part: tuple(sorted(n for n in names if part_of[_composed(n)] == part)) for part in PARTS
    }
    for part, its in split.items():
        if len(its) < LEAST_CLASSES:
            raise DataError(f"{path} lists fewer than {LEAST_CLASSES} classes for {part}: add some")
    return split


def _stripped(row: Sequence[str]) -> list[str]:
    return [_composed(cell.strip()) for cell in row]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
