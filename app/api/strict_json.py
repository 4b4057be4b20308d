"""JSON by the letter of RFC 8259: no name twice, no NaN, nothing that Python adds to it."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException


def parse_json(raw: bytes) -> Any:
    """Parse JSON strictly, by RFC 8259. A number too large for a float becomes infinity.

    Raises:
        HTTPException: 400, with the reason.
    """
    if not raw.strip():
        raise HTTPException(400, "The body is empty: send a JSON object.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"The body is no UTF-8: see byte {error.start}.") from error
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise HTTPException(400, f"The body is no JSON: {error.msg}, at {place}.") from error
    except _NotJsonError as error:
        raise HTTPException(400, f"The body is no JSON: {error}.") from error
    except RecursionError as error:
        raise HTTPException(400, "The body is nested too deeply.") from error


class _NotJsonError(ValueError):
    """Something that Python's parser takes and JSON does not know, or leaves undefined."""


def _object(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) == len(members):
        return found
    counts = Counter(name for name, _ in members)
    twice = next(name for name, count in counts.items() if count > 1)
    raise _NotJsonError(f"the name {json.dumps(twice)} stands twice in one object")


def _refuse_constant(name: str) -> Any:
    raise _NotJsonError(f"{name} is no JSON number")


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # beyond sys.get_int_max_str_digits()
        return -math.inf if digits.startswith("-") else math.inf


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
_STRICT_WITH_HUGE_INTEGERS = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_int=_integer
)


def _decode(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except (json.JSONDecodeError, _NotJsonError):
        raise
    except ValueError:  # int() refuses thousands of digits; a hook for every integer is slow
        return _STRICT_WITH_HUGE_INTEGERS.decode(text)
