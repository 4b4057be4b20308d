"""The database as the floors above see it: transactions, migration, and whether it answers."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, exc, exists, select

from app.database.engines import make_engines
from app.database.migrations import MigrationError, upgrade
from app.database.tables import sessions
from app.errors import DatabaseUnavailable

# What a statement of ours got wrong. Any other error of the driver is the database's own.
_OUR_FAULTS = (
    exc.IntegrityError,
    exc.ProgrammingError,
    exc.DataError,
    exc.InternalError,
    exc.NotSupportedError,
)

# Alembic keeps its context in module globals: one migration at a time in a process.
_migrating = threading.Lock()


class Database:
    """A pool of connections to SQLite or PostgreSQL, safe to use from any thread.

    Connections open as they are needed; `pool_size` is the most that are open at once.

    Raises:
        ValueError: the URL is none, or of a database that is not supported.
    """

    def __init__(self, url: str, pool_size: int = 16):
        self._engines = make_engines(url, pool_size)
        self._migrated = False

    def migrate(self) -> None:
        """Bring the tables up to date; a SQLite file and its folder are made where missing.

        Several processes may start together: one migrates, the others wait for it and find nothing
        left to do.

        Raises:
            DatabaseUnavailable: it does not answer, its folder cannot be made, or a newer version
                of Innerloop has migrated it.
        """
        if self._engines.file is not None:
            folder = self._engines.file.parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseUnavailable(
                    f"cannot make the folder {folder} for the database: {error.strerror}"
                ) from error
        with _migrating, self.transaction() as connection:
            try:
                upgrade(connection)
            except MigrationError as error:
                raise DatabaseUnavailable(str(error)) from error
        self._migrated = True

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Begin a transaction that may write: it commits after the block, rolls back on an error.

        What is committed survives a power loss. On SQLite one runs at a time, so keep it short.

        Raises:
            DatabaseUnavailable: a connection or a lock could not be had, or was lost. If lost while
                committing, nobody can tell whether the transaction took place.
        """
        self._check_file()
        with _begin(self._engines.writing) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Begin a transaction that only reads: all its statements see one and the same snapshot.

        Raises:
            DatabaseUnavailable: the connection could not be had or was lost.
        """
        with _begin(self._engines.reading) as connection:
            yield connection

    @contextmanager
    def single(self) -> Iterator[Connection]:
        """Hold a connection for one statement that reads, which needs no transaction.

        Nothing stops a statement that writes, and nothing would undo it.

        Raises:
            DatabaseUnavailable: the connection could not be had or was lost.
        """
        with _begin(self._engines.single) as connection:
            yield connection

    def ping(self) -> None:
        """Read from a table, so that success means that requests can be served.

        Raises:
            DatabaseUnavailable: it does not answer, or has no tables yet.
        """
        self._check_file()
        try:
            with self.single() as connection:
                connection.scalar(select(exists().select_from(sessions)))
        except exc.ProgrammingError as error:
            raise DatabaseUnavailable("The database has no tables yet: migrate it.") from error

    def cause(self, error: DatabaseUnavailable) -> str:
        """What the driver said, for the log: it may name files, hosts and users."""
        cause = error.__cause__
        said = str(getattr(cause, "orig", cause) or "")
        return f"{self._engines.file}: {said}" if self._engines.file and said else said

    def _check_file(self) -> None:
        """SQLite goes on writing, for nobody, into a file that was deleted."""
        file = self._engines.file
        if self._migrated and file is not None and not file.exists():
            raise DatabaseUnavailable(f"The database's file {file} is gone: restart the server.")

    def close(self) -> None:
        """Close the pooled connections."""
        self._engines.writing.dispose()


@contextmanager
def _begin(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except _OUR_FAULTS:
        raise
    except exc.TimeoutError as error:
        raise DatabaseUnavailable("Every database connection is in use: try again.") from error
    except (exc.DBAPIError, sqlite3.Error) as error:  # the latter where a transaction begins
        # The driver's own words may name hosts and users: they go to the log with the cause only.
        raise DatabaseUnavailable("The database does not answer: try again.") from error
