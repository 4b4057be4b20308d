"""What the routes work with: built once for a server, handed to each request in its state."""

from dataclasses import dataclass
from typing import Annotated, Self, TypedDict

from fastapi import Depends, Request

from app.api.lifecycle import Lifecycle
from app.api.metrics import Metrics
from app.database import Database
from app.engine import Engine
from app.errors import DatabaseUnavailable
from app.registry import Registry
from app.services import ServedModels, SessionService
from app.settings import Settings


@dataclass(frozen=True)
class Resources:
    """The floors below, put together. Nothing has connected or started yet."""

    settings: Settings
    registry: Registry
    database: Database
    engine: Engine
    models: ServedModels
    sessions: SessionService

    @classmethod
    def build(cls, settings: Settings) -> Self:
        """Put the real floors together.

        Raises:
            ValueError: the database URL is none.
        """
        registry = Registry(settings.models_dir)
        engine = Engine(registry, settings)
        return cls.of(settings, registry, Database(settings.database_url), engine)

    @classmethod
    def of(cls, settings: Settings, registry: Registry, database: Database, engine: Engine) -> Self:
        """Put given floors together."""
        models = ServedModels(registry, engine)
        sessions = SessionService(database, engine, models, settings)
        return cls(settings, registry, database, engine, models, sessions)


class State(TypedDict):
    """What the lifespan gives to every request, as `request.state`."""

    resources: Resources
    lifecycle: Lifecycle
    metrics: Metrics


async def _resources(request: Request) -> Resources:
    resources: Resources = request.state.resources
    return resources


async def _sessions(request: Request) -> SessionService:
    lifecycle: Lifecycle = request.state.lifecycle
    if not lifecycle.migrated:
        raise DatabaseUnavailable("The database has not answered yet: try again.")
    resources: Resources = request.state.resources
    return resources.sessions


ResourcesOf = Annotated[Resources, Depends(_resources)]
Sessions = Annotated[SessionService, Depends(_sessions)]
