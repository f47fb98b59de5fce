"""The first schema: adapters, versions, grants, users, keys, audit."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("id", sa.String(127), primary_key=True),
        sa.Column("owner", sa.String(128)),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("active_version", sa.Integer),
        sa.Column("previous_version", sa.Integer),
        sa.Column("retired", TIME),
        sa.Column("created", TIME, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("engine_id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("adapter_id", sa.String(127), sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("base_fingerprint", sa.String(71), nullable=False),
        sa.Column("manifest", sa.JSON),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("created", TIME, nullable=False),
        sa.UniqueConstraint("adapter_id", "version"),
        sa.UniqueConstraint("adapter_id", "idempotency_key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("assigned", sa.String(127), sa.ForeignKey("adapters.id")),
        sa.Column("created", TIME, nullable=False),
    )
    op.create_table(
        "grants",
        sa.Column("adapter_id", sa.String(127), sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("user_id", sa.String(128), primary_key=True),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("user_id", sa.String(128), sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("expires", TIME),
        sa.Column("created", TIME, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    for table in ("audit", "api_keys", "grants", "users", "versions", "adapters"):
        op.drop_table(table)
