import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, InternalError

from app.database import Database, SessionRepository, engines
from app.errors import DatabaseUnavailable

# Adds one session, then dies by SIGKILL before or after the commit.
DIE = """
import os, signal, sys
from datetime import UTC, datetime
from app.database import Database, SessionRecord, SessionRepository

url, session_id, when = sys.argv[1:]
database = Database(url)
record = SessionRecord(
    id=session_id, owner="ann", model="omniglot", model_version=1, theta_sha256="", revision=1,
    task="classification", labels=["a"], shots={"a": 1}, steps=1, support_loss=[1.0, 0.5],
    support_sha256="", created_at=datetime.now(UTC), expires_at=None, metadata={},
)
with database.transaction() as connection:
    SessionRepository(connection).add(record, b"first")
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def sqlite_database(tmp_path):
    with closing(Database(f"sqlite:///{tmp_path}/innerloop.db")) as database:
        database.migrate()
        yield database


def add_and(database, session, then):
    """Adds a session in a transaction, and does one thing more before the commit."""
    with database.transaction() as connection:
        SessionRepository(connection).add(session, b"first")
        then(connection)


def find(database, session):
    with database.reading() as connection:
        return SessionRepository(connection).get(session.owner, session.id)


class TestTransactions:
    def test_an_error_undoes_the_transaction_and_passes_through(self, database, make_session):
        def fail(connection):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            add_and(database, make_session(), fail)
        assert find(database, make_session()) is None

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_what_was_committed_survives_sigkill_and_nothing_else(
        self, database, database_url, make_session, when
    ):
        session_id = make_session().id
        victim = subprocess.run(
            [sys.executable, "-c", DIE, database_url, session_id, when],
            timeout=60,
            capture_output=True,
            check=False,
        )
        assert victim.returncode == -signal.SIGKILL, victim.stderr
        with database.transaction() as connection:
            repository = SessionRepository(connection)
            found = repository.get("ann", session_id)
            blobs = repository.support(session_id)
        assert (found is not None) == (when == "after")
        assert blobs == ([b"first"] if when == "after" else [])

    def test_a_reading_transaction_sees_one_snapshot(self, database, make_session, make_revision):
        record = make_session()
        with database.transaction() as connection:
            SessionRepository(connection).add(record, b"first")
        with database.reading() as connection:
            repository = SessionRepository(connection)
            assert repository.get("ann", record.id).revision == 1
            with database.transaction() as other:
                assert SessionRepository(other).append_revision(record.id, 1, make_revision())
            assert repository.get("ann", record.id).revision == 1
            assert repository.support(record.id) == [b"first"]
        with database.reading() as connection:
            assert SessionRepository(connection).get("ann", record.id).revision == 2

    def test_a_reader_neither_waits_for_a_writer_nor_sees_its_work(self, database, make_session):
        with database.transaction() as writing:
            SessionRepository(writing).add(make_session(), b"first")
            with database.reading() as connection:
                assert SessionRepository(connection).get("ann", make_session().id) is None

    def test_a_reading_transaction_cannot_write_and_its_connection_can_later(
        self, database_url, make_session
    ):
        with closing(Database(database_url, pool_size=1)) as database:
            database.migrate()
            with pytest.raises((DatabaseUnavailable, InternalError)), database.reading() as reader:
                SessionRepository(reader).add(make_session(), b"first")
            assert find(database, make_session()) is None
            add_and(database, make_session(), then=lambda connection: None)
            assert find(database, make_session()) == make_session()

    def test_a_single_statement_sees_what_is_committed_by_then(
        self, database, make_session, make_revision
    ):
        record = make_session()
        add_and(database, record, then=lambda connection: None)
        with database.single() as connection:
            repository = SessionRepository(connection)
            assert repository.get("ann", record.id) == record
            with database.transaction() as other:
                assert SessionRepository(other).append_revision(record.id, 1, make_revision())
            assert repository.get("ann", record.id).revision == 2

    def test_a_connection_serves_single_statements_and_transactions_in_turn(
        self, database_url, make_session
    ):
        record = make_session()
        with closing(Database(database_url, pool_size=1)) as database:
            database.migrate()
            for number in range(1, 4):
                with database.single() as connection:
                    assert SessionRepository(connection).get("ann", make_session(number).id) is None
                add_and(database, make_session(number), then=lambda connection: None)
                with pytest.raises(KeyError):  # rolled back, not committed statement by statement
                    add_and(database, make_session(number + 3), then=lambda connection: {}["no"])
                with database.single() as connection:
                    repository = SessionRepository(connection)
                    assert repository.get("ann", make_session(number).id) == make_session(number)
                    assert repository.get("ann", make_session(number + 3).id) is None
                with database.reading() as connection:
                    assert SessionRepository(connection).support(record.id) == [b"first"]

    def test_threads_that_read_and_then_write_never_fail_on_a_lock(
        self, database, make_session, make_revision
    ):
        record = make_session()
        with database.transaction() as connection:
            SessionRepository(connection).add(record, b"first")

        def work(_):
            for _ in range(8):
                won = False
                while not won:
                    with database.transaction() as connection:
                        repository = SessionRepository(connection)
                        revision = repository.get("ann", record.id).revision
                        won = repository.append_revision(record.id, revision, make_revision())

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        with database.reading() as connection:
            assert SessionRepository(connection).get("ann", record.id).revision == 1 + 4 * 8

    def test_an_error_does_not_quote_what_was_stored(self, database, make_session):
        record = make_session(metadata={"user": "private"}, theta_sha256="private")

        def again(connection):
            SessionRepository(connection).add(record, b"first")

        with pytest.raises(IntegrityError) as failure:
            add_and(database, record, again)
        assert "private" not in str(failure.value)


class TestSqlite:
    def test_every_connection_is_durable_and_keeps_foreign_keys(self, sqlite_database):
        with sqlite_database.reading() as one, sqlite_database.transaction() as two:
            for connection in (one, two):
                pragmas = {
                    name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                    for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                }
                assert pragmas == {
                    "journal_mode": "wal",
                    "synchronous": 2,  # FULL
                    "foreign_keys": 1,
                    "busy_timeout": 10_000,
                }

    def test_the_folder_of_the_file_is_made(self, tmp_path):
        with closing(Database(f"sqlite:///{tmp_path}/deep/down/innerloop.db")) as database:
            database.migrate()
        assert (tmp_path / "deep" / "down" / "innerloop.db").is_file()

    def test_closing_leaves_one_file(self, sqlite_database, tmp_path):
        sqlite_database.close()
        assert [path.name for path in tmp_path.iterdir()] == ["innerloop.db"]

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        database = Database(f"sqlite:///{tmp_path}/file/innerloop.db")
        with pytest.raises(DatabaseUnavailable, match=f"{tmp_path}/file"):
            database.migrate()

    def test_a_file_that_is_no_database_is_unavailable(self, tmp_path):
        (tmp_path / "innerloop.db").write_bytes(b"no database " * 1000)
        database = Database(f"sqlite:///{tmp_path}/innerloop.db")
        with pytest.raises(DatabaseUnavailable):
            database.migrate()

    def test_a_lock_that_is_held_too_long_is_unavailable(self, tmp_path, monkeypatch):
        monkeypatch.setattr(engines, "BUSY_SECONDS", 0.05)
        with (
            closing(Database(f"sqlite:///{tmp_path}/innerloop.db")) as database,
            closing(sqlite3.connect(tmp_path / "innerloop.db", isolation_level=None)) as other,
        ):
            database.migrate()
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailable), database.transaction():
                pass
            other.execute("ROLLBACK")
            with database.transaction():
                pass


class TestPostgresql:
    def test_a_server_that_is_not_there_is_unavailable_and_no_secret_is_told(self):
        database = Database("postgresql://user:secret@127.0.0.1:1/name")
        with pytest.raises(DatabaseUnavailable) as failure:
            database.ping()
        assert str(failure.value) == "The database does not answer: try again."
        assert "secret" not in str(failure.value.__cause__)

    def test_a_connection_lost_in_a_transaction_is_unavailable_and_undoes_it(
        self, postgresql_database, make_session
    ):
        def lose(connection):
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        with pytest.raises(DatabaseUnavailable):
            add_and(postgresql_database, make_session(), lose)
        assert find(postgresql_database, make_session()) is None

    def test_a_connection_lost_in_a_single_statement_is_unavailable(self, postgresql_database):
        lost = text("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(DatabaseUnavailable), postgresql_database.single() as connection:
            connection.execute(lost)
        postgresql_database.ping()

    def test_a_connection_lost_while_idle_goes_unnoticed(self, postgresql_database):
        own = text("SELECT pg_backend_pid()")
        with postgresql_database.transaction() as one, postgresql_database.transaction() as two:
            pids = {one.scalar(own), two.scalar(own)}
        with postgresql_database.transaction() as one:
            [idle] = pids - {one.scalar(own)}
            assert one.scalar(text(f"SELECT pg_terminate_backend({idle}, 5000)"))
            with postgresql_database.transaction() as two:
                assert two.scalar(own) not in pids

    def test_commits_wait_for_the_disk(self, postgresql_database):
        with postgresql_database.transaction() as connection:
            assert connection.scalar(text("SHOW synchronous_commit")) == "on"


class TestPing:
    def test_a_migrated_database_answers(self, database):
        database.ping()

    def test_a_database_without_tables_is_unavailable(self, database_url, tmp_path):
        (tmp_path / "data").mkdir()
        with closing(Database(database_url)) as database, pytest.raises(DatabaseUnavailable):
            database.ping()

    def test_a_sqlite_file_that_is_not_there_is_unavailable(self, tmp_path):
        database = Database(f"sqlite:///{tmp_path}/gone/innerloop.db")
        with pytest.raises(DatabaseUnavailable):
            database.ping()


def test_a_pool_that_stays_empty_is_unavailable(database_url, monkeypatch):
    monkeypatch.setattr(engines, "POOL_WAIT_SECONDS", 0.05)
    with closing(Database(database_url, pool_size=1)) as database:
        database.migrate()
        for ask in (database.reading, database.single):
            with (
                database.reading(),
                pytest.raises(DatabaseUnavailable, match="in use"),
                ask(),
            ):
                pass
        database.ping()
