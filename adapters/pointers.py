"""The pointers: which version of an adapter is active, and which was before.

Owns activation, rollback and retirement. Refuses bytes; moving a pointer changes no version. The
activations that nobody took back are a stack: `activate` pushes, `rollback` pops, and the top is
the active version. `expected_version` makes each of them compare before it swaps.
"""

from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from adapters.audit import log
from adapters.db import ActivationRow, AdapterRow, VersionRow, now, writing
from adapters.errors import Conflict, VersionConflict
from adapters.gate import Gate
from adapters.rows import living_adapter, version_row
from adapters.versions import AdapterVersion, version_of


class Pointers:
    """The registry's part that says which version is served."""

    engine: Engine
    gate: Gate | None

    def activate(
        self,
        adapter_id: str,
        version: int,
        expected_version: int | None = None,
        *,
        force: bool = False,
        actor: str = "local",
    ) -> AdapterVersion:
        """Make `version` the active one, if `expected_version` (0: none) is active until now.

        `force` lets through what the gate refuses, and the audit log says so. Raises
        AdapterNotFound, VersionNotFound, VersionConflict, GateRefused.
        """
        with writing(self.engine) as session:
            adapter = living_adapter(session, adapter_id)
            _compare(adapter, expected_version)
            row = version_row(session, adapter_id, version)
            if adapter.active_version != version:
                forced = past_the_gate(self.gate, row, force=force)
                point(session, adapter, version, actor, **forced)
            return version_of(row)

    def rollback(
        self, adapter_id: str, expected_version: int | None = None, *, actor: str = "local"
    ) -> AdapterVersion:
        """Back to the version that was active before; again, to the one before that.

        No gate stands here: that version was served already, and the way back must be short.
        Raises AdapterNotFound, VersionConflict, Conflict where nothing was active before.
        """
        with writing(self.engine) as session:
            adapter = living_adapter(session, adapter_id)
            _compare(adapter, expected_version)
            newest_first = (
                select(ActivationRow)
                .where(ActivationRow.adapter_id == adapter_id)
                .order_by(ActivationRow.id.desc())
            )
            stack = session.scalars(newest_first.limit(2)).all()
            if len(stack) < 2:
                raise Conflict(f"'{adapter_id}' has no earlier active version to go back to.")
            before, adapter.active_version = adapter.active_version, stack[1].version
            session.delete(stack[0])
            moved = {"before": before, "after": adapter.active_version}
            log(session, actor, "adapter.rollback", adapter_id, **moved)
            return version_of(version_row(session, adapter_id, stack[1].version))

    def retire(self, adapter_id: str, *, actor: str = "local") -> None:
        """Take the adapter out of use for good; its name and numbers stay taken.

        Raises AdapterNotFound.
        """
        with writing(self.engine) as session:
            adapter = living_adapter(session, adapter_id)
            adapter.retired = now()
            log(
                session,
                actor,
                "adapter.retire",
                adapter_id,
                before=adapter.active_version,
                after=None,
            )


def past_the_gate(gate: Gate | None, row: VersionRow, *, force: bool) -> dict[str, Any]:
    """What the audit log has to say of an exception; nothing where the gate has no objection.

    Raises GateRefused where it has, and nobody forces it.
    """
    if gate is None:
        return {}
    if force:
        reason = gate.refusal(row.manifest, row.digest, row.base_fingerprint)
        return {"forced": True, "gate": reason} if reason else {}
    gate.check(row.manifest, row.digest, row.base_fingerprint)
    return {}


def point(session: Session, adapter: AdapterRow, version: int, actor: str, **details: Any) -> None:
    """Push `version` on the adapter's stack; `details` go into the audit log."""
    before, adapter.active_version = adapter.active_version, version
    session.add(ActivationRow(adapter_id=adapter.id, version=version))
    log(session, actor, "adapter.activate", adapter.id, before=before, after=version, **details)


def _compare(adapter: AdapterRow, expected: int | None) -> None:
    active = adapter.active_version or 0
    if expected not in (None, active):
        raise VersionConflict(
            f"Version {active} of '{adapter.id}' is active, not {expected}: look again before you"
            " switch."
        )
