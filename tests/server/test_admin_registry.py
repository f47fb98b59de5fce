"""The admin routes that only speak to the registry: groups, grants, quotas, the log, rollback."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from adapters.accounts import Caller, Role
from adapters.db import AdapterRow, VersionRow, writing
from adapters.registry import Registry, open_registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """With two users, and alice's adapter of three versions, of which none is active."""
    opened = open_registry(tmp_path)
    for user in ("alice", "bob"):
        opened.accounts.create_user(user)
    with writing(opened.engine) as session:
        session.add(AdapterRow(id="alice/concise", owner="alice"))
        session.flush()
        for version in (1, 2, 3):
            row = VersionRow(adapter_id="alice/concise", version=version, digest="sha256:0")
            row.rank, row.bytes, row.base_fingerprint = 4, 100, "sha256:0"
            session.add(row)
    yield opened
    opened.close()


@pytest.fixture
def client(registry: Registry) -> Iterator[TestClient]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, when vLLM imports it
        from server import dependencies, errors
        from server.api import admin_adapters, admin_experiments, admin_groups, admin_users
        from server.pacing import Pacing

    app = FastAPI()
    errors.install(app)
    app.state.registry = registry
    app.state.pacing = Pacing(lambda: False)
    app.dependency_overrides[dependencies._admin] = lambda: Caller(Role.ADMIN, None, "root")
    for routes in (admin_adapters, admin_experiments, admin_users, admin_groups):
        app.include_router(routes.router)
    with TestClient(app, base_url="http://test/admin") as talking:
        yield talking


def refused(answer: Any, status: int, code: str) -> bool:
    return (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_groups(client: TestClient) -> None:
    assert client.post("/groups", json={"id": "staff"}).status_code == 201
    assert refused(client.post("/groups", json={"id": "staff"}), 409, "already_exists")
    assert refused(client.post("/groups", json={"id": "St aff"}), 400, "invalid_name")
    grown = client.post("/groups/staff/members", json={"users": ["bob", "alice"]})
    assert grown.json()["members"] == ["alice", "bob"]
    unknown = client.post("/groups/staff/members", json={"users": ["nobody"]})
    assert refused(unknown, 404, "user_not_found")
    assert client.delete("/groups/staff/members/bob").status_code == 204
    assert client.get("/groups/staff").json()["members"] == ["alice"]
    assert [group["id"] for group in client.get("/groups").json()["data"]] == ["staff"]
    assert client.delete("/groups/staff").status_code == 204
    assert refused(client.get("/groups/staff"), 404, "group_not_found")


def test_grants_to_a_group(client: TestClient, registry: Registry) -> None:
    registry.activate("alice/concise", 1)
    client.post("/groups", json={"id": "staff"})
    client.post("/groups/staff/members", json={"users": ["bob"]})
    assert registry.usable(user_id="bob") == []
    granted = client.put("/adapters/alice/concise/grants", json={"groups": ["staff"]})
    assert granted.json() == {"everyone": False, "users": [], "groups": ["staff"]}
    assert [v.ref for v in registry.usable(user_id="bob")] == ["alice/concise@1"]
    assert client.get("/adapters/alice/concise").json()["granted_to_groups"] == ["staff"]
    unknown = client.put("/adapters/alice/concise/grants", json={"groups": ["nobody"]})
    assert refused(unknown, 404, "group_not_found")


def test_quotas(client: TestClient) -> None:
    said = client.put("/quotas/*", json={"max_versions": 5})
    assert said.json() == {"owner": "*", "max_versions": 5, "max_bytes": None}
    assert client.put("/quotas/alice", json={"max_bytes": 1000}).status_code == 200
    assert [quota["owner"] for quota in client.get("/quotas").json()["data"]] == ["*", "alice"]
    his = client.get("/users/alice/quota").json()
    assert his["max_bytes"] == 1000
    assert his["usage"] == {"versions": 3, "bytes": 300}
    assert client.delete("/quotas/alice").status_code == 204
    assert client.get("/users/alice/quota").json()["max_versions"] == 5
    assert refused(client.delete("/quotas/alice"), 404, "not_found")
    assert refused(client.put("/quotas/nobody", json={}), 404, "user_not_found")
    assert refused(client.put("/quotas/*", json={"max_bytes": -1}), 400, "invalid_request")


def test_rollback_in_steps(client: TestClient) -> None:
    adapter = "/adapters/alice/concise"
    for version in (1, 2, 3):
        client.post(f"{adapter}/activate", json={"version": version})
    assert client.post(f"{adapter}/rollback").json()["version"] == 2
    late = client.post(f"{adapter}/rollback", json={"expected_version": 3})
    assert refused(late, 409, "version_conflict")
    right = client.post(f"{adapter}/rollback", json={"expected_version": 2})
    assert right.json()["ref"] == "alice/concise@1"
    assert refused(client.post(f"{adapter}/rollback"), 409, "conflict")


def test_the_log(client: TestClient) -> None:
    for name in ("a", "b", "c"):
        client.post("/groups", json={"id": name})
    first = client.get("/audit", params={"limit": 2}).json()
    assert [(e["action"], e["subject"], e["actor"]) for e in first["data"]] == [
        ("group.create", "c", "root"),
        ("group.create", "b", "root"),
    ]
    assert first["has_more"]
    after = first["data"][-1]["id"]
    rest = client.get("/audit", params={"after": after, "limit": 100}).json()
    assert [e["subject"] for e in rest["data"]] == ["a", "bob", "alice"]
    assert not rest["has_more"]
    assert len(client.get("/audit", params={"subject": "bob"}).json()["data"]) == 1


def test_a_key_is_revoked(client: TestClient, registry: Registry) -> None:
    made = client.post("/users/alice/keys", json={}).json()
    assert registry.accounts.verify_key(made["key"]) is not None
    assert client.delete(f"/keys/{made['id']}").status_code == 204
    assert registry.accounts.verify_key(made["key"]) is None
    assert refused(client.delete(f"/keys/{made['id']}"), 404, "key_not_found")


def test_text_that_no_database_takes(client: TestClient) -> None:
    for path in ("/groups/a%00b", "/users/a%00b/quota", "/adapters/a%00b"):
        assert client.get(path).status_code == 404
    assert client.get("/audit", params={"subject": "a\0b"}).json()["data"] == []


def test_lists_in_pages(client: TestClient, registry: Registry) -> None:
    registry.accounts.create_user("carol")

    def names(**query: str | int) -> tuple[list[str], bool]:
        answer = client.get("/users", params=query).json()
        return [user["id"] for user in answer["data"]], answer["has_more"]

    assert names() == (["alice", "bob", "carol"], False)
    assert names(limit=2) == (["alice", "bob"], True)
    assert names(limit=2, after="bob") == (["carol"], False)
    assert names(limit=3) == (["alice", "bob", "carol"], False)
    assert refused(client.get("/users", params={"limit": 0}), 400, "invalid_request")
    adapters = client.get("/adapters", params={"limit": 1}).json()
    assert [adapter["adapter"] for adapter in adapters["data"]] == ["alice/concise"]
    assert client.get("/adapters", params={"after": "alice/concise"}).json()["data"] == []


def test_experiments(client: TestClient, registry: Registry) -> None:
    registry.activate("alice/concise", 1)
    arms: list[dict[str, Any]] = [
        {"name": "control", "adapter": "base"},
        {"name": "concise", "adapter": "alice/concise@3", "weight": 3},
    ]
    made = client.post("/experiments", json={"id": "tone", "arms": arms})
    assert (made.status_code, made.json()["state"]) == (201, "draft")
    assert made.json()["arms"][1] == arms[1]
    again = client.post("/experiments", json={"id": "tone", "arms": arms})
    assert refused(again, 409, "already_exists")
    assert refused(client.get("/experiments/size"), 404, "experiment_not_found")
    assigned = client.put("/users/bob/assignment", json={"experiment": "tone"})
    assert assigned.json() == {"user": "bob", "experiment": "tone"}
    for body in ({}, {"adapter": None, "experiment": "tone"}):
        assert refused(client.put("/users/bob/assignment", json=body), 400, "invalid_request")
    assert client.post("/experiments/tone/users", json={"everyone": True}).json()["added"] == 1
    assert client.post("/experiments/tone/start").json()["state"] == "running"
    assert registry.assigned("bob").arm in {"tone/control", "tone/concise"}
    heavier = [{**arm, "weight": 5} for arm in arms]
    changed = client.put("/experiments/tone/arms", json={"arms": heavier}).json()
    assert [arm["weight"] for arm in changed["arms"]] == [5, 5]
    assert refused(client.delete("/experiments/tone"), 409, "conflict")
    assert client.post("/experiments/tone/stop").json()["state"] == "stopped"
    wrong = client.post("/experiments/tone/conclude", json={"winner": "warm"})
    assert refused(wrong, 400, "invalid_name")
    ended = client.post("/experiments/tone/conclude", json={"winner": "concise"}).json()
    assert (ended["state"], ended["winner"]) == ("concluded", "concise")
    assert [one["id"] for one in client.get("/experiments").json()["data"]] == ["tone"]
    assert client.get("/experiments/tone").json()["users"] == 2
    assert client.delete("/experiments/tone").status_code == 204
    assert client.get("/users").json()["data"][1]["experiment"] is None
