"""The registry on this machine, with the methods and the answers of the admin API.

Owns the translation from the registry's objects to the JSON that a server would have sent, so that
a verb is written once for both. Refuses rules; those are the registry's.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from adapters.accounts import Role
from adapters.allowances import Allowance
from adapters.base import POCKET, describe_base
from adapters.collection import collect, damaged
from adapters.db import now
from adapters.experiments_calls import LocalExperiments
from adapters.feedback_calls import LocalFeedback
from adapters.registry import Registry
from adapters.shapes import (
    entry_body,
    group_body,
    limits_body,
    quota_body,
    user_body,
    version_body,
)
from adapters.transfer import Transfer, export_registry, import_registry


class LocalRegistry(LocalExperiments, LocalFeedback):
    """`RemoteRegistry`'s methods on an open registry; `actor` is named in the audit log."""

    def __init__(self, registry: Registry, actor: str, model: Path = POCKET) -> None:
        self._registry = registry
        self._actor = actor
        self._model = model

    def publish(
        self,
        adapter_id: str,
        folder: Path,
        *,
        activate: bool,
        owner: str | None = None,
        force: bool = False,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        version = self._registry.publish(
            adapter_id,
            folder,
            base=describe_base(self._model),
            owner=owner,
            activate=activate,
            force=force,
            idempotency_key=idempotency_key,
            actor=self._actor,
        )
        return version_body(version)

    def list_adapters(self) -> Sequence[dict[str, Any]]:
        return self._registry.list_adapters()

    def describe(self, adapter_id: str) -> dict[str, Any]:
        return self._registry.describe(adapter_id)

    def activate(
        self, adapter_id: str, version: int, expected_version: int | None, *, force: bool = False
    ) -> dict[str, Any]:
        return version_body(
            self._registry.activate(
                adapter_id, version, expected_version, force=force, actor=self._actor
            )
        )

    def rollback(self, adapter_id: str, expected_version: int | None) -> dict[str, Any]:
        return version_body(
            self._registry.rollback(adapter_id, expected_version, actor=self._actor)
        )

    def retire(self, adapter_id: str) -> None:
        self._registry.retire(adapter_id, actor=self._actor)

    def set_grants(
        self, adapter_id: str, *, everyone: bool, users: Sequence[str], groups: Sequence[str]
    ) -> dict[str, Any]:
        self._registry.set_grants(
            adapter_id, everyone=everyone, users=users, groups=groups, actor=self._actor
        )
        return {"everyone": everyone, "users": list(users), "groups": list(groups)}

    def verify(self) -> dict[str, Any]:
        digests = self._registry.digests()
        screen = Console(stderr=True)
        watched = track(
            digests, "hashing", transient=True, console=screen, disable=not screen.is_terminal
        )
        return {"stored": len(digests), "damaged": damaged(self._registry, watched)}

    def collect(self, hours: float, *, dry_run: bool) -> dict[str, Any]:
        age = timedelta(hours=hours)
        return collect(self._registry, older_than=age, dry_run=dry_run).as_json()

    def export(self, folder: Path) -> Transfer:
        return export_registry(self._registry, folder)

    def import_(self, folder: Path) -> Transfer:
        return import_registry(self._registry, folder, actor=self._actor)

    def create_user(self, user_id: str) -> dict[str, Any]:
        return {"id": self._registry.accounts.create_user(user_id, actor=self._actor).id}

    def list_users(self) -> list[dict[str, Any]]:
        return [user_body(user) for user in self._registry.accounts.list_users()]

    def delete_user(self, user_id: str) -> None:
        self._registry.accounts.delete_user(user_id, actor=self._actor)

    def assign(self, user_id: str, adapter_id: str | None) -> dict[str, Any]:
        self._registry.assign(user_id, adapter_id, actor=self._actor)
        return {"user": user_id, "adapter": adapter_id}

    def limits(self, user_id: str) -> dict[str, Any]:
        own = self._registry.allowances.of(user_id)
        month = now().strftime("%Y-%m")
        return limits_body(user_id, own, self._registry.allowances.spent(user_id, month))

    def set_limits(self, user_id: str, bounds: Mapping[str, int | None]) -> dict[str, Any]:
        self._registry.allowances.set(user_id, Allowance(**bounds), actor=self._actor)
        return self.limits(user_id)

    def create_key(self, user_id: str | None, role: Role, days: float | None) -> dict[str, Any]:
        return self._registry.accounts.create_key_for(role, user_id, days, actor=self._actor)

    def revoke_key(self, key_id: str) -> None:
        self._registry.accounts.revoke_key(key_id, actor=self._actor)

    def create_group(self, group_id: str) -> dict[str, Any]:
        return group_body(self._registry.groups.create(group_id, actor=self._actor))

    def list_groups(self) -> list[dict[str, Any]]:
        return [group_body(group) for group in self._registry.groups.list()]

    def delete_group(self, group_id: str) -> None:
        self._registry.groups.delete(group_id, actor=self._actor)

    def add_members(self, group_id: str, users: Sequence[str]) -> dict[str, Any]:
        self._registry.groups.add(group_id, users, actor=self._actor)
        return group_body(self._registry.groups.get(group_id))

    def remove_members(self, group_id: str, users: Sequence[str]) -> None:
        self._registry.groups.remove(group_id, users, actor=self._actor)

    def set_quota(
        self, owner: str, max_versions: int | None, max_bytes: int | None
    ) -> dict[str, Any]:
        quota = self._registry.quotas.set(
            owner, max_versions=max_versions, max_bytes=max_bytes, actor=self._actor
        )
        return quota_body(quota)

    def list_quotas(self) -> list[dict[str, Any]]:
        return [quota_body(quota) for quota in self._registry.quotas.list()]

    def delete_quota(self, owner: str) -> None:
        self._registry.quotas.delete(owner, actor=self._actor)

    def audit(self, subject: str | None, limit: int) -> list[dict[str, Any]]:
        return [entry_body(entry) for entry in self._registry.audit(subject, limit=limit)]
