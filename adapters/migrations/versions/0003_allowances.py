"""Limits of single users, and the tokens that each has used in a month."""

import sqlalchemy as sa
from alembic import op

revision = "0003_allowances"
down_revision = "0002"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "allowances",
        sa.Column(
            "user_id",
            sa.String(128),
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("requests_per_minute", NUMBER),
        sa.Column("tokens_per_minute", NUMBER),
        sa.Column("streams", NUMBER),
        sa.Column("tokens_per_month", NUMBER),
    )
    op.create_table(
        "token_usage",
        sa.Column("user_id", sa.String(128), primary_key=True),
        sa.Column("month", sa.String(7), primary_key=True),
        sa.Column("prompt_tokens", NUMBER, nullable=False),
        sa.Column("completion_tokens", NUMBER, nullable=False),
    )
