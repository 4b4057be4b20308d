import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import ProgrammingError

from app.database import Database, SessionRepository
from app.database.migrations import alembic_config
from app.database.tables import metadata
from app.errors import DatabaseUnavailable

TABLES = {"sessions", "revisions", "idempotency_keys"}


def describe(connection):
    """All that the database's own catalogue says of our tables, names included."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": [
                {**column, "type": str(column["type"])} for column in inspector.get_columns(table)
            ],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": inspector.get_foreign_keys(table),
            "unique": inspector.get_unique_constraints(table),
            "indexes": {
                index["name"]: {
                    **index,
                    "dialect_options": {
                        option: str(value) for option, value in index["dialect_options"].items()
                    },
                }
                for index in inspector.get_indexes(table)
            },
        }
        for table in TABLES
    }


def test_alembic_finds_no_difference_between_the_migrations_and_the_tables(database):
    with database.transaction() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_migrations_make_what_the_tables_say(database):
    with database.transaction() as connection:
        migrated = describe(connection)
        metadata.drop_all(connection)
        metadata.create_all(connection)
        assert describe(connection) == migrated


def test_every_constraint_and_index_has_a_name_of_the_convention(database):
    with database.transaction() as connection:
        described = describe(connection)
    assert described["revisions"]["primary key"]["name"] == "pk_revisions"
    [foreign_key] = described["revisions"]["foreign keys"]
    assert foreign_key["name"] == "fk_revisions_session_id_sessions"
    assert foreign_key["options"]["ondelete"] == "CASCADE"


def test_lists_look_only_through_sessions_that_are_not_erased(database):
    with database.transaction() as connection:
        indexes = describe(connection)["sessions"]["indexes"]
    for name in ("ix_sessions_owner_id", "ix_sessions_owner_model_id"):
        options = indexes[name]["dialect_options"].items()
        assert any(
            option.endswith("_where") and "erased_at IS NULL" in on for option, on in options
        )


def test_ids_order_by_their_bytes_on_postgresql(postgresql_database):
    with postgresql_database.transaction() as connection:
        column, *_ = inspect(connection).get_columns("sessions")
    assert (column["name"], column["type"].collation) == ("id", "C")


def test_down_to_nothing_and_up_again(database, make_session):
    with database.transaction() as connection:
        SessionRepository(connection).add(make_session(), b"first")
        command.downgrade(alembic_config(connection), "base")
        assert TABLES.isdisjoint(inspect(connection).get_table_names())
    database.migrate()
    with database.transaction() as connection:
        SessionRepository(connection).add(make_session(), b"first")


def test_sessions_of_the_first_version_are_listed_after_the_second_step(
    database, make_session, now
):
    with database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0001")
        SessionRepository(connection).add(make_session(), b"first")
    database.migrate()
    with database.reading() as connection:
        found = SessionRepository(connection).page("ann", 5, None, None, now)
    assert found == ([make_session()], False)


def test_migrating_again_changes_nothing(database, make_session):
    with database.transaction() as connection:
        SessionRepository(connection).add(make_session(), b"first")
    database.migrate()
    with database.reading() as connection:
        assert SessionRepository(connection).get("ann", make_session().id) == make_session()


def test_replicas_that_start_together_all_succeed(database_url):
    script = "import sys; from app.database import Database; Database(sys.argv[1]).migrate()"
    replicas = [
        subprocess.Popen([sys.executable, "-c", script, database_url], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    errors = [replica.communicate(timeout=60)[1] for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0] * 4, errors
    assert versions(database_url) == ["0002"]


def test_threads_that_start_together_all_succeed(database_url):
    def start(_):
        with closing(Database(database_url)) as database:
            database.migrate()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(start, range(4)))
    assert versions(database_url) == ["0002"]


def versions(database_url):
    with closing(Database(database_url)) as database, database.reading() as connection:
        return list(connection.scalars(text("SELECT version_num FROM alembic_version")))


def test_a_step_that_fails_leaves_nothing_behind(database):
    with database.transaction() as connection:
        command.downgrade(alembic_config(connection), "base")
        connection.execute(text("CREATE TABLE idempotency_keys (in_the_way INTEGER)"))
    with pytest.raises((DatabaseUnavailable, ProgrammingError)):
        database.migrate()
    with database.transaction() as connection:
        names = set(inspect(connection).get_table_names())
        connection.execute(text("DROP TABLE idempotency_keys"))
    assert names & TABLES == {"idempotency_keys"}
    database.migrate()
    database.ping()


def test_a_database_of_a_newer_version_is_left_alone(database):
    with database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match="newer version"):
        database.migrate()
    database.ping()
