"""A version of an adapter, as everything outside of the database knows it."""

from dataclasses import dataclass
from datetime import datetime

from adapters.db import VersionRow


@dataclass(frozen=True)
class AdapterVersion:
    """One version of one adapter, as it is served."""

    adapter_id: str
    version: int
    engine_id: int
    digest: str
    rank: int
    bytes: int
    created: datetime

    @property
    def ref(self) -> str:
        """`alice/concise@3`."""
        return f"{self.adapter_id}@{self.version}"


def version_of(row: VersionRow) -> AdapterVersion:
    return AdapterVersion(
        row.adapter_id, row.version, row.engine_id, row.digest, row.rank, row.bytes, row.created
    )
