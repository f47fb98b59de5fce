"""Who has agreed that his answers are kept, the answers, and what users said of them."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005_feedback"
down_revision = "0004_experiments"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
TEXTS = sa.JSON(none_as_null=True)


def upgrade() -> None:
    # By hand: Alembic would make SQLite's table anew, and so delete what refers to its rows.
    op.execute("ALTER TABLE users ADD COLUMN feedback BOOLEAN DEFAULT false NOT NULL")
    op.create_table(
        "answers",
        *_of_an_answer(),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME, nullable=False),
    )
    op.create_index("ix_answers_expires", "answers", ["expires"])
    op.create_table(
        "ratings",
        *_of_an_answer(),
        sa.Column("good", sa.Boolean, nullable=False),
        sa.Column("correction", sa.Text),
        sa.Column("answered", TIME, nullable=False),
        sa.Column("created", TIME, nullable=False),
    )
    op.create_index("ix_ratings_experiment", "ratings", ["experiment"])
    op.create_table(
        "preferences",
        _user(),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("prompt", TEXTS, nullable=False),
        sa.Column("chosen", sa.Text, nullable=False),
        sa.Column("rejected", sa.Text, nullable=False),
        sa.Column("adapter", sa.String(127)),
        sa.Column("created", TIME, nullable=False),
    )


def _user() -> sa.Column[str]:
    users = sa.ForeignKey("users.id", ondelete="CASCADE")
    return sa.Column("user_id", sa.String(128), users, primary_key=True)


def _of_an_answer() -> list[sa.Column[Any]]:
    return [
        _user(),
        sa.Column("completion_id", sa.String(128), primary_key=True),
        sa.Column("choice", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("adapter", sa.String(127), nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("experiment", sa.String(63)),
        sa.Column("arm", sa.String(63)),
        sa.Column("prompt", TEXTS),
        sa.Column("text", sa.Text),
    ]
