"""`/admin/experiments…`: arms, states, who takes part. Admin keys only."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from adapters.arms import LARGEST_WEIGHT, Arm
from adapters.shapes import experiment_body
from server.api.bodies import EnrolledBody, ExperimentBody, ExperimentDetails, Page, ResultsBody
from server.dependencies import AdminDep, RegistryDep
from server.pages import After, Limit, page, plus_one

router = APIRouter(prefix="/admin/experiments", tags=["admin"])


class GivenArm(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="the arm's name, as in `warm`")
    adapter: str = Field(description="`base`, an adapter (its active version), or `<adapter>@3`")
    weight: int = Field(1, ge=0, le=LARGEST_WEIGHT, description="its share among the arms'")


class Arms(BaseModel):
    model_config = ConfigDict(extra="forbid")

    arms: list[GivenArm] = Field(max_length=100)

    def spelled(self) -> list[Arm]:
        return [Arm.of(arm.name, arm.adapter, arm.weight) for arm in self.arms]


class NewExperiment(Arms):
    id: str = Field(description="the experiment's name, as in `tone`")


class Start(BaseModel):
    model_config = ConfigDict(extra="forbid")

    force: bool = Field(False, description="also with arms that the gate refuses; audited")


class Conclusion(BaseModel):
    model_config = ConfigDict(extra="forbid")

    winner: str | None = Field(None, description="the arm that all who take part get from now on")


class Participants(BaseModel):
    model_config = ConfigDict(extra="forbid")

    users: list[str] = Field([], max_length=10_000)
    groups: list[str] = Field([], max_length=1000, description="who is in them now")
    everyone: bool = Field(False, description="all who have no assignment now")


@router.post("", status_code=201, response_model=ExperimentBody)
async def create_experiment(
    wish: NewExperiment, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """A draft: it decides nothing before its start."""
    made = await run_in_threadpool(
        lambda: registry.experiments.create(wish.id, wish.spelled(), actor=admin.key_id)
    )
    return experiment_body(made)


@router.get("", response_model=Page[ExperimentBody])
async def list_experiments(
    admin: AdminDep, registry: RegistryDep, after: After = None, limit: Limit = None
) -> dict[str, Any]:
    """Every experiment, by name; with `limit` a page of them."""
    found = await run_in_threadpool(registry.experiments.list, after, plus_one(limit))
    return page([experiment_body(experiment) for experiment in found], limit)


@router.get("/{experiment_id}", response_model=ExperimentDetails)
async def get_experiment(
    experiment_id: str, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    experiment, users = await run_in_threadpool(registry.experiments.get, experiment_id)
    return {**experiment_body(experiment), "users": users}


@router.get("/{experiment_id}/results", response_model=ResultsBody)
async def get_results(experiment_id: str, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    """How often each arm's answers were liked, with intervals, and each arm against the first."""

    def read() -> dict[str, Any]:
        from adapters.results import results_of  # a second of statistics that no start should pay

        return results_of(registry.engine, experiment_id)

    return await run_in_threadpool(read)


@router.put("/{experiment_id}/arms", response_model=ExperimentBody)
async def set_arms(
    experiment_id: str, wish: Arms, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Replace a draft's arms; of an experiment that has begun, the weights."""
    changed = await run_in_threadpool(
        lambda: registry.experiments.set_arms(experiment_id, wish.spelled(), actor=admin.key_id)
    )
    return experiment_body(changed)


@router.post("/{experiment_id}/start", response_model=ExperimentBody)
async def start(
    experiment_id: str, admin: AdminDep, registry: RegistryDep, wish: Start | None = None
) -> dict[str, Any]:
    """Its users get their arms from now on; 409 where an arm could not, or may not, be served."""
    force = wish is not None and wish.force
    found = await run_in_threadpool(
        registry.experiments.start, experiment_id, force=force, actor=admin.key_id
    )
    return experiment_body(found)


@router.post("/{experiment_id}/stop", response_model=ExperimentBody)
async def stop(experiment_id: str, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    """Its users have their own assignments again, until it is started again."""
    experiments = registry.experiments
    found = await run_in_threadpool(experiments.stop, experiment_id, actor=admin.key_id)
    return experiment_body(found)


@router.post("/{experiment_id}/conclude", response_model=ExperimentBody)
async def conclude(
    experiment_id: str, wish: Conclusion, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """The end: its users get the winner, or their own assignments."""
    found = await run_in_threadpool(
        registry.experiments.conclude, experiment_id, wish.winner, actor=admin.key_id
    )
    return experiment_body(found)


@router.post("/{experiment_id}/users", response_model=EnrolledBody)
async def enrol(
    experiment_id: str, wish: Participants, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Have users take part; `PUT /admin/users/{id}/assignment` takes one out again."""

    def add() -> int:
        return registry.experiments.enrol(experiment_id, **wish.model_dump(), actor=admin.key_id)

    return {"experiment": experiment_id, "added": await run_in_threadpool(add)}


@router.delete("/{experiment_id}", status_code=204)
async def delete_experiment(experiment_id: str, admin: AdminDep, registry: RegistryDep) -> None:
    """Forget it; its users have their own assignments."""
    await run_in_threadpool(registry.experiments.delete, experiment_id, actor=admin.key_id)
