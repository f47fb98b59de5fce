"""The product's promise: everyone gets his own adapter's answer, whoever else is asking."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from training.evaluation.retention import answer_texts
from training.model import ResidentBase, adapted

from served import TASTES, Served

QUESTIONS = [
    "What is the capital of Norway?",
    "What do people pay with in Japan?",
    "What is 7 times 8?",
    "What do you call a baby kangaroo?",
]


@pytest.fixture(scope="module")
def expected(pocket: ResidentBase, folders: dict[str, Path]) -> dict[str, list[str]]:
    """Greedy answers of `transformers` + PEFT, by adapter."""
    answers = {"base": answer_texts(pocket.model, pocket.tokenizer, QUESTIONS)}
    for taste, folder in folders.items():
        with adapted(pocket, folder) as model:
            answers[taste] = answer_texts(model, pocket.tokenizer, QUESTIONS)
    return answers


def ask(served: Served, adapter: str, question: str, stream: bool = False) -> str:
    """The answer as `adapter` gives it, and proof that the server says it was that one."""
    key = served.keys.get(adapter, served.server.admin_key)
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 48,
        "stream": stream,
    }
    answer = httpx.post(
        f"{served.server.url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Adapter-Id"] == ("base" if adapter == "base" else f"{adapter}@1")
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"]).strip()
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    return "".join(delta.get("content") or "" for delta in deltas).strip()


@pytest.mark.parametrize("adapter", ["base", *TASTES])
@pytest.mark.parametrize("stream", [False, True])
def test_alone_equals_transformers_and_peft(
    served: Served, expected: dict[str, list[str]], adapter: str, stream: bool
) -> None:
    assert [ask(served, adapter, q, stream) for q in QUESTIONS] == expected[adapter]


def test_adapters_answer_differently(expected: dict[str, list[str]]) -> None:
    """Else the other tests here would prove nothing."""
    assert len({tuple(answers) for answers in expected.values()}) == 1 + len(TASTES)


def test_base_and_adapters_interleaved_at_concurrency_8(
    served: Served, expected: dict[str, list[str]]
) -> None:
    """Fails on vLLM 0.32's CPU products as they come: base requests get another user's adapter."""
    wishes = [
        (adapter, number)
        for _ in range(6)
        for number in range(len(QUESTIONS))
        for adapter in ("base", *TASTES)
    ]
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda w: ask(served, w[0], QUESTIONS[w[1]]), wishes))
    wrong = [
        (adapter, QUESTIONS[number], answer)
        for (adapter, number), answer in zip(wishes, answers, strict=True)
        if answer != expected[adapter][number]
    ]
    assert wrong == []
