"""Sessions, their revisions, and idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    session_id = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "sessions",
        sa.Column("id", session_id, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("theta_sha256", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
        sa.Column("erased_at", moment),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_owner_id", "sessions", ["owner", "id"])
    op.create_index("ix_sessions_owner_model_id", "sessions", ["owner", "model", "id"])
    op.create_index("ix_sessions_erased_at_expires_at", "sessions", ["erased_at", "expires_at"])
    op.create_table(
        "revisions",
        sa.Column("session_id", session_id, nullable=False),
        sa.Column("revision", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("shots", sa.Text, nullable=False),
        sa.Column("support_loss", sa.Text, nullable=False),
        sa.Column("support_sha256", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("examples", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "revision", name="pk_revisions"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name="fk_revisions_session_id_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("request_sha256", sa.Text, nullable=False),
        sa.Column("session_id", session_id, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name="pk_idempotency_keys"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name="fk_idempotency_keys_session_id_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_idempotency_keys_session_id", "idempotency_keys", ["session_id"])
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    """Drop the tables and all they hold."""
    op.drop_table("idempotency_keys")
    op.drop_table("revisions")
    op.drop_table("sessions")
