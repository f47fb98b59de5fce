"""Whether an experiment's arms can be given to users: what is asked before one starts or concludes.

Owns the two questions: would the arm's users get an error, and has a version that an arm names by
its number passed the gate that is required? An arm that serves whatever is active needs no gate of
its own: activation had it. Refuses the states (`experiments.py`).
"""

from typing import Any

from sqlalchemy.orm import Session

from adapters.arms import Arm, Experiment
from adapters.errors import AdapterNotFound, Conflict, GateRefused
from adapters.gate import Gate
from adapters.rows import living_adapter, version_row


def check_served(session: Session, experiment_id: str, arm: Arm) -> None:
    """Raises Conflict where the arm's users would get an error."""
    if arm.adapter_id is None:
        return
    try:
        adapter = living_adapter(session, arm.adapter_id)
    except AdapterNotFound:
        raise Conflict(
            f"The arm '{arm.name}' of '{experiment_id}' serves '{arm.adapter_id}', which is"
            " retired: create an experiment without it."
        ) from None
    if arm.version is None and adapter.active_version is None:
        raise Conflict(
            f"The arm '{arm.name}' of '{experiment_id}' serves '{arm.adapter_id}', of which no"
            " version is active: activate one."
        )


def arms_past_the_gate(
    session: Session, gate: Gate | None, experiment: Experiment, *, force: bool
) -> dict[str, Any]:
    """What the audit log has to say of an exception; nothing where the gate has no objection.

    Raises GateRefused where it has, and nobody forces it.
    """
    refused = _refusals(session, gate, experiment)
    if not refused:
        return {}
    if force:
        return {"forced": True, "gate": {arm.name: reason for arm, reason in refused}}
    arm, reason = refused[0]
    raise GateRefused(
        f"The arm '{arm.name}' of '{experiment.id}' serves '{arm.serves}', users of this server"
        f" get only what passed the gate, and {reason}. Run `bapo eval --gate` on it and publish it"
        " again, as a version for the arm; an admin can force an exception."
    )


def _refusals(session: Session, gate: Gate | None, experiment: Experiment) -> list[tuple[Arm, str]]:
    """The arms that name a version which the gate refuses, and why."""
    found: list[tuple[Arm, str]] = []
    if gate is None:
        return found
    for arm in experiment.arms:
        if arm.adapter_id is None or arm.version is None:
            continue
        row = version_row(session, arm.adapter_id, arm.version)
        if reason := gate.refusal(row.manifest, row.digest, row.base_fingerprint):
            found.append((arm, reason))
    return found
