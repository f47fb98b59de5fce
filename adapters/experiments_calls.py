"""The calls of `bapo experiments …`: on an open registry, and the same on a running server.

Owns two halves with the same methods and answers, for `LocalRegistry` and `RemoteRegistry` to have.
Refuses rules and words for people.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from adapters.arms import Arm
from adapters.registry import Registry
from adapters.shapes import experiment_body


class LocalExperiments:
    """The part of `LocalRegistry` that is about experiments."""

    _registry: Registry
    _actor: str

    def create_experiment(self, experiment_id: str, arms: Sequence[Arm]) -> dict[str, Any]:
        made = self._registry.experiments.create(experiment_id, arms, actor=self._actor)
        return experiment_body(made)

    def set_arms(self, experiment_id: str, arms: Sequence[Arm]) -> dict[str, Any]:
        changed = self._registry.experiments.set_arms(experiment_id, arms, actor=self._actor)
        return experiment_body(changed)

    def list_experiments(self) -> list[dict[str, Any]]:
        return [experiment_body(one) for one in self._registry.experiments.list()]

    def get_experiment(self, experiment_id: str) -> dict[str, Any]:
        experiment, users = self._registry.experiments.get(experiment_id)
        return {**experiment_body(experiment), "users": users}

    def start_experiment(self, experiment_id: str, *, force: bool = False) -> dict[str, Any]:
        started = self._registry.experiments.start(experiment_id, force=force, actor=self._actor)
        return experiment_body(started)

    def stop_experiment(self, experiment_id: str) -> dict[str, Any]:
        return experiment_body(self._registry.experiments.stop(experiment_id, actor=self._actor))

    def conclude_experiment(self, experiment_id: str, winner: str | None) -> dict[str, Any]:
        found = self._registry.experiments.conclude(experiment_id, winner, actor=self._actor)
        return experiment_body(found)

    def experiment_results(self, experiment_id: str) -> dict[str, Any]:
        from adapters.results import results_of  # a second of statistics, for this verb only

        return results_of(self._registry.engine, experiment_id)

    def delete_experiment(self, experiment_id: str) -> None:
        self._registry.experiments.delete(experiment_id, actor=self._actor)

    def enrol(
        self, experiment_id: str, *, users: Sequence[str], groups: Sequence[str], everyone: bool
    ) -> dict[str, Any]:
        added = self._registry.experiments.enrol(
            experiment_id, users=users, groups=groups, everyone=everyone, actor=self._actor
        )
        return {"experiment": experiment_id, "added": added}


class RemoteExperiments:
    """The part of `RemoteRegistry` that is about experiments."""

    @abstractmethod
    def _call(self, method: str, path: str, **options: Any) -> Any: ...

    def create_experiment(self, experiment_id: str, arms: Sequence[Arm]) -> Any:
        wish = {"id": experiment_id, "arms": _arms(arms)}
        return self._call("POST", "/admin/experiments", json=wish)

    def set_arms(self, experiment_id: str, arms: Sequence[Arm]) -> Any:
        path = f"/admin/experiments/{experiment_id}/arms"
        return self._call("PUT", path, json={"arms": _arms(arms)})

    def list_experiments(self) -> Any:
        return self._call("GET", "/admin/experiments")["data"]

    def get_experiment(self, experiment_id: str) -> Any:
        return self._call("GET", f"/admin/experiments/{experiment_id}")

    def start_experiment(self, experiment_id: str, *, force: bool = False) -> Any:
        wish = {"json": {"force": True}} if force else {}
        return self._call("POST", f"/admin/experiments/{experiment_id}/start", **wish)

    def stop_experiment(self, experiment_id: str) -> Any:
        return self._call("POST", f"/admin/experiments/{experiment_id}/stop")

    def conclude_experiment(self, experiment_id: str, winner: str | None) -> Any:
        path = f"/admin/experiments/{experiment_id}/conclude"
        return self._call("POST", path, json={"winner": winner})

    def experiment_results(self, experiment_id: str) -> Any:
        return self._call("GET", f"/admin/experiments/{experiment_id}/results")

    def delete_experiment(self, experiment_id: str) -> None:
        self._call("DELETE", f"/admin/experiments/{experiment_id}")

    def enrol(
        self, experiment_id: str, *, users: Sequence[str], groups: Sequence[str], everyone: bool
    ) -> Any:
        wish = {"users": users, "groups": groups, "everyone": everyone}
        return self._call("POST", f"/admin/experiments/{experiment_id}/users", json=wish)


def _arms(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    return [{"name": arm.name, "adapter": arm.serves, "weight": arm.weight} for arm in arms]
