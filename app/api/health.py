"""Probes, for whoever starts and stops the server."""

from fastapi import APIRouter, Request

from app.api import schemas
from app.api.lifecycle import Lifecycle
from app.api.openapi import operation_id, refusals
from app.api.resources import ResourcesOf
from app.errors import DatabaseUnavailable, Draining, EngineFailed, NotReady

router = APIRouter(prefix="/health", tags=["operations"], generate_unique_id_function=operation_id)


@router.get("/live", summary="Is it alive?", responses=refusals((EngineFailed,)))
async def live(resources: ResourcesOf) -> schemas.Health:
    """200 as long as a restart would not help."""
    _check_engine(resources)
    return schemas.Health(status="live")


@router.get(
    "/ready",
    summary="Can it take requests?",
    responses=refusals((Draining, DatabaseUnavailable, NotReady, EngineFailed)),
)
def ready(request: Request, resources: ResourcesOf) -> schemas.Health:
    """200 once the database answers and the device is warm, until the server shuts down."""
    lifecycle: Lifecycle = request.state.lifecycle
    if lifecycle.draining:
        raise Draining("This server is shutting down.")
    _check_engine(resources)
    if not lifecycle.migrated:
        raise DatabaseUnavailable("The database has not answered yet: the log says why.")
    resources.database.ping()
    if not resources.engine.ready:
        raise NotReady("The device is warming up: ask again.")
    return schemas.Health(status="ready")


def _check_engine(resources: ResourcesOf) -> None:
    if resources.engine.failed:
        raise EngineFailed("The device has failed: restart the server.")
