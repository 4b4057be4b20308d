"""Bodies of tensors: safetensors in place of JSON, for callers who send much.

A request holds the tensors `support` (M, *input_shape) and `query` (Q, *input_shape), F32 or U8,
and everything else as JSON in the entry `request` of its metadata. An answer holds `probabilities`
(Q, N) and `outlier` (Q,), and everything else as JSON in the entry `answer`.
"""

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import safetensors
import safetensors.numpy
from fastapi import Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.api import schemas
from app.api.issues import MOST_ISSUES, escape
from app.api.strict_json import parse_json
from app.errors import InvalidInput, InvalidSafetensors, Issue
from app.services import views

MEDIA_TYPE = "application/vnd.safetensors"
REQUEST, ANSWER = "request", "answer"
"""The entries of the metadata."""
METADATA = "__metadata__"
DTYPES: dict[str, type[np.float32] | type[np.uint8]] = {"F32": np.float32, "U8": np.uint8}
MOST_ITEMS = 16_384
"""Most inputs of a body that are looked at one by one."""


class SafetensorsResponse(Response):
    """Tensors by name, with a header of plain text."""

    media_type = MEDIA_TYPE


@dataclass(frozen=True)
class Row:
    """One input of a tensor of inputs."""

    array: NDArray[Any]

    def view(self) -> views.Input:
        """The input as the use cases take it."""
        return views.ArrayInput(self.array)


Rows = list[Any]
"""Rows that stand where the JSON has its inputs, in a body that pydantic does not check again."""


class Form(schemas.RequestBody):
    """What stands in the entry `request` of the metadata."""

    names: ClassVar[tuple[str, ...]]
    """The tensors that there may be."""
    required: ClassVar[str]
    """The one of them that there must be."""

    @classmethod
    def read(cls, raw: bytes) -> BaseModel:
        """The body that says the same in JSON.

        Raises:
            InvalidSafetensors: the bytes are no safetensors file.
            InvalidInput: its tensors are not what they must be.
            ValidationError: what stands beside them is not.
        """
        header = _header(raw)
        form = cls.model_validate(_beside(header.pop(METADATA, {})))
        issues = [
            Issue(f"/{escape(name)}", f"is not a known tensor: send {' and '.join(cls.names)}")
            for name in header
            if name not in cls.names
        ]
        if cls.required not in header:
            issues.append(Issue(f"/{cls.required}", "is required"))
        _refuse([*issues, *_dtype_issues(header)])
        tensors = {name: _array(tensor) for name, tensor in _deserialize(raw)}
        _refuse(list(_row_issues(tensors)))
        _refuse(list(form.misfits({name: len(rows) for name, rows in tensors.items()})))
        return form.body({name: [Row(row) for row in rows] for name, rows in tensors.items()})

    @abstractmethod
    def body(self, tensors: Mapping[str, Rows]) -> BaseModel:
        """The body of these inputs that says the same in JSON; it is checked already."""

    def misfits(self, rows: Mapping[str, int]) -> Iterable[Issue]:  # noqa: ARG002
        """What of this does not fit the number of rows of each tensor."""
        return ()


class TensorSession(schemas.SessionSettings, Form):
    """What is said of a new session beside its tensors `support` and, if it asks, `query`."""

    names = ("support", "query")
    required = "support"

    labels: Annotated[list[schemas.Label], Field(min_length=1)]
    """The label of each row of `support`."""

    def body(self, tensors: Mapping[str, Rows]) -> schemas.NewSession:
        """As `Form.body`."""
        support = [
            schemas.Example.model_construct(input=row, label=label)
            for row, label in zip(tensors["support"], self.labels, strict=True)
        ]
        said = {name: getattr(self, name) for name in schemas.SessionSettings.model_fields}
        return schemas.NewSession.model_construct(
            **said, support=support, query=tensors.get("query"), top=None
        )

    def misfits(self, rows: Mapping[str, int]) -> Iterable[Issue]:
        """As `Form.misfits`."""
        count = len(self.labels)
        if count != rows["support"]:
            yield Issue("/labels", f"has {count} labels for {rows['support']} rows of `support`")


class TensorQuery(Form):
    """What is said of a query beside its tensor `query`: nothing; the entry may be left out."""

    names = ("query",)
    required = "query"

    def body(self, tensors: Mapping[str, Rows]) -> schemas.NewQuery:
        """As `Form.body`."""
        return schemas.NewQuery.model_construct(query=tensors["query"], top=None)


FORMS: dict[type[BaseModel], type[Form]] = {
    schemas.NewSession: TensorSession,
    schemas.NewQuery: TensorQuery,
}
"""The bodies that may come as tensors, by their schemas in JSON."""


def session_answer(session: views.SessionView) -> bytes:
    """A session, with its predictions as tensors."""
    body = schemas.Session.model_validate(session).model_dump(mode="json", exclude={"predictions"})
    return _file(body, session.predictions or [])


def predictions_answer(answer: views.Predictions) -> bytes:
    """Predictions as tensors, with the labels of their columns."""
    body = schemas.PredictionList.model_validate(answer).model_dump(mode="json", exclude={"data"})
    return _file(body | {"labels": list(answer.data[0].probabilities)}, answer.data)


def _file(answer: dict[str, Any], data: Sequence[views.Prediction]) -> bytes:
    tensors = {}
    if data:
        rows = [list(prediction.probabilities.values()) for prediction in data]
        tensors["probabilities"] = np.array(rows, np.float32)
        outliers = [prediction.outlier for prediction in data]
        if None not in outliers:
            tensors["outlier"] = np.array(outliers, np.float32)
    text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return safetensors.numpy.save(tensors, {ANSWER: text})


def _refuse(issues: Sequence[Issue]) -> None:
    if issues:
        raise InvalidInput(issues[:MOST_ISSUES])


def _header(raw: bytes) -> dict[str, Any]:
    """What a file says of its tensors, by name, and its metadata."""
    size = int.from_bytes(raw[:8], "little")
    try:
        header = parse_json(raw[8 : 8 + size])
    except HTTPException as error:
        raise InvalidSafetensors(f"The body's header is no JSON. {error.detail}") from error
    if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
        raise InvalidSafetensors("The body's header must be an object of objects.")
    return header


def _beside(metadata: Mapping[str, Any]) -> Any:
    text = metadata.get(REQUEST, "{}")
    if not isinstance(text, str):
        raise InvalidSafetensors("The entries of the metadata must be strings.")
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"))
    except HTTPException as error:
        raise InvalidSafetensors(f"The metadata's entry {REQUEST!r}: {error.detail}") from error


def _deserialize(raw: bytes) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        tensors: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(raw)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise InvalidSafetensors(f"The body is no safetensors file: {error}.") from error
    return tensors


def _dtype_issues(header: Mapping[str, Mapping[str, Any]]) -> Iterable[Issue]:
    for name, tensor in header.items():
        if tensor.get("dtype") not in DTYPES:
            yield Issue(f"/{escape(name)}", "must be of dtype F32, values, or U8, pixels")


def _array(tensor: Mapping[str, Any]) -> NDArray[Any]:
    return np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _row_issues(tensors: Mapping[str, NDArray[Any]]) -> Iterable[Issue]:
    for name, rows in tensors.items():
        if not rows.ndim or not len(rows):
            yield Issue(f"/{name}", "must hold at least one row: the first dimension counts inputs")
        elif len(rows) > MOST_ITEMS:
            yield Issue(f"/{name}", f"must hold at most {MOST_ITEMS} rows")
