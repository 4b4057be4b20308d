"""From the bytes of a request to a checked body: size, media type, JSON, schema, in this order."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Self

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api.issues import MOST_ISSUES, body_issues
from app.errors import InvalidInput, Issue

MOST_ITEMS = 16_384
MOST_NAMES = 32
LARGE_BYTES = 256 * 1024
"""From this size on a body is parsed in a thread, so as not to hold up every other request."""


class BodyRequest(Request):
    """A request whose body is parsed and checked already. `parsed` is the JSON as it came.

    FastAPI takes what `json` returns for the parsed body, and an instance of the schema's class
    passes its own check untouched.
    """

    def __init__(self, request: Request, parsed: Any, checked: BaseModel):
        super().__init__(request.scope, request.receive)
        self.parsed = parsed
        self._checked = checked

    @classmethod
    async def read(cls, request: Request, schema: type[BaseModel], limit_bytes: int) -> Self:
        """Read, parse and check the body of `request`.

        Raises:
            HTTPException: 413 too large, 415 no JSON by its header, 400 no JSON by its content.
            InvalidInput: it breaks the schema.
            ClientDisconnect: the caller has gone.
        """
        raw = await _read(request, limit_bytes)
        if len(raw) < LARGE_BYTES:
            parsed, checked = _check(raw, schema)
        else:
            parsed, checked = await asyncio.to_thread(_check, raw, schema)
        return cls(request, parsed, checked)

    async def body(self) -> bytes:
        """Anything: FastAPI asks only whether there is a body, the bytes need not wait along."""
        return b"{}"

    async def json(self) -> Any:
        """The checked body."""
        return self._checked


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


async def _read(request: Request, limit_bytes: int) -> bytes:
    _check_media_type(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and float(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        chunks.append(chunk)
        more = message.get("more_body", False)
    if size and "content-type" not in request.headers:
        raise _wrong_media_type()
    return b"".join(chunks)


def _oversized(parsed: Any) -> Iterator[Issue]:
    """What is far beyond any schema, before each of millions of parts becomes an error."""
    if not isinstance(parsed, dict):
        return
    yield from _too_many_names(parsed, "")
    for field in ("support", "query", "examples"):
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


def _check_media_type(request: Request) -> None:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise HTTPException(
            415,
            "Compressed bodies are not supported: send it as it is.",
            headers={"Accept-Encoding": "identity"},
        )
    media_type = request.headers.get("content-type", "application/json")
    if media_type.partition(";")[0].strip().lower() != "application/json":
        raise _wrong_media_type()


def _wrong_media_type() -> HTTPException:
    return HTTPException(415, "Send JSON, with the header Content-Type: application/json.")


def _too_large(limit_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"The body has more than {limit_bytes} bytes: send less in one request."
    )


def _check(raw: bytes, schema: type[BaseModel]) -> tuple[Any, BaseModel]:
    parsed = parse_json(raw)
    if issues := list(islice(_oversized(parsed), MOST_ISSUES)):
        raise InvalidInput(issues)
    try:
        return parsed, schema.model_validate(parsed)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise InvalidInput(body_issues(found)) from error
