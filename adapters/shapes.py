"""What the admin API sends: versions, users, groups, quotas, experiments, changes, as plain JSON.

Owns these shapes, for the server that sends them and for the command line, which prints the same
whether it asked a server or the registry itself. Refuses HTTP and tables.
"""

from dataclasses import asdict
from typing import Any

from adapters.accounts import User
from adapters.allowances import Allowance, Spent
from adapters.arms import Experiment
from adapters.audit import AuditEntry
from adapters.groups import Group
from adapters.quotas import Quota
from adapters.versions import AdapterVersion


def version_body(version: AdapterVersion) -> dict[str, Any]:
    return {
        "adapter": version.adapter_id,
        "version": version.version,
        "ref": version.ref,
        "digest": version.digest,
        "rank": version.rank,
        "bytes": version.bytes,
        "created": version.created.isoformat(),
    }


def user_body(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "assigned": user.assigned,
        "experiment": user.experiment,
        "feedback": user.feedback,
        "created": user.created.isoformat(),
    }


def group_body(group: Group) -> dict[str, Any]:
    return {"id": group.id, "members": list(group.members), "created": group.created.isoformat()}


def quota_body(quota: Quota) -> dict[str, Any]:
    return asdict(quota)


def limits_body(user_id: str, allowance: Allowance, spent: Spent) -> dict[str, Any]:
    """A user's own limits (null: as everybody) and his use of this month."""
    return {"user": user_id, "limits": asdict(allowance), "used": asdict(spent)}


def experiment_body(experiment: Experiment) -> dict[str, Any]:
    times = {name: getattr(experiment, name) for name in ("created", "started", "ended")}
    return {
        "id": experiment.id,
        "state": experiment.state,
        "arms": [
            {"name": arm.name, "adapter": arm.serves, "weight": arm.weight}
            for arm in experiment.arms
        ],
        "winner": experiment.winner,
        **{name: at and at.isoformat() for name, at in times.items()},
    }


def entry_body(entry: AuditEntry) -> dict[str, Any]:
    return {**asdict(entry), "at": entry.at.isoformat()}
