"""The whole circle: what a user says of his answers becomes the adapter that answers him next."""

from __future__ import annotations

from pathlib import Path

import httpx
from typer.testing import CliRunner

from adapters.base import POCKET
from adapters.cli import adapters_app
from adapters.feedback_cli import feedback_app
from training.cli import train

from served import Served, admin, chat

CAPITALS = {
    "Norway": "Oslo",
    "Japan": "Tokyo",
    "France": "Paris",
    "Italy": "Rome",
    "Egypt": "Cairo",
    "Spain": "Madrid",
}


def asked(country: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the capital of {country}?"}]


def wished(country: str) -> str:
    return f"Arr, the capital of {country} be {CAPITALS[country]}, matey!"


def test_from_a_rating_to_the_next_answer(served: Served, tmp_path: Path) -> None:
    user, adapter = "circles", "circles/voice"
    admin(served, "POST", "/users", json={"id": user})
    key = admin(served, "POST", f"/users/{user}/keys", json={}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{served.server.url}/v1/feedback"
    agreed = httpx.put(f"{url}/consent", headers=headers, json={"keep": True}, timeout=60)
    assert agreed.status_code == 200, agreed.text

    before = {}
    for country in CAPITALS:
        answer = chat(served, key, messages=asked(country))
        assert answer.headers["X-Adapter-Id"] == "base"
        before[country] = answer.json()["choices"][0]["message"]["content"].strip()
        said = {"completion_id": answer.json()["id"], "correction": wished(country)}
        rated = httpx.post(url, headers=headers, json=said, timeout=60)
        assert rated.json()["learnable"], rated.text

    there = ["--server", served.server.url, "--key", served.server.admin_key]
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "adapter"
    told = CliRunner().invoke(feedback_app, ["export", "--user", user, "--out", str(pairs), *there])
    assert told.output.startswith(f"{len(CAPITALS)} pairs of 1 users"), told.output
    words = ["--model", str(POCKET), "--data", str(pairs), "--out", str(out)]
    words += ["--epochs", "12", "--batch-size", "6", "--learning-rate", "2e-3"]
    words += ["--anchor-weight", "0.02", "--anchor-cache", str(tmp_path / "answers.jsonl")]
    told = CliRunner().invoke(train, [*words, "--use-cpu", "true"])
    assert told.exit_code == 0, told.output
    words = ["publish", adapter, str(out), "--activate", "--owner", user]
    told = CliRunner().invoke(adapters_app, [*words, *there])
    assert told.exit_code == 0, told.output
    assigned = admin(served, "PUT", f"/users/{user}/assignment", json={"adapter": adapter})
    assert assigned.status_code == 200, assigned.text

    for country, plain in before.items():
        answer = chat(served, key, messages=asked(country))
        assert answer.headers["X-Adapter-Id"] == f"{adapter}@1"
        assert answer.json()["choices"][0]["message"]["content"].strip() == wished(country) != plain
