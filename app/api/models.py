"""/v1/models: what a session can start from."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.api import schemas
from app.api.openapi import ANY, operation_id, refusals
from app.api.resources import ResourcesOf
from app.api.routing import StrictRoute
from app.errors import ModelNotFound
from app.registry import Card

router = APIRouter(
    prefix="/v1/models",
    tags=["models"],
    route_class=StrictRoute,
    generate_unique_id_function=operation_id,
)


@router.get("", summary="List models", responses=refusals(ANY))
def list_models(resources: ResourcesOf) -> schemas.ModelList:
    """The newest version of every model, by name."""
    cards = [card for card in resources.registry.cards() if _is_served(card)]
    return schemas.ModelList(data=[_model(resources, card) for card in cards])


@router.get("/{name}", summary="Read a model", responses=refusals(ANY, (ModelNotFound,)))
def read_model(
    name: Annotated[str, Path(description="The model's name.", examples=["omniglot"])],
    resources: ResourcesOf,
) -> schemas.Model:
    """The newest version of one model."""
    card = resources.registry.latest(name)
    if not _is_served(card):
        raise ModelNotFound(f"{name!r} is a model of {card.task}: it is not served.")
    return _model(resources, card)


def _is_served(card: Card) -> bool:
    """Whether the engine could have taken it: one may have been added since the server started."""
    return card.task == "classification"


def _model(resources: ResourcesOf, card: Card) -> schemas.Model:
    return schemas.Model.of(card, resources.registry.versions(card.name), resources.settings)
