"""Feedback on the running server: from a chat to preference pairs that training reads."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from adapters.arms import Arm, draw
from adapters.feedback_cli import feedback_app
from training.data import load_pairs
from training.users import users_of

from served import METRICS_KEY, QUESTION, Served, admin, chat, measured, refused

ASKED = [{"role": "user", "content": QUESTION}]


def call(served: Served, key: str, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", **options.pop("headers", {})}
    return httpx.request(method, served.server.url + path, headers=headers, timeout=60, **options)


def say(served: Served, key: str, **said: Any) -> httpx.Response:
    body, kind = json.dumps(said), {"Content-Type": "application/json"}
    return call(served, key, "POST", "/v1/feedback", content=body, headers=kind)


def consent(served: Served, key: str, keep: bool) -> httpx.Response:
    return call(served, key, "PUT", "/v1/feedback/consent", json={"keep": keep})


@pytest.fixture
def user(served: Served) -> tuple[str, str]:
    """A new user of the pirate's adapter, and his key."""
    name = f"says-{secrets.token_hex(4)}"
    return name, served.server.create_user(name, "pirate")


def exported(served: Served, user: str) -> list[tuple[str, str]]:
    """Chosen and rejected of each pair."""
    found = admin(served, "GET", "/feedback", params={"user": user}).json()["data"]
    return [
        (pair["chosen"][0]["content"], pair["rejected"][0]["content"])
        for row in found
        for pair in row["pairs"]
    ]


def test_from_a_chat_to_training(served: Served, user: tuple[str, str], tmp_path: Path) -> None:
    name, key = user
    before = measured(served.server.url, METRICS_KEY)
    first = chat(served, key).json()["id"]
    refused(say(served, key, completion_id=first, rating="up"), 404, "answer_not_found")
    assert call(served, key, "GET", "/v1/feedback/consent").json() == {"user": name, "keep": False}
    assert consent(served, key, True).json() == {"user": name, "keep": True}

    pirate = chat(served, key).json()
    plain = chat(served, key, headers={"X-Adapter-Id": "base"}, stream=True)
    streamed = json.loads(plain.text.split("\n\n")[0].removeprefix("data: "))["id"]
    liked = say(served, key, completion_id=pirate["id"], rating="up").json()
    assert liked == {
        "object": "feedback",
        "learnable": True,
        "completion_id": pirate["id"],
        "choice": 0,
        "rating": "up",
        "answered_by": "pirate@1",
    }
    correction = "Oslo, ye landlubber!"
    fixed = say(served, key, completion_id=streamed, correction=correction).json()
    assert (fixed["rating"], fixed["answered_by"]) == ("down", "base")
    arr = pirate["choices"][0]["message"]["content"]
    pairs = exported(served, name)
    assert [chosen for chosen, _ in pairs] == [correction, arr]
    assert len({rejected for _, rejected in pairs}) == 1

    out = tmp_path / "pairs.jsonl"
    where = ["--server", served.server.url, "--key", served.server.admin_key]
    told = CliRunner().invoke(feedback_app, ["export", "--user", name, "--out", str(out), *where])
    assert told.output.startswith("2 pairs of 1 users"), told.output
    read = load_pairs(out)
    assert [(p.chosen, p.rejected) for p in read] == pairs
    assert read[0].messages == ASKED
    (of_user,) = users_of(out)
    assert (of_user.user, len(of_user.pairs), of_user.problem) == (name, 2, None)

    assert consent(served, key, False).json()["keep"] is False
    assert exported(served, name) == []
    refused(say(served, key, completion_id=pirate["id"], rating="up"), 404, "answer_not_found")
    after = measured(served.server.url, METRICS_KEY)
    kept = ("bapo_answers_kept_total", "")
    assert after[kept] == before[kept] + 2
    text = (served.data_dir.parent / "server.log").read_text()
    assert correction not in text
    assert arr not in text


def test_every_route_and_choice(served: Served, user: tuple[str, str]) -> None:
    name, key = user
    consent(served, key, True)
    answers = {
        "/v1/chat/completions": {"messages": ASKED, "n": 2, "temperature": 0.2},
        "/v1/messages": {"model": "pirate", "messages": ASKED, "max_tokens": 32},
        "/v1/responses": {"input": QUESTION, "temperature": 0},
        "/v1/completions": {"prompt": QUESTION, "max_tokens": 4},
    }
    for path, body in answers.items():
        whole = call(served, key, "POST", path, json=body).json()
        streamed = call(served, key, "POST", path, json={**body, "stream": True}).text
        ids = [whole["id"], id_in(streamed)]
        for completion_id in ids:
            rated = say(served, key, completion_id=completion_id, rating="up").json()
            assert rated["answered_by"] == "pirate@1", (path, rated)
            assert rated["learnable"] is (path != "/v1/completions"), path
        if "n" in body:
            second = say(served, key, completion_id=ids[0], choice=1, rating="down")
            assert second.json()["choice"] == 1
            third = say(served, key, completion_id=ids[0], choice=2, rating="down")
            refused(third, 404, "answer_not_found")
    ready = {"chosen": {"completion_id": ids[0]}, "rejected": {"completion_id": ids[1]}}
    refused(say(served, key, **ready), 409, "texts_not_kept")
    texts = {"prompt": ASKED, "chosen": "Oslo.", "rejected": "Bergen."}
    assert say(served, key, **texts).json() == {"object": "feedback", "learnable": True}
    assert ("Oslo.", "Bergen.") in exported(served, name)
    admin(served, "PUT", f"/users/{name}/feedback", json={"keep": False})
    refused(say(served, key, **texts), 409, "texts_not_kept")


def id_in(events: str) -> str:
    """The answer's id in a stream of any of the shapes."""
    for line in events.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            found = event.get("response") or event.get("message") or event
            return str(found["id"])
    raise AssertionError(events)


def test_nobody_rates_anothers_answer(served: Served, user: tuple[str, str]) -> None:
    name, key = user
    consent(served, key, True)
    made = chat(served, key).json()["id"]
    stranger = served.keys["formal"]
    refused(say(served, stranger, completion_id=made, rating="up"), 404, "answer_not_found")
    root = served.server.admin_key
    refused(say(served, root, completion_id=made, rating="up"), 400, "invalid_request")
    for_him = {"X-User-Id": name}
    said = {"completion_id": made, "rating": "up"}
    assert call(served, root, "POST", "/v1/feedback", headers=for_him, json=said).is_success
    forged = call(served, stranger, "POST", "/v1/feedback", headers=for_him, json=said)
    refused(forged, 403, "not_allowed")
    nobody = call(
        served,
        root,
        "PUT",
        "/v1/feedback/consent",
        headers={"X-User-Id": "x y"},
        json={"keep": True},
    )
    refused(nobody, 404, "user_not_found")
    refused(
        admin(served, "PUT", "/users/nobody/feedback", json={"keep": True}), 404, "user_not_found"
    )
    refused(call(served, key, "GET", "/admin/feedback"), 403, "not_allowed")


def test_a_client_that_leaves_can_rate_what_he_saw(served: Served, user: tuple[str, str]) -> None:
    _, key = user
    consent(served, key, True)
    body = {"messages": ASKED, "stream": True, "ignore_eos": True, "max_tokens": 400}
    url, headers = f"{served.server.url}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    with httpx.stream("POST", url, headers=headers, json=body, timeout=60) as answer:
        begun = id_in(next(answer.iter_text()))
    rated = say(served, key, completion_id=begun, rating="down").json()
    assert (rated["rating"], rated["learnable"]) == ("down", False)  # it was cut short


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"completion_id": "x"},
        {"rating": "up"},
        {"completion_id": "x", "rating": "sideways"},
        {"completion_id": "x", "rating": "up", "chosen": "a", "rejected": "b"},
        {"completion_id": "x" * 129, "rating": "up"},
        {"completion_id": "x", "rating": "up", "choice": -1},
        {"completion_id": "x", "rating": "up", "choice": 2**31},
        {"completion_id": "x", "rating": "up", "user_id": "somebody"},
        {"chosen": "a", "rejected": "b"},
        {"chosen": "a", "rejected": {"completion_id": "x"}, "prompt": "p"},
        {"chosen": {"completion_id": "x"}, "rejected": {"completion_id": "y"}, "prompt": "p"},
        {"chosen": "a", "rejected": "a", "prompt": "p"},
        {"chosen": "a", "rejected": "\0", "prompt": "p"},
        {"chosen": "a", "rejected": "\ud800", "prompt": "p"},
        {"chosen": "a", "rejected": "b" * 200_000, "prompt": "p"},
        {"chosen": "a", "rejected": "b", "prompt": []},
        {"chosen": "a", "rejected": "b", "prompt": [{"role": "user"}]},
        {"chosen": "a", "rejected": "b", "prompt": [{"role": "x", "content": "p"}]},
        {"chosen": "a", "rejected": "b", "prompt": "p", "choice": 1},
    ],
)
def test_bodies_that_make_no_sense(served: Served, body: dict[str, Any]) -> None:
    key = served.keys["pirate"]
    consent(served, key, True)
    answer = say(served, key, **body)
    assert answer.status_code == 400, answer.text
    refused(answer, 400, answer.json()["error"]["code"])
    consent(served, key, False)


def test_what_an_experiment_says(served: Served) -> None:
    """Nobody has agreed that texts are kept: arms are compared all the same."""
    arms = [Arm.of("control", "base"), Arm.of("warm", "pirate@1")]
    users = [f"judges-{number}" for number in range(8)]
    for one in users:
        served.server.call("POST", "/admin/users", json={"id": one})
    given = [{"name": arm.name, "adapter": arm.serves} for arm in arms]
    served.server.call("POST", "/admin/experiments", json={"id": "voice", "arms": given})
    served.server.call("POST", "/admin/experiments/voice/users", json={"users": users})
    served.server.call("POST", "/admin/experiments/voice/start")
    split = {one: draw("voice", arms, one).name for one in users}
    assert set(split.values()) == {"control", "warm"}
    key = served.server.admin_key
    for one, arm in split.items():
        for_him = {"X-User-Id": one}
        made = chat(served, key, headers=for_him, max_tokens=2).json()["id"]
        said = {"completion_id": made, "rating": "up" if arm == "warm" else "down"}
        rated = call(served, key, "POST", "/v1/feedback", headers=for_him, json=said).json()
        assert rated["learnable"] is False
    found = served.server.call("GET", "/admin/experiments/voice/results")
    control, warm = found["arms"]
    number = list(split.values()).count("warm")
    assert (warm["users"], warm["raters"], warm["liked"]) == (number, number, number)
    assert (control["win_rate"]["value"], warm["win_rate"]["value"]) == (0.0, 1.0)
    (compared,) = found["comparisons"]
    assert (compared["difference"], compared["raters"]) == (1.0, 8)
    assert 0 < compared["low"] < 1
    refused(admin(served, "GET", "/experiments/other/results"), 404, "experiment_not_found")
    served.server.call("POST", "/admin/experiments/voice/stop")
    served.server.call("DELETE", "/admin/experiments/voice")
