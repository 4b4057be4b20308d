"""From a database URL to SQLAlchemy engines that begin transactions the right way.

Each database gets three views of one connection pool: for writing, for reading, and for a single
statement that reads. A reading transaction sees one snapshot from its first statement to its last,
and cannot write. A single statement is a snapshot by itself, and needs no BEGIN before it and no
COMMIT after it.

SQLite: a writing transaction takes the write lock when it begins. One that first reads and then
writes would otherwise fail with 'database is locked' where another wrote in between, and no waiting
helps.
"""

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

BUSY_SECONDS = 10.0
POOL_WAIT_SECONDS = 10.0

_POSTGRESQL = {"postgres", "postgresql", "postgresql+psycopg"}
_SQLITE = {"sqlite", "sqlite+pysqlite"}

_BEGIN_WRITING = ("PRAGMA query_only = OFF", "BEGIN IMMEDIATE")

# libpq's own names. What the URL says of these wins.
_POSTGRESQL_TIMEOUTS = {"connect_timeout": "5", "tcp_user_timeout": "15000"}


@dataclass(frozen=True)
class Engines:
    """Three views of one pool. `file` is SQLite's, None on PostgreSQL."""

    writing: Engine
    reading: Engine
    single: Engine
    file: Path | None


def make_engines(url: str, pool_size: int) -> Engines:
    """Build the engines of a URL. Nothing connects yet.

    Raises:
        ValueError: the URL is none, or of a database that is not supported. Of the URL, the message
            holds the scheme only.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ValueError(
            "the database URL does not parse: write sqlite:///path/to/file.db"
            " or postgresql+psycopg://user:password@host/name"
        ) from None
    if parsed.drivername in _SQLITE:
        return _sqlite(parsed, pool_size)
    if parsed.drivername in _POSTGRESQL:
        return _postgresql(parsed, pool_size)
    raise ValueError(
        f"the database scheme {parsed.drivername!r} is not supported:"
        " use sqlite or postgresql+psycopg"
    )


def _postgresql(url: URL, pool_size: int) -> Engines:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg", query={**_POSTGRESQL_TIMEOUTS, **url.query}),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,
    )
    reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    single = engine.execution_options(isolation_level="AUTOCOMMIT")
    return Engines(engine, reading, single, file=None)


def _sqlite(url: URL, pool_size: int) -> Engines:
    path = url.database
    if not path or path == ":memory:" or path.startswith("file:"):
        raise ValueError(
            "an in-memory or file: SQLite database is not supported, as each thread would see its"
            " own: write sqlite:///path/to/file.db"
        )
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    reading = engine.execution_options(sqlite_begin=("PRAGMA query_only = ON", "BEGIN"))
    single = engine.execution_options(sqlite_begin=())
    return Engines(engine, reading, single, file=Path(path).absolute())


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing of its own
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
    connection.execute("PRAGMA foreign_keys = ON")
    _use_write_ahead_log(connection)
    # In WAL mode only FULL makes a commit survive a power loss.
    connection.execute("PRAGMA synchronous = FULL")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Readers and the writer do not wait for each other. The file remembers the mode."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # Two that switch a new file at once get this whatever the busy timeout.
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    statements = connection.get_execution_options().get("sqlite_begin", _BEGIN_WRITING)
    if statements:
        with closing(connection.connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)
