from collections.abc import Iterator

import pytest

from app.database import Database
from app.services import ServedModels, SessionService
from app.settings import Settings
from tests.fakes import FakeClock, FakeEngine, FakeRegistry


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings() -> Settings:
    return Settings(default_model="values", idempotency_seconds=600)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def service(database, engine, settings, clock) -> SessionService:
    models = ServedModels(FakeRegistry(), engine)
    return SessionService(database, engine, models, settings, clock)


@pytest.fixture
def other_engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def other_service(
    database, database_url, other_engine, settings, clock
) -> Iterator[SessionService]:
    """Another replica: its own connections and its own device, on the same database."""
    connections = Database(database_url)
    models = ServedModels(FakeRegistry(), other_engine)
    yield SessionService(connections, other_engine, models, settings, clock)
    connections.close()
