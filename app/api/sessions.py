"""/v1/sessions: make a personal model, query it, add to it, measure it, take it away."""

import hashlib
import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from app.api import schemas, tensors
from app.api.auth import Owner
from app.api.body import BodyRequest
from app.api.examples import SESSION_ID
from app.api.issues import parameter_issue
from app.api.openapi import (
    ANY,
    BODY,
    DEVICE,
    LOCATION,
    STORED,
    operation_id,
    refusals,
    tensor_answer,
    tensor_body,
)
from app.api.resources import Sessions
from app.api.routing import StrictRoute
from app.database import SESSION_ID_PATTERN
from app.errors import (
    Contention,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidInput,
    InvalidSafetensors,
    ModelNotFound,
    SessionNotFound,
)
from app.registry.card import NAME_PATTERN
from app.services import views


async def _idempotency(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=r"^[!-~]{1,255}$",
            description="A token of the caller's choice, 1 to 255 visible ASCII characters. The "
            "same request with the same key gets the first answer again, and changes nothing.",
        ),
    ] = None,
) -> views.Idempotency | None:
    if idempotency_key is None:
        return None
    if len(request.headers.getlist("Idempotency-Key")) > 1:
        raise InvalidInput([parameter_issue("Idempotency-Key", "must not be given twice")])
    assert isinstance(request, BodyRequest)
    told = f"{request.method} {request.url.path}\n{request.canonical()}"
    return views.Idempotency(idempotency_key, hashlib.sha256(told.encode()).hexdigest())


async def _tensors(request: Request) -> bool:
    assert isinstance(request, BodyRequest)
    return request.media_type == tensors.MEDIA_TYPE


def _decimal(text: object) -> object:
    """Digits alone: pydantic would take ' 20 ', '2_0' and '20.0' as well."""
    if isinstance(text, str) and re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    if isinstance(text, int):  # the default
        return text
    raise PydanticCustomError("int_type", "must be an integer")


Idempotency = Annotated[views.Idempotency | None, Depends(_idempotency)]
Tensors = Annotated[bool, Depends(_tensors)]
"""Whether the body came as tensors, and the answer shall go so."""
SessionId = Annotated[str, Path(description="The session's id.", examples=[SESSION_ID])]

router = APIRouter(
    prefix="/v1/sessions",
    tags=["sessions"],
    route_class=StrictRoute,
    generate_unique_id_function=operation_id,
)


@router.post(
    "",
    summary="Create a session",
    status_code=201,
    response_model=schemas.Session,
    responses={
        201: {"headers": LOCATION, **tensor_answer(schemas.Session)},
        **refusals(
            ANY,
            BODY,
            DEVICE,
            (InvalidSafetensors, ModelNotFound, IdempotencyConflict, DatabaseUnavailable),
        ),
    },
    openapi_extra=tensor_body(tensors.TensorSession),
)
async def create_session(
    body: schemas.NewSession,
    sessions: Sessions,
    owner: Owner,
    idempotency: Idempotency,
    as_tensors: Tensors,
    response: Response,
) -> views.SessionView | Response:
    """Adapt a model to labelled examples, predict the `query`, and keep the adaptation.

    What is answered with 201 is durable.
    """
    session = await sessions.create(owner, body.view(), body.top, idempotency)
    location = {"Location": f"/v1/sessions/{session.id}"}
    if as_tensors:
        return tensors.SafetensorsResponse(tensors.session_answer(session), 201, location)
    response.headers.update(location)
    return session


@router.post(
    "/{session_id}/predictions",
    summary="Predict",
    response_model=schemas.PredictionList,
    responses={
        200: tensor_answer(schemas.PredictionList),
        **refusals(ANY, BODY, STORED, DEVICE, (InvalidSafetensors, DatabaseUnavailable)),
    },
    openapi_extra=tensor_body(tensors.TensorQuery),
)
async def predict(
    session_id: SessionId,
    body: schemas.NewQuery,
    sessions: Sessions,
    owner: Owner,
    as_tensors: Tensors,
) -> views.Predictions | Response:
    """Predict inputs by the session's current revision, each on its own."""
    answer = await sessions.predict(owner, session_id, body.view(), body.top)
    return tensors.SafetensorsResponse(tensors.predictions_answer(answer)) if as_tensors else answer


@router.post(
    "/{session_id}/examples",
    summary="Add examples",
    response_model=schemas.Session,
    responses=refusals(
        ANY, BODY, STORED, DEVICE, (IdempotencyConflict, DatabaseUnavailable, Contention)
    ),
)
async def add_examples(
    session_id: SessionId,
    body: schemas.MoreExamples,
    sessions: Sessions,
    owner: Owner,
    idempotency: Idempotency,
) -> views.SessionView:
    """Make the next revision: adapted again from θ, on all examples, the old ones and these."""
    return await sessions.append(owner, session_id, body.view(), idempotency)


@router.post(
    "/{session_id}/evaluations",
    summary="Evaluate",
    response_model=schemas.Evaluation,
    responses=refusals(ANY, BODY, STORED, DEVICE, (DatabaseUnavailable,)),
)
async def evaluate(
    session_id: SessionId, body: schemas.NewEvaluation, sessions: Sessions, owner: Owner
) -> views.Evaluation:
    """Measure the session's current revision on labelled examples, without learning them."""
    return await sessions.evaluate(owner, session_id, body.view())


@router.get(
    "/{session_id}/weights",
    summary="Download the weights",
    response_class=tensors.SafetensorsResponse,
    responses=refusals(ANY, STORED, DEVICE, (DatabaseUnavailable,)),
)
async def read_weights(session_id: SessionId, sessions: Sessions, owner: Owner) -> Response:
    """φ of the current revision as safetensors; its metadata say how to run it elsewhere."""
    weights = await sessions.weights(owner, session_id)
    disposition = f'attachment; filename="{session_id}.safetensors"'
    return tensors.SafetensorsResponse(
        weights.content, headers={"Content-Disposition": disposition}
    )


@router.get(
    "/{session_id}",
    summary="Read a session",
    response_model=schemas.Session,
    responses=refusals(ANY, STORED, (DatabaseUnavailable,)),
)
async def read_session(
    session_id: SessionId, sessions: Sessions, owner: Owner
) -> views.SessionView:
    """The session at its current revision; `predictions` is null."""
    return await sessions.get(owner, session_id)


@router.delete(
    "/{session_id}",
    summary="Delete a session",
    status_code=204,
    response_class=Response,
    responses=refusals(ANY, (SessionNotFound, DatabaseUnavailable)),
)
async def delete_session(session_id: SessionId, sessions: Sessions, owner: Owner) -> None:
    """Delete a session with all that was kept of it, expired or not."""
    await sessions.delete(owner, session_id)


@router.get(
    "",
    summary="List sessions",
    response_model=schemas.SessionList,
    responses=refusals(ANY, (DatabaseUnavailable,)),
)
async def list_sessions(
    sessions: Sessions,
    owner: Owner,
    limit: Annotated[
        int,
        BeforeValidator(_decimal),
        Query(ge=1, le=100, description="Most sessions of a page."),
    ] = 20,
    after: Annotated[
        str | None,
        Query(pattern=SESSION_ID_PATTERN, description="Id of the last session of the page before."),
    ] = None,
    model: Annotated[
        str | None, Query(pattern=NAME_PATTERN, description="Only sessions of this model.")
    ] = None,
) -> views.Page:
    """The sessions that have not expired, newest first. Sessions made meanwhile move no page."""
    return await sessions.list(owner, limit, after, model)
