"""What surrounds every request: its id, its log line, its figures, and a last answer."""

import asyncio
import re
import time
from contextlib import suppress
from random import Random

import structlog
from fastapi.exceptions import ResponseValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.metrics import Metrics
from app.api.problems import INTERNAL

HEADER = b"x-request-id"
DROP_BYTES, DROP_SECONDS = 128 * 1024 * 1024, 10.0
"""Most of a body that is read after its answer, and how long."""
CALLER_GONE = 499
"""Stands in the log and in the figures for a status that nobody saw."""

_TOKEN = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_log = structlog.get_logger("app.api")
_random = Random()  # noqa: S311 - ids of requests are no secrets


class Observer:
    """The outermost ASGI application of ours.

    Gives each request an id, or keeps the caller's where it is a plain token. Answers HEAD as GET;
    the server leaves the body out. Turns an error that nobody foresaw into a 500 and a traceback
    in the log. Logs neither bodies nor headers nor query strings.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Observe one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        receive = body = _Body(scope, receive)
        method = scope["method"]
        if method == "HEAD":
            scope = dict(scope, method="GET")
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id)]
            elif body.more and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.drop()
                message = {"type": "http.response.body"}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
            try:
                await self._app(scope, receive, observed)
            except ClientDisconnect:
                pass
            except Exception as error:
                if isinstance(error, ResponseValidationError):  # its text shows the answer's values
                    faults = [(fault["loc"], fault["type"]) for fault in error.errors()]
                    _log.error("an answer breaks its own schema", faults=faults)
                else:
                    _log.exception("unforeseen error")
                if status:
                    raise  # the answer has begun: the server can only cut it off
                await INTERNAL.response(request_id.decode())(scope, receive, observed)
            finally:
                seconds = time.perf_counter() - start
                self._record(method, _template(scope), status or CALLER_GONE, seconds)

    def _record(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in _METHODS else "other"
        self._metrics.count(method, route, status, seconds)
        _log.info(
            "request",
            method=method,
            route=route,
            status=status,
            duration_ms=round(seconds * 1000, 3),
        )


class _Body:
    """What a request still sends, of which an early answer may have read nothing.

    A server that hangs up on what it has not read resets the connection, and then many a client
    does not see the answer.
    """

    def __init__(self, scope: Scope, receive: Receive):
        headers = dict(scope["headers"])
        self._receive = receive
        # Who asks first whether to send sends nothing once it has been answered.
        asks = headers.get(b"expect", b"").lower() == b"100-continue"
        self.more = not asks and (
            headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        )
        """Whether the caller is still sending."""

    async def __call__(self) -> Message:
        """The next message of the request."""
        message = await self._receive()
        self.more = message.get("more_body", False)
        return message

    async def drop(self) -> None:
        """Read what is left, within bounds, and forget it."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DROP_SECONDS):
                while self.more and size < DROP_BYTES:
                    size += len((await self()).get("body", b""))


def new_request_id() -> bytes:
    """128 pseudo-random bits in hex: no secret, and no system call."""
    return b"%032x" % _random.getrandbits(128)


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == HEADER and _TOKEN.fullmatch(value):
            return bytes(value)
    return new_request_id()


def _template(scope: Scope) -> str:
    """The route's template: figures must not grow with what callers think up."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    return str(scope["path"]) if "endpoint" in scope else "unmatched"
