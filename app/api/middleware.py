"""What surrounds every request: its id, its log line, its figures, and a last answer."""

import re
import secrets
import time

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.metrics import Metrics
from app.api.problems import INTERNAL

HEADER = b"x-request-id"
CALLER_GONE = 499
"""Stands in the log and in the figures for a status that nobody saw."""

_TOKEN = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_log = structlog.get_logger("app.api")


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
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
            try:
                await self._app(scope, receive, observed)
            except ClientDisconnect:
                pass
            except Exception:
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


def new_request_id() -> bytes:
    """128 random bits in hex."""
    return secrets.token_hex(16).encode()


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
