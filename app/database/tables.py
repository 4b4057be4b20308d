"""The tables, as the migrations leave them."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    text,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: aware datetimes in, aware datetimes in UTC out.

    UTC is what is stored, as SQLite keeps no zone.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime | None:
        """Convert to UTC.

        Raises:
            ValueError: the datetime is naive, so that nobody knows which moment it means.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored datetime needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """JSON as ASCII text.

    PostgreSQL's text and jsonb refuse NUL and lone surrogates; in text their escapes pass.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002
        """Encode."""
        return json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Decode."""
        return None if value is None else json.loads(value)


def _session_id_type() -> Text:
    """Text in the order of its bytes, whatever the database's own collation: ids order by time."""
    return Text().with_variant(Text(collation="C"), "postgresql")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_KEPT = text("erased_at IS NULL")

sessions = Table(
    "sessions",
    metadata,
    Column("id", _session_id_type(), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("theta_sha256", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    # When the support set was dropped, so that a sweep meets each expired session once.
    Column("erased_at", UtcDateTime),
    Column("metadata", JsonText, nullable=False),
    # For lists; they show no erased session, however many there are.
    Index(None, "owner", "id", sqlite_where=_KEPT, postgresql_where=_KEPT),
    Index(None, "owner", "model", "id", sqlite_where=_KEPT, postgresql_where=_KEPT),
    Index(None, "erased_at", "expires_at"),
)

revisions = Table(
    "revisions",
    metadata,
    Column(
        "session_id",
        _session_id_type(),
        ForeignKey("sessions.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("labels", JsonText, nullable=False),
    Column("shots", JsonText, nullable=False),
    Column("support_loss", JsonText, nullable=False),
    Column("support_sha256", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # Last: SQLite walks a large value's overflow pages to reach the columns behind it.
    Column("examples", LargeBinary, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_sha256", Text, nullable=False),
    # A stored answer holds labels and metadata, so it goes with its session.
    Column(
        "session_id",
        _session_id_type(),
        ForeignKey("sessions.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("body", LargeBinary, nullable=False),
)
