"""A gate's verdict on an adapter, as it stands in the manifest.

Owns its fields and the bytes that are signed. Refuses keys and judgement: `gate.py` signs and
checks, `training/evaluation` measures. The digest in a verdict is that of the served form, which
is what the registry keeps, so that publishing does not part the two.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=300)]


class VerdictLine(BaseModel):
    """One threshold and what was measured, in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: Text
    measured: Text
    passed: bool


class Verdict(BaseModel):
    """What a gate said of one adapter on one base; `signature` covers everything else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    digest: Digest
    """Of the adapter in its served form."""
    base_fingerprint: Digest
    gate: Digest
    """Of the file of thresholds."""
    passed: bool
    lines: list[VerdictLine] = Field(max_length=100)
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    key: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """The public key that checks the signature."""
    signature: str = Field("", pattern=r"^([0-9a-f]{128})?$")

    @property
    def failed(self) -> list[str]:
        """The lines that did not hold, in words."""
        return [f"{line.threshold} ({line.measured})" for line in self.lines if not line.passed]

    def signed_bytes(self) -> bytes:
        """Canonical JSON of everything but the signature."""
        content = self.model_dump(mode="json", exclude={"signature"})
        return b"bapo-verdict-1\n" + json.dumps(content, sort_keys=True).encode()
