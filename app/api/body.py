"""From a request's bytes to a checked body: media type, size, syntax, schema, in this order."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api import tensors
from app.api.issues import body_issues
from app.api.oversized import refuse_oversized
from app.api.strict_json import parse_json
from app.errors import InvalidInput

JSON = "application/json"
LARGE_BYTES = 256 * 1024
"""From this size on a body is parsed in a thread, so as not to hold up every other request."""


class BodyRequest(Request):
    """A request whose body is parsed and checked already.

    FastAPI takes what `json` returns for the parsed body of a request that says it is JSON, as
    every one does then, and an instance of the schema's class passes its own check untouched.
    """

    def __init__(
        self, request: Request, media_type: str, said: Callable[[], Any], checked: BaseModel
    ):
        others = [(name, it) for name, it in request.scope["headers"] if name != b"content-type"]
        headers = [*others, (b"content-type", JSON.encode())]
        super().__init__({**request.scope, "headers": headers}, request.receive)
        self.media_type = media_type
        """What the body came as, and the answer goes as."""
        self._said = said
        self._checked = checked

    def canonical(self) -> str:
        """What the body says, whatever it looked like: two requests are the same where this is."""
        return json.dumps(self._said(), sort_keys=True, separators=(",", ":"))

    @classmethod
    async def read(cls, request: Request, schema: type[BaseModel], limit_bytes: int) -> Self:
        """Read, parse and check the body of `request`.

        Raises:
            HTTPException: 413 too large, 415 neither JSON nor tensors where the schema takes them,
                by its header, 400 no JSON by its content.
            InvalidSafetensors: no tensors by its content.
            InvalidInput: it breaks the schema.
            ClientDisconnect: the caller has gone.
        """
        media_types = [JSON, tensors.MEDIA_TYPE] if schema in tensors.FORMS else [JSON]
        media_type = _media_type(request, media_types)
        raw = await _read(request, limit_bytes)
        if raw and "content-type" not in request.headers:
            raise _wrong_media_type(media_types)
        form = None if media_type == JSON else tensors.FORMS[schema]
        check = partial(_check, raw, schema, form)
        said, checked = check() if len(raw) < LARGE_BYTES else await asyncio.to_thread(check)
        return cls(request, media_type, said, checked)

    async def body(self) -> bytes:
        """Anything: FastAPI asks only whether there is a body, the bytes need not wait along."""
        return b"{}"

    async def json(self) -> Any:
        """The checked body."""
        return self._checked


async def _read(request: Request, limit_bytes: int) -> bytes:
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
    return b"".join(chunks)


def _media_type(request: Request, known: list[str]) -> str:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise HTTPException(
            415,
            "Compressed bodies are not supported: send it as it is.",
            headers={"Accept-Encoding": "identity"},
        )
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media_type not in known:
        raise _wrong_media_type(known)
    return media_type


def _wrong_media_type(known: list[str]) -> HTTPException:
    return HTTPException(415, f"Send it with the header Content-Type: {' or '.join(known)}.")


def _too_large(limit_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"The body has more than {limit_bytes} bytes: send less in one request."
    )


def _check(
    raw: bytes, schema: type[BaseModel], form: type[tensors.Form] | None
) -> tuple[Callable[[], Any], BaseModel]:
    """What makes the canonical form of a body, and the body checked; `form` is that of tensors."""
    try:
        if form is not None:
            sent = tensors.Sent.of(raw)
            return sent.canonical, form.read(sent)
        parsed = parse_json(raw)
        refuse_oversized(parsed)
        return lambda: parsed, schema.model_validate(parsed)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise InvalidInput(body_issues(found)) from error
