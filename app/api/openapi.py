"""The OpenAPI document: what each route refuses, and what all routes share."""

from itertools import chain
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api import examples, schemas, tensors
from app.api.problems import ERRORS, MALFORMED, MEDIA_TYPE, STATUSES, Problem, problem_of
from app.errors import (
    Draining,
    EngineFailed,
    InnerloopError,
    InvalidInput,
    Issue,
    ModelVersionGone,
    NotReady,
    QueueFull,
    SessionExpired,
    SessionNotFound,
    Unavailable,
)

Refusal = type[InnerloopError] | int
"""A class of errors, or a status that HTTP itself stands for."""

ANY: tuple[Refusal, ...] = (InvalidInput, Draining, 500)
"""What every route under /v1 may answer."""
BODY: tuple[Refusal, ...] = (400, 413, 415)
"""What a route with a body may answer besides."""
STORED: tuple[Refusal, ...] = (SessionNotFound, SessionExpired, ModelVersionGone)
"""What a route that uses a stored session may answer besides."""
DEVICE: tuple[Refusal, ...] = (QueueFull, NotReady, EngineFailed, Unavailable)
"""What a route that needs the device may answer besides."""

DESCRIPTION = """\
A handful of labelled examples becomes a personal model in milliseconds: the server takes the inner
gradient steps from a meta-trained initialisation θ to weights φ of your own, answers your queries,
and keeps the adaptation as a session.

1. `POST /v1/sessions` with labelled examples; their number may differ between labels.
2. `POST /v1/sessions/{session_id}/predictions` as often as you like. Each input is predicted on its
   own.
3. `POST /v1/sessions/{session_id}/examples` to teach it more, labels known or new.

**Strict.** A field or parameter that is not described here is refused, and nothing is coerced. A
request that fails changes nothing.

**Tensors.** `POST /v1/sessions` and `/predictions` also take a safetensors file, with the header
`Content-Type: application/vnd.safetensors`, and then answer with one. Errors are JSON all the same;
row 3 of the tensor `support` is `/support/3/input`, of `query` it is `/query/3`.

**Errors** are problem details (RFC 9457) of the media type `application/problem+json`. Tell them
apart by `code`. A 422 names the broken rules in `errors`, at most 20 of them: `pointer` is a JSON
pointer into the body, or `#/parameters/<name>` for a parameter outside of it. A 503 has the header
`Retry-After`, in seconds.

**Request ids.** Each answer has the header `X-Request-ID`: yours, where it is 1 to 128 of
`A-Z a-z 0-9 . _ : / + = -`, or a new one.

| status | code | meaning |
| --- | --- | --- |
"""

_SAMPLE_ISSUES = [
    Issue("/support/3/input/image", "must be base64, padded and without line breaks"),
    Issue("#/parameters/limit", "must be at most 100"),
]
_HEADERS = {
    "X-Request-ID": {
        "description": "The request's id, for the log.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 1},
    },
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "An id of the caller's choice; another is made where it is no plain token.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
}

LOCATION = {
    "Location": {
        "description": "Path of the new session.",
        "schema": {"type": "string"},
        "example": f"/v1/sessions/{examples.SESSION_ID}",
    }
}


def operation_id(route: APIRoute) -> str:
    """The endpoint's name: what generated clients call it."""
    return route.name


def refusals(*groups: tuple[Refusal, ...]) -> dict[int | str, dict[str, Any]]:
    """Describe what a route may answer instead of success, for its `responses`."""
    by_status: dict[int, list[Problem]] = {}
    for refusal in chain(*groups):
        problem = _sample(refusal)
        by_status.setdefault(problem.status, []).append(problem)
    return {status: _response(by_status[status]) for status in sorted(by_status)}


def tensor_body(form: type[tensors.Form]) -> dict[str, Any]:
    """Describe the body of tensors that a route takes in place of JSON, for its `openapi_extra`."""
    optional = "".join(f", as may `{name}`," for name in form.names if name != form.required)
    text = (
        f"A safetensors file. Its tensor `{form.required}` holds{optional} one "
        "input of the model's shape in each row, as F32 (the numbers of `values`) or U8 (the "
        "pixels of a picture, channels first). Its metadata's entry "
        f"`{tensors.REQUEST}` is a `{form.__name__}` in JSON."
    )
    return {"requestBody": {"content": _file(text)}}


def tensor_answer(schema: type[BaseModel]) -> dict[str, Any]:
    """Describe what a route answers to a body of tensors, for its `responses`."""
    text = (
        "A safetensors file with the tensors `probabilities` F32 (queries, labels) and, where the "
        "model was calibrated, `outlier` F32 (queries,); neither where there was no query. Its "
        f"metadata's entry `{tensors.ANSWER}` is a `{schema.__name__}` in JSON, without "
        "its predictions and with the `labels` of the columns."
    )
    return {"content": _file(text)}


class DocumentedAPI(FastAPI):
    """FastAPI, with the document completed by what its routes cannot say one by one."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _complete(super().openapi())
        return self.openapi_schema


def description() -> str:
    """The text at the head of the document, with every code there is."""
    rows = {(status, code, title) for status, (code, title) in STATUSES.items()}
    rows |= {(status, cls.code, title) for cls, (status, title) in ERRORS.items()}
    rows.add((MALFORMED.status, MALFORMED.code, MALFORMED.title))
    return DESCRIPTION + "\n".join(
        f"| {status} | `{code}` | {title} |" for status, code, title in sorted(rows)
    )


def _sample(refusal: Refusal) -> Problem:
    if isinstance(refusal, int):
        code, title = STATUSES[refusal]
        return Problem(refusal, code, title, f"{title}.")
    if issubclass(refusal, InvalidInput):
        error: InnerloopError = InvalidInput(_SAMPLE_ISSUES)
    else:
        error = refusal(f"{ERRORS[refusal][1]}.")
    problem = problem_of(error)
    assert problem is not None
    return problem


def _response(problems: list[Problem]) -> dict[str, Any]:
    """One response for all problems of a status."""
    first = problems[0]
    schema = schemas.InvalidInputProblem if first.issues else schemas.Problem
    content = {
        "schema": {"$ref": f"#/components/schemas/{schema.__name__}"},
        "examples": {
            problem.code: {"value": problem.body(examples.REQUEST_ID)} for problem in problems
        },
    }
    headers = {
        name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS if name in first.headers
    }
    return {
        "description": "; ".join(problem.title for problem in problems),
        "content": {MEDIA_TYPE: content},
        "headers": headers,
    }


def _file(description: str) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary", "description": description}
    return {tensors.MEDIA_TYPE: {"schema": schema}}


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add the schemas of problems and of tensors' metadata, and the headers of all."""
    _, more = models_json_schema(
        [
            (schemas.Problem, "serialization"),
            (schemas.InvalidInputProblem, "serialization"),
            *((form, "validation") for form in tensors.FORMS.values()),
        ],
        ref_template="#/components/schemas/{model}",
    )
    components = document["components"]
    components["schemas"] = dict(sorted((components["schemas"] | more["$defs"]).items()))
    components["headers"] = _HEADERS
    components["parameters"] = {"X-Request-ID": _REQUEST_ID}
    for operation in chain.from_iterable(path.values() for path in document["paths"].values()):
        parameters = operation.setdefault("parameters", [])
        for parameter in parameters:
            _drop_null(parameter["schema"])
        parameters.append({"$ref": "#/components/parameters/X-Request-ID"})
        for response in operation["responses"].values():
            headers = response.setdefault("headers", {})
            headers["X-Request-ID"] = {"$ref": "#/components/headers/X-Request-ID"}
    return document


def _drop_null(schema: dict[str, Any]) -> None:
    """A parameter is there or is not, where Python's None stands for one that is not."""
    choices = [choice for choice in schema.pop("anyOf", []) if choice != {"type": "null"}]
    for choice in choices:
        schema.update(choice)
