"""Bodies of tensors: safetensors in place of JSON, for callers who send much.

A request holds the tensors `support` (M, *input_shape) and `query` (Q, *input_shape), F32 or U8,
and everything else as JSON in the entry `request` of its metadata. An answer holds `probabilities`
(Q, N) and `outlier` (Q,), and everything else as JSON in the entry `answer`. Other entries, which
libraries add, are not looked at.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import safetensors
import safetensors.numpy
from fastapi import Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.api import schemas
from app.api.checks import MOST_DIMENSIONS
from app.api.issues import MOST_ISSUES, escape
from app.api.oversized import MOST_ITEMS, refuse_oversized
from app.api.strict_json import parse_json
from app.errors import InvalidInput, InvalidSafetensors, Issue
from app.services import views

MEDIA_TYPE = "application/vnd.safetensors"
REQUEST, ANSWER = "request", "answer"
"""The entries of the metadata."""
METADATA = "__metadata__"
DTYPES: dict[str, type[np.float32] | type[np.uint8]] = {"F32": np.float32, "U8": np.uint8}


class SafetensorsResponse(Response):
    """Tensors by name, with a header of plain text."""

    media_type = MEDIA_TYPE


@dataclass(frozen=True)
class Sent:
    """A safetensors file as it came: what it says beside its tensors, and these by name."""

    said: Any
    tensors: Mapping[str, Mapping[str, Any]]
    """Each with its `dtype`, `shape` and `data`."""

    @classmethod
    def of(cls, raw: bytes) -> Self:
        """Read a file.

        Raises:
            InvalidSafetensors: it is none.
            InvalidInput: it has far too many tensors.
        """
        size = int.from_bytes(raw[:8], "little")
        if not 0 < size <= len(raw) - 8:
            raise InvalidSafetensors("The body ends before its header: send a safetensors file.")
        header = _json(raw[8 : 8 + size], "header")
        refuse_oversized(header)
        try:
            tensors = dict(safetensors.deserialize(raw))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise InvalidSafetensors(f"The body is no safetensors file: {error}.") from error
        metadata = header.get(METADATA) or {}  # safetensors takes null for none
        text = metadata.get(REQUEST, "{}")
        return cls(_json(text.encode(), f"metadata's entry {REQUEST!r}"), tensors)

    def issues(self) -> list[Issue]:
        """Which tensors are no rows of inputs."""
        return [
            Issue(f"/{name}", issue)
            for name, tensor in sorted(self.tensors.items())
            if (issue := _issue(tensor["dtype"], tensor["shape"]))
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors, which have no issues."""
        return {
            name: np.frombuffer(it["data"], DTYPES[it["dtype"]]).reshape(it["shape"])
            for name, it in self.tensors.items()
        }

    def canonical(self) -> Any:
        """The same for the same tensors, in whichever order a library wrote them."""
        digests = {
            name: [it["dtype"], it["shape"], sha256(it["data"]).hexdigest()]
            for name, it in self.tensors.items()
        }
        return {REQUEST: self.said, "tensors": digests}


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
    def read(cls, sent: Sent) -> BaseModel:
        """The body that says the same in JSON.

        Raises:
            InvalidInput: the tensors are not what they must be.
            ValidationError: what stands beside them is not.
        """
        refuse_oversized(sent.said)
        form = cls.model_validate(sent.said)
        _refuse(
            [
                Issue(f"/{escape(name)}", f"is not a known tensor: send {' and '.join(cls.names)}")
                for name in sent.tensors
                if name not in cls.names
            ]
        )
        if cls.required not in sent.tensors:
            _refuse([Issue(f"/{cls.required}", "is required")])
        _refuse(sent.issues())
        return form.body({name: [Row(row) for row in rows] for name, rows in sent.arrays().items()})

    @abstractmethod
    def body(self, tensors: Mapping[str, Rows]) -> BaseModel:
        """The body of these inputs that says the same in JSON; it is checked already.

        Raises:
            InvalidInput: this does not fit the tensors.
        """


class TensorSession(schemas.SessionSettings, Form):
    """What is said of a new session beside its tensors `support` and, if it asks, `query`."""

    names = ("support", "query")
    required = "support"

    labels: Annotated[list[schemas.Label], Field(min_length=1)]
    """The label of each row of `support`."""

    def body(self, tensors: Mapping[str, Rows]) -> schemas.NewSession:
        """As `Form.body`."""
        count, rows = len(self.labels), len(tensors["support"])
        if count != rows:
            _refuse([Issue("/labels", f"has {count} labels for {rows} rows of `support`")])
        support = [
            schemas.Example.model_construct(input=row, label=label)
            for row, label in zip(tensors["support"], self.labels, strict=True)
        ]
        said = {name: getattr(self, name) for name in schemas.SessionSettings.model_fields}
        return schemas.NewSession.model_construct(
            **said, support=support, query=tensors.get("query"), top=None
        )


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
    plain = replace(session, predictions=None)
    body = schemas.Session.model_validate(plain).model_dump(mode="json", exclude={"predictions"})
    return _file(body, session.predictions or [])


def predictions_answer(answer: views.Predictions) -> bytes:
    """Predictions as tensors, with the labels of their columns."""
    plain = replace(answer, data=[])
    body = schemas.PredictionList.model_validate(plain).model_dump(mode="json", exclude={"data"})
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


def _json(raw: bytes, place: str) -> Any:
    try:
        return parse_json(raw)
    except HTTPException as error:
        raise InvalidSafetensors(f"The body's {place} is no JSON object. {error.detail}") from error


def _issue(dtype: str, shape: Sequence[int]) -> str | None:
    """What keeps a tensor from being rows of inputs."""
    if dtype not in DTYPES:
        return "must be of dtype F32, values, or U8, pixels"
    if not shape or not shape[0]:
        return "must hold at least one row: the first dimension counts inputs"
    if shape[0] > MOST_ITEMS:
        return f"must hold at most {MOST_ITEMS} rows"
    if len(shape) > MOST_DIMENSIONS or 0 in shape:
        return f"must have at most {MOST_DIMENSIONS} dimensions, none of them empty"
    return None
