"""Two servers on one registry and one store: a change on one is soon in force on the other.

Their database is a real PostgreSQL, which is then stopped under them: who has a key goes on
chatting, and only changes wait. They count limits together in a real Redis, which is stopped, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from postgres import Postgres, postgres
from redis_server import RedisServer, redis_server
from served import QUESTION, refused
from serving import Server, serving

pytestmark = pytest.mark.timeout(600)  # two servers start, which takes minutes on a busy machine

SMALL = {"BAPO_MAX_LORAS": "2", "BAPO_MAX_CPU_LORAS": "2", "BAPO_KV_CACHE_MEBIBYTES": "64"}


@dataclass(frozen=True)
class Replicas:
    one: Server
    other: Server
    database: Postgres
    redis: RedisServer


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    works = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    (works[0] / "data").mkdir()
    (works[1] / "data").symlink_to(works[0] / "data")
    quiet = Console(quiet=True)
    with postgres() as database, redis_server() as redis:
        settings = {
            **SMALL,
            "BAPO_DATABASE_URL": database.create_database(),
            "BAPO_REDIS_URL": redis.url,
        }
        with (
            serving(works[0], quiet, port=0, settings=settings) as one,
            serving(works[1], quiet, port=0, settings=settings) as other,
        ):
            yield Replicas(one, other, database, redis)


def seconds_until(condition: Callable[[], bool], limit: float = 20) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + limit
        time.sleep(0.01)
    return time.monotonic() - began


def resident(server: Server) -> list[str]:
    found: list[str] = server.call("GET", "/admin/engine")["resident"]
    return found


def models(server: Server, key: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"})


def shown(server: Server, key: str) -> list[str]:
    """The versions that this key may use, none for one that is not accepted."""
    return [card["root"] for card in models(server, key).json().get("data", [])[1:]]


def test_a_change_on_one_is_in_force_on_the_other(
    replicas: Replicas, folders: dict[str, Path]
) -> None:
    one, other = replicas.one, replicas.other
    one.upload("voice", folders["pirate"])
    key = one.create_user("ann", "voice")
    assert seconds_until(lambda: shown(other, key) == ["voice@1"]) < 1
    assert other.ask(key, QUESTION)[1] == "voice@1"

    one.upload("voice", folders["formal"])
    assert shown(one, key) == ["voice@2"]  # where it was made, at once
    assert seconds_until(lambda: shown(other, key) == ["voice@2"]) < 1
    assert other.ask(key, QUESTION) == one.ask(key, QUESTION)
    assert other.ask(key, QUESTION, "voice@1")[1] == "voice@1"

    # What is retired leaves the memory of every server's engine.
    assert "voice@2" in resident(other)
    one.upload("voices", folders["pirate"])
    key = one.create_user("eve", "voices")
    assert seconds_until(lambda: shown(other, key) == ["voices@1"]) < 1
    assert other.ask(key, QUESTION)[1] == "voices@1"
    assert "voices@1" in resident(other)
    one.call("DELETE", "/admin/adapters/voices")
    assert seconds_until(lambda: "voices@1" not in resident(other)) < 2
    assert "voice@2" in resident(other)

    key_id = key.split("_")[1]
    one.call("DELETE", f"/admin/keys/{key_id}")
    assert models(one, key).status_code == 401
    assert seconds_until(lambda: models(other, key).status_code == 401) < 1


def asked(server: Server, key: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8},
        timeout=60,
    )


def test_limits_are_counted_together(replicas: Replicas, folders: dict[str, Path]) -> None:
    one, other = replicas.one, replicas.other
    one.upload("counted", folders["formal"])
    one.create_user("cleo", "counted")
    one.call("PUT", "/admin/users/cleo/limits", json={"requests_per_minute": 3})
    # A server that knows a key knows whatever was written before it.
    key = one.call("POST", "/admin/users/cleo/keys", json={})["key"]
    seconds_until(lambda: models(other, key).status_code == 200)
    answers = [asked(server, key) for server in (one, other, one, other, one, other)]
    admitted = [answer.status_code for answer in answers].index(429)
    assert admitted in (3, 4)  # a window that turns meanwhile rounds down once
    refused(answers[admitted], 429, "rate_limit_exceeded")
    replicas.redis.stop()
    try:  # each by itself now, and nobody is locked out
        assert asked(other, key).status_code == 200
    finally:
        replicas.redis.start()

    month = {"requests_per_minute": 1000, "tokens_per_month": 100}
    one.call("PUT", "/admin/users/cleo/limits", json=month)
    for _ in range(10):
        if asked(one, key).status_code != 200:
            break
    refused(asked(one, key), 429, "insufficient_quota")
    assert seconds_until(lambda: asked(other, key).status_code == 429) < 15


def test_both_put_a_user_into_the_same_arm(replicas: Replicas, folders: dict[str, Path]) -> None:
    one, other = replicas.one, replicas.other
    one.upload("tried", folders["pirate"])
    users = [f"tried-{number}" for number in range(8)]
    keys = [one.create_user(user, "tried") for user in users]
    arms = [{"name": "a", "adapter": "base"}, {"name": "b", "adapter": "tried@1"}]
    one.call("POST", "/admin/experiments", json={"id": "tone", "arms": arms})
    one.call("POST", "/admin/experiments/tone/users", json={"users": users})
    one.call("POST", "/admin/experiments/tone/start")
    split = [one.ask(key, QUESTION) for key in keys]
    assert {label for _, label in split} == {"base", "tried@1"}
    seconds_until(lambda: other.ask(keys[0], QUESTION) == split[0])
    assert [other.ask(key, QUESTION) for key in keys] == split


def test_an_answer_of_one_is_rated_on_the_other(
    replicas: Replicas, folders: dict[str, Path]
) -> None:
    one, other = replicas.one, replicas.other
    one.upload("rated", folders["playful"])
    key = one.create_user("rita", "rated")
    seconds_until(lambda: models(other, key).status_code == 200)
    one.call("PUT", "/v1/feedback/consent", key=key, json={"keep": True})
    agreed = {"user": "rita", "keep": True}
    path = "/v1/feedback/consent"
    assert seconds_until(lambda: other.call("GET", path, key=key) == agreed) < 1
    for answering, rating in ((one, other), (other, one)):
        body = {"completion_id": asked(answering, key).json()["id"], "rating": "up"}
        said = rating.call("POST", "/v1/feedback", key=key, json=body)  # as fast as can be
        assert said["answered_by"] == "rated@1"
    other.call("PUT", "/v1/feedback/consent", key=key, json={"keep": False})
    gone = httpx.post(
        f"{one.url}/v1/feedback",
        headers={"Authorization": f"Bearer {key}"},
        json=body,
        timeout=60,
    )
    refused(gone, 404, "answer_not_found")


def test_chat_goes_on_while_the_database_is_away(
    replicas: Replicas, folders: dict[str, Path]
) -> None:
    server = replicas.one
    server.upload("steady", folders["playful"])
    key = server.create_user("bob", "steady")
    replicas.database.stop()
    try:
        assert server.ask(key, QUESTION)[1] == "steady@1"
        stranger = models(server, f"{key}x")
        refused(stranger, 401, "invalid_api_key")
        change = httpx.post(
            f"{server.url}/admin/users",
            headers={"Authorization": f"Bearer {server.admin_key}"},
            json={"id": "late"},
            timeout=60,
        )
        refused(change, 503, "store_unavailable")
        assert change.headers["Retry-After"]
        rating = httpx.post(
            f"{server.url}/v1/feedback",
            headers={"Authorization": f"Bearer {key}"},
            json={"completion_id": "x", "rating": "up"},
            timeout=60,
        )
        refused(rating, 503, "store_unavailable")
        assert server.ask(key, QUESTION)[1] == "steady@1"
    finally:
        replicas.database.start()
    server.create_user("late", "steady")
    seconds_until(lambda: models(replicas.other, key).status_code == 200)
    server.call("DELETE", "/admin/users/bob")
    assert seconds_until(lambda: models(replicas.other, key).status_code == 401) < 5
