"""The databases that the integration tests run on: a SQLite file, and a real PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.database import Database
from tests.postgresql import empty_schema, postgresql_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL."""
    with postgresql_server() as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql: str) -> Iterator[str]:
    """URL of a fresh, empty schema, dropped after the test."""
    with empty_schema(postgresql) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a fresh database without tables; a test that takes it runs once on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'innerloop.db'}"
    return request.getfixturevalue("postgresql_url")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    with closing(Database(database_url)) as database:
        database.migrate()
        yield database
