"""What no schema shall look at: it would make an error of each of millions of parts."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from app.api.issues import MOST_ISSUES
from app.errors import InvalidInput, Issue

MOST_ITEMS = 16_384
"""Most inputs of a body that are looked at one by one."""
MOST_NAMES = 32


def refuse_oversized(parsed: Any) -> None:
    """Refuse a body that is far beyond any schema.

    Raises:
        InvalidInput: with the first of its parts that are.
    """
    if issues := list(islice(_oversized(parsed), MOST_ISSUES)):
        raise InvalidInput(issues)


def _oversized(parsed: Any) -> Iterator[Issue]:
    """What is far beyond any schema, before each of millions of parts becomes an error."""
    if not isinstance(parsed, dict):
        return
    yield from _too_many_names(parsed, "")
    for field in ("support", "query", "examples", "labels"):
        items = parsed.get(field)
        if not isinstance(items, list):
            continue
        if len(items) > MOST_ITEMS:
            yield Issue(f"/{field}", f"must hold at most {MOST_ITEMS} elements")
            continue
        for number, item in enumerate(items):
            yield from _too_many_names(item, f"/{field}/{number}")
            if isinstance(item, dict):
                yield from _too_many_names(item.get("input"), f"/{field}/{number}/input")


def _too_many_names(value: Any, pointer: str) -> Iterator[Issue]:
    if isinstance(value, dict) and len(value) > MOST_NAMES:
        yield Issue(pointer, f"must have at most {MOST_NAMES} names")
