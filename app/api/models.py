"""/v1/models: what a session can start from."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.api import schemas
from app.api.openapi import ANY, operation_id, refusals
from app.api.resources import Resources, ResourcesOf
from app.api.routing import StrictRoute
from app.errors import ModelNotFound

router = APIRouter(
    prefix="/v1/models",
    tags=["models"],
    route_class=StrictRoute,
    generate_unique_id_function=operation_id,
)


@router.get("", summary="List models", responses=refusals(ANY))
def list_models(resources: ResourcesOf) -> schemas.ModelList:
    """The newest version of every model, by name."""
    models = [_model(resources, name) for name in resources.models.names()]
    return schemas.ModelList(data=models)


@router.get("/{name}", summary="Read a model", responses=refusals(ANY, (ModelNotFound,)))
def read_model(
    name: Annotated[str, Path(description="The model's name.", examples=["omniglot"])],
    resources: ResourcesOf,
) -> schemas.Model:
    """The newest version of one model."""
    return _model(resources, name)


def _model(resources: Resources, name: str) -> schemas.Model:
    card, versions = resources.models.newest(name), resources.models.versions(name)
    return schemas.Model.of(card, versions, resources.settings)
