"""A version of an adapter as everything outside of the database knows it; the choice of one."""

import sys
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

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
    base_fingerprint: str
    """The base model that it was checked against when it was published."""

    @property
    def ref(self) -> str:
        """`alice/concise@3`."""
        return f"{self.adapter_id}@{self.version}"


class Choice(NamedTuple):
    """What answers a request: a version, None for the base; and the arm that decided it.

    `arm` is `tone/warm`, of a running experiment, or None where no experiment had a say.
    """

    version: AdapterVersion | None
    arm: str | None = None


def version_of(row: VersionRow) -> AdapterVersion:
    return AdapterVersion(
        row.adapter_id,
        row.version,
        row.engine_id,
        row.digest,
        row.rank,
        row.bytes,
        row.created,
        sys.intern(row.base_fingerprint),  # nearly all have the same
    )
