"""Lists look only through sessions that have not been erased."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_sessions_owner_id": ["owner", "id"],
    "ix_sessions_owner_model_id": ["owner", "model", "id"],
}


def upgrade() -> None:
    """Leave erased sessions out of the indexes that lists use."""
    kept = sa.text("erased_at IS NULL")
    for name, columns in INDEXES.items():
        op.drop_index(name, "sessions")
        op.create_index(name, "sessions", columns, sqlite_where=kept, postgresql_where=kept)


def downgrade() -> None:
    """Take them in again."""
    for name, columns in INDEXES.items():
        op.drop_index(name, "sessions")
        op.create_index(name, "sessions", columns)
