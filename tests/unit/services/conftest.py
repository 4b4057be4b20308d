import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database import Database
from app.services import ServedModels, SessionService
from app.settings import Settings
from tests.fakes import FakeClock, FakeEngine, FakeRegistry


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with empty tables, to copy: migrating anew for each test is slow."""
    path = tmp_path_factory.mktemp("migrated") / "innerloop.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    path = shutil.copy(migrated, tmp_path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def models(registry, engine) -> ServedModels:
    return ServedModels(registry, engine)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def replica(database, engine, models, settings, clock) -> SessionService:
    """Another replica of the service, on the same database."""
    return SessionService(database, engine, models, settings, clock)


@pytest.fixture
def settings() -> Settings:
    """Small limits, so that a test can pass them."""
    return Settings(
        default_model="values",
        max_image_pixels=10_000,
        max_classes=4,
        max_support=6,
        max_query=3,
        max_steps=4,
        max_metadata_bytes=64,
        max_ttl_seconds=3600,
        idempotency_seconds=600,
        deadline_seconds=5,
    )


@pytest.fixture
def service(database, engine, models, settings, clock) -> SessionService:
    return SessionService(database, engine, models, settings, clock)
