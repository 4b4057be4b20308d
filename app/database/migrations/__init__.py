"""The way from an empty database to today's tables, one step a file in `versions/`."""

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, func, select

# Any number will do, as long as every replica takes the same.
_ADVISORY_LOCK = 0x696E6E65726C6F6F  # "innerloo" in ASCII


class MigrationError(Exception):
    """The database is at a step that this version does not know."""


def upgrade(connection: Connection) -> None:
    """Take the steps that are missing, inside the connection's open transaction.

    A second process waits for the first one's commit: on SQLite because a writing transaction holds
    the write lock from its start, on PostgreSQL by an advisory lock.

    Raises:
        MigrationError: the database is at an unknown step.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise MigrationError(
            "The database was migrated by another, newer version of Innerloop: run that version."
        ) from error


def alembic_config(connection: Connection) -> Config:
    """Point Alembic's commands at the steps here and at an open transaction."""
    config = Config()
    config.set_main_option("script_location", "app.database:migrations")
    config.attributes["connection"] = connection
    return config
