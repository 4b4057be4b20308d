"""Run by Alembic for each command, inside the transaction that `alembic_config` was given."""

from alembic import context

from app.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
