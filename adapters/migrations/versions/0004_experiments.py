"""Experiments, their arms, and which of them a user is in."""

import sqlalchemy as sa
from alembic import op

revision = "0004_experiments"
down_revision = "0003_allowances"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("winner", sa.String(63)),
        sa.Column("created", TIME, nullable=False),
        sa.Column("started", TIME),
        sa.Column("ended", TIME),
    )
    op.create_table(
        "experiment_arms",
        sa.Column(
            "experiment_id",
            sa.String(63),
            sa.ForeignKey("experiments.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("adapter_id", sa.String(127), sa.ForeignKey("adapters.id")),
        sa.Column("version", sa.Integer),
        sa.Column("weight", sa.Integer, nullable=False),
    )
    # By hand: Alembic would make SQLite's table anew, and so delete what refers to its rows.
    op.execute("ALTER TABLE users ADD COLUMN experiment VARCHAR(63) REFERENCES experiments (id)")
    op.create_index("ix_users_experiment", "users", ["experiment"])
