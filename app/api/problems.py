"""Errors as problem details (RFC 9457): the one place that knows the status of an error."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.api.issues import parameter_issues
from app.errors import (
    Contention,
    DatabaseUnavailable,
    Draining,
    EngineFailed,
    IdempotencyConflict,
    InnerloopError,
    InvalidInput,
    InvalidSafetensors,
    Issue,
    ModelNotFound,
    ModelVersionGone,
    NotReady,
    QueueFull,
    SessionExpired,
    SessionNotFound,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"

ERRORS: dict[type[InnerloopError], tuple[int, str]] = {
    InvalidInput: (422, "The request breaks a rule"),
    InvalidSafetensors: (400, "The body is no safetensors file"),
    SessionNotFound: (404, "No such session"),
    ModelNotFound: (404, "No such model"),
    SessionExpired: (410, "The session's time is over"),
    ModelVersionGone: (410, "The session's model version is gone"),
    IdempotencyConflict: (409, "The Idempotency-Key came with another request before"),
    Unavailable: (503, "Not now"),
    QueueFull: (503, "The queue is full"),
    Draining: (503, "The server is shutting down"),
    NotReady: (503, "The device is not warm yet"),
    EngineFailed: (503, "The device failed"),
    DatabaseUnavailable: (503, "The database does not answer"),
    Contention: (503, "Others changed the session at the same time"),
}
"""Status and title by class. A class that is not here, nor any of its bases, answers 500."""

STATUSES: dict[int, tuple[str, str]] = {
    400: ("invalid_json", "The body is no JSON"),
    404: ("not_found", "No such resource"),
    405: ("method_not_allowed", "The resource does not know this method"),
    413: ("content_too_large", "The body is too large"),
    415: ("unsupported_media_type", "The body is not of a known media type"),
    500: ("internal_error", "The server failed"),
}
"""Code and title of what HTTP itself refuses, and of what nobody foresaw."""

_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")


@dataclass(frozen=True)
class Problem:
    """One problem, ready to be sent."""

    status: int
    code: str
    title: str
    detail: str
    issues: tuple[Issue, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, request_id: str) -> dict[str, Any]:
        """The members of RFC 9457, and ours: `code`, `request_id` and, for a 422, `errors`."""
        members: dict[str, Any] = {
            "type": type_uri(self.code),
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.issues:
            members["errors"] = [vars(issue) for issue in self.issues]
        return members

    def response(self, request_id: str) -> Response:
        """The answer. What is no Unicode in the caller's words becomes a question mark."""
        text = json.dumps(self.body(request_id), ensure_ascii=False)
        return Response(
            text.encode("utf-8", "replace"),
            status_code=self.status,
            headers=dict(self.headers),
            media_type=MEDIA_TYPE,
        )


INTERNAL = Problem(
    500, *STATUSES[500], "Something failed that should not; the log has the request_id."
)

MALFORMED = Problem(
    400,
    "malformed_request",
    "The request is no HTTP",
    "The server cannot read this request. Is the address percent-encoded?",
    headers={"Connection": "close"},
)
"""What is answered before there is a request to route."""


def type_uri(code: str) -> str:
    """The problem type of a code: a name, not an address."""
    return f"urn:innerloop:problem:{code}"


def install(app: FastAPI) -> None:
    """Answer every error that is raised on purpose, and what the framework refuses."""
    app.add_exception_handler(InnerloopError, _on_innerloop_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)


def problem_of(error: InnerloopError) -> Problem | None:
    """The problem of an error, or None where it is none of the caller's business."""
    known = next((cls for cls in type(error).__mro__ if cls in ERRORS), None)
    if known is None:
        return None
    status, title = ERRORS[known]
    if isinstance(error, InvalidInput):
        return Problem(status, error.code, title, _summary(error.issues), error.issues)
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, Draining):
        headers["Connection"] = "close"  # the next try shall reach another server
    return Problem(status, error.code, title, str(error), headers=headers)


async def _on_innerloop_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InnerloopError)
    problem = problem_of(error)
    if problem is None:
        raise error
    return problem.response(request.state.request_id)


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_innerloop_error(request, InvalidInput(parameter_issues(error.errors())))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    detail = error.detail
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail = f"This path knows {headers['Allow']}."
    elif error.status_code == HTTPStatus.NOT_FOUND:
        detail = "There is nothing at this path; /docs describes what there is."
    code, title = STATUSES[error.status_code]
    problem = Problem(error.status_code, code, title, detail, headers=headers)
    return problem.response(request.state.request_id)


def _allowed(request: Request) -> list[str]:
    """Every method of the path: the framework names only those of the first route that fits."""
    methods = {"OPTIONS"}
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods
    if "GET" in methods:
        methods.add("HEAD")
    return [method for method in _METHODS if method in methods]


def _summary(issues: tuple[Issue, ...]) -> str:
    first = issues[0]
    place = first.pointer or "the body"
    others = f" ({len(issues) - 1} more in `errors`)" if len(issues) > 1 else ""
    return f"{place}: {first.detail}{others}"
