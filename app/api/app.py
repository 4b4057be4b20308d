"""The application factory: routes, middleware, and what lives as long as the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from app import __version__
from app.api import health, metrics, models, problems, sessions
from app.api.lifecycle import Lifecycle
from app.api.metrics import Metrics
from app.api.middleware import Observer
from app.api.openapi import DocumentedAPI, description
from app.api.resources import Resources, State
from app.engine import FIGURES
from app.errors import DatabaseUnavailable
from app.settings import Settings

MIGRATION_RETRY_SECONDS = 1.0

_log = structlog.get_logger("app.api")


def create_app(settings: Settings, resources: Resources | None = None) -> FastAPI:
    """Make the application. Nothing is built, connected or started before its lifespan begins.

    Args:
        settings: the settings of this server.
        resources: ready-made parts, for tests; built from the settings by default. The lifespan
            starts and ends them.
    """
    figures = Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        parts = Resources.build(settings) if resources is None else resources
        lifecycle = Lifecycle()
        figures.watch(
            "innerloop_http",
            lambda: {"requests_in_flight": lifecycle.in_flight},
            {"requests_in_flight": "Requests that are not answered yet."},
        )
        figures.watch("innerloop_engine", parts.engine.stats, FIGURES)
        parts.engine.start()
        upkeep = asyncio.create_task(_keep_up(parts, lifecycle))
        try:
            yield State(resources=parts, lifecycle=lifecycle, metrics=figures)
        finally:
            await lifecycle.drain(parts.engine.stop, settings.drain_seconds)
            upkeep.cancel()
            with suppress(asyncio.CancelledError):
                await upkeep
            parts.sessions.close()
            parts.database.close()

    app = DocumentedAPI(
        title="Innerloop",
        version=__version__,
        summary="Personal models from a handful of labelled examples.",
        description=description(),
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Observer, metrics=figures)
    problems.install(app)
    for router in (sessions.router, models.router, health.router, metrics.router):
        # One flat list: an included router would match every path twice.
        app.router.routes.extend(router.routes)
    app.add_api_route("/", _read_root, include_in_schema=False)
    return app


async def _read_root() -> RedirectResponse:
    return RedirectResponse("/docs")


async def _keep_up(parts: Resources, lifecycle: Lifecycle) -> None:
    """Bring the database up to date as soon as it answers, then sweep again and again."""
    while not lifecycle.migrated:
        try:
            await asyncio.to_thread(parts.database.migrate)
            lifecycle.migrated = True
        except DatabaseUnavailable as error:
            _log.warning(
                "the database is not available",
                reason=str(error),
                cause=parts.database.cause(error),
            )
            await asyncio.sleep(MIGRATION_RETRY_SECONDS)
    while True:
        try:
            await parts.sessions.sweep()
        except Exception:  # the next sweep may do better
            _log.exception("the sweep failed")
        await asyncio.sleep(parts.settings.sweep_seconds)
