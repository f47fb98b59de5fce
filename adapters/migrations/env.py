"""Alembic's entry point: runs the migrations over the connection that `adapters.migrate` gives."""

from alembic import context

from adapters.db import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
