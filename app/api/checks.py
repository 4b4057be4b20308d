"""Checks that JSON Schema cannot state. Each error names the place below the value it found."""

import base64
import math
from typing import Any

from pydantic_core import PydanticCustomError

from app.api.issues import escape

MOST_DIMENSIONS = 16
MOST_METADATA_LEVELS = 32

_TOO_LARGE = "is too large: it must be a finite number"


def flaw(pointer: str, detail: str) -> PydanticCustomError:
    """An error at `pointer`, a JSON pointer that starts at the value being checked."""
    return PydanticCustomError("flaw", "{detail}", {"pointer": pointer, "detail": detail})


def decode_base64(text: object) -> bytes:
    """Decode base64 (RFC 4648), strictly: padded, and without any other character."""
    if not isinstance(text, str):
        raise PydanticCustomError("string_type", "must be a string")
    if text.startswith("data:"):
        raise flaw("", "must be the base64 alone: drop everything up to the comma")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise flaw("", "must be base64, padded and without line breaks") from None
    if not data:
        raise flaw("", "must not be empty")
    return data


def check_numbers(values: object) -> list[Any]:
    """Check that a list holds finite numbers, or lists of such to any sane depth."""
    if not isinstance(values, list):
        raise PydanticCustomError("list_type", "must be a list")
    _check_row(values, "", 1)
    return values


def _check_row(row: list[Any], pointer: str, dimension: int) -> None:
    if dimension > MOST_DIMENSIONS:
        raise flaw(pointer, "is nested too deeply")
    if set(map(type, row)) <= {int, float} and _finite(row):
        return
    for index, item in enumerate(row):
        place = f"{pointer}/{index}"
        if type(item) is list:
            _check_row(item, place, dimension + 1)
        elif type(item) not in (int, float):
            raise flaw(place, "must be a number")
        elif not _finite([item]):
            raise flaw(place, _TOO_LARGE)


def _finite(numbers: list[Any]) -> bool:
    try:
        return all(map(math.isfinite, numbers))
    except OverflowError:  # an integer beyond the largest float
        return False


def check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Check that what is kept can be given back: Unicode, finite, not too deep to be written."""
    pending: list[tuple[str, int, Any]] = [("", 0, metadata)]
    while pending:
        pointer, level, value = pending.pop()
        if level > MOST_METADATA_LEVELS:
            raise flaw("", f"must not be nested deeper than {MOST_METADATA_LEVELS} levels")
        if isinstance(value, float) and not math.isfinite(value):
            raise flaw(pointer, _TOO_LARGE)
        if isinstance(value, str) and not _is_unicode(value):
            raise flaw(pointer, "must be Unicode text, without lone surrogates")
        if isinstance(value, list):
            pending += [(f"{pointer}/{index}", level + 1, item) for index, item in enumerate(value)]
        if isinstance(value, dict):
            if not all(map(_is_unicode, value)):
                raise flaw(pointer, "must have names of Unicode text, without lone surrogates")
            pending += [
                (f"{pointer}/{escape(name)}", level + 1, item) for name, item in value.items()
            ]
    return metadata


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
