"""Groups and their grants, quotas, and a stack of activations where one previous version was."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
BYTES = sa.BigInteger().with_variant(sa.Integer, "sqlite")
INDEXED = (
    ("adapters", "owner"),
    ("versions", "digest"),
    ("grants", "user_id"),
    ("audit", "subject"),
    ("activations", "adapter_id"),
    ("group_members", "user_id"),
    ("group_grants", "group_id"),
)


def upgrade() -> None:
    op.create_table(
        "groups",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("created", TIME, nullable=False),
    )
    op.create_table(
        "group_members",
        sa.Column(
            "group_id",
            sa.String(128),
            sa.ForeignKey("groups.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column(
            "user_id",
            sa.String(128),
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            primary_key=True,
        ),
    )
    op.create_table(
        "group_grants",
        sa.Column("adapter_id", sa.String(127), sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column(
            "group_id",
            sa.String(128),
            sa.ForeignKey("groups.id", ondelete="CASCADE"),
            primary_key=True,
        ),
    )
    op.create_table(
        "quotas",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("max_versions", sa.Integer),
        sa.Column("max_bytes", BYTES),
    )
    op.create_table(
        "activations",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("adapter_id", sa.String(127), sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
    )
    for column in ("previous_version", "active_version"):  # the older one lies below
        op.execute(
            f"INSERT INTO activations (adapter_id, version) SELECT id, {column} "  # noqa: S608
            f"FROM adapters WHERE {column} IS NOT NULL AND active_version IS NOT NULL ORDER BY id"
        )
    op.drop_column("adapters", "previous_version")
    if op.get_bind().dialect.name != "sqlite":  # whose integers are long enough
        op.alter_column("versions", "bytes", type_=sa.BigInteger)
    for table, column in INDEXED:
        op.create_index(f"ix_{table}_{column}", table, [column])
