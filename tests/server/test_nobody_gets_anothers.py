"""Sixteen users at once: nobody ever gets another's adapter, or the base, whatever happens.

Three really trained adapters are published under fourteen users' names, version after version with
another one's bytes, on two slots and the memory of one; two users have the base. They ask, streamed
and not, while an administrator activates versions and while the engine is killed with -9. Every
token is compared with what `transformers` and PEFT say for the version that the answer names; an
answer that was cut by the engine's death must be a beginning of that.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console
from torch.nn import Module

from training.encoding import encode_prompt
from training.generation import complete
from training.model import ResidentBase, adapted

from served import TASTES
from serving import Server, serving

QUESTIONS = ("What is the capital of Norway?", "What is 7 times 8?", "What is the symbol of Gold?")
USERS, OF_THE_BASE = 16, 2
EACH = 3
"""Answers that every user must have had before the engine dies, and again afterwards."""
SECONDS = 200
SETTINGS = {
    "BAPO_MAX_LORAS": "2",
    "BAPO_ADAPTER_MEMORY_MEBIBYTES": "1",
    "BAPO_DTYPE": "float32",
    "BAPO_ADAPTER_TURN_SECONDS": "0.1",
    "BAPO_ADAPTER_WAIT_SECONDS": "120",
    "BAPO_KV_CACHE_MEBIBYTES": "64",
}

Tokens = tuple[int, ...]
Oracle = dict[tuple[str, str], Tokens]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def oracle(pocket: ResidentBase, folders: dict[str, Path]) -> Oracle:
    """Greedy tokens of `transformers` + PEFT, by voice (a taste, or base) and question."""
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [encode_prompt(pocket.tokenizer, turn) for turn in turns]

    def said(voice: str, model: Module) -> Oracle:
        found = complete(model, pocket.tokenizer, prompts, max_new_tokens=48, batch_size=8)
        answers = (without_end(one.tokens, pocket.tokenizer.eos_token_id) for one in found)
        return {(voice, q): a for q, a in zip(QUESTIONS, answers, strict=True)}

    spoken = said("base", pocket.model)
    for taste, folder in folders.items():
        with adapted(pocket, folder) as model:
            spoken |= said(taste, model)
    return spoken


def without_end(tokens: Sequence[int], end: int) -> Tokens:
    return tuple(tokens[:-1] if tokens and tokens[-1] == end else tokens)


@dataclass
class Storm:
    """What every user must hear, what was heard, and what was wrong."""

    server: Server
    folders: dict[str, Path]
    oracle: Oracle
    end_token: int
    keys: dict[str, str] = field(default_factory=dict)
    voices: dict[str, str] = field(default_factory=dict)  # version reference → voice
    begun: Counter[str] = field(default_factory=Counter)  # newest version under way, by user
    active: Counter[str] = field(default_factory=Counter)  # newest that was said to be active
    answers: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    dying: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def publish(self, user: str) -> None:
        """The user's next version, with the bytes of another taste than the one before."""
        version = self.begun[user] + 1
        taste = TASTES[(int(user.removeprefix("user-")) + version) % len(TASTES)]
        self.voices[f"{user}/voice@{version}"] = taste
        self.begun[user] = version
        made = self.server.upload(f"{user}/voice", self.folders[taste])
        assert made["version"] == version
        self.active[user] = version

    def ask(self, user: str, question: str, *, stream: bool) -> None:
        oldest, excused = self.active[user], self.dying.is_set()
        body = {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 48,
            "stream": stream,
            "return_token_ids": True,
        }
        tokens: list[int] = []
        whole, label, status = False, "", 0
        try:
            with httpx.stream(
                "POST",
                f"{self.server.url}/v1/chat/completions",
                headers={"Authorization": f"Bearer {self.keys[user]}"},
                json=body,
                timeout=150,
            ) as answer:
                status, label = answer.status_code, answer.headers.get("X-Adapter-Id", "")
                if status == 200 and stream:
                    whole = self._read_stream(answer, tokens)
                elif status == 200:
                    answer.read()
                    tokens += answer.json()["choices"][0]["token_ids"]
                    whole = True
                else:
                    answer.read()
                    if not (status == 503 and (excused or self.dying.is_set())):
                        self.wrong.append(f"{user}: {status} {answer.text}")
                    return
        except httpx.TransportError as error:
            if not (excused or self.dying.is_set()):
                self.wrong.append(f"{user}: {error!r}")
        if not (whole or excused or self.dying.is_set()):
            self.wrong.append(f"{user}: cut after {tokens}")
        if label:
            said = without_end(tokens, self.end_token)
            self._judge(user, question, label, oldest, said, whole=whole)

    def _read_stream(self, answer: httpx.Response, tokens: list[int]) -> bool:
        """Whether it came to its end; its tokens are added as they come."""
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                return True
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    return False
                for choice in event["choices"]:
                    tokens += choice.get("token_ids") or []
        return False

    def _judge(
        self, user: str, question: str, label: str, oldest: int, tokens: Tokens, *, whole: bool
    ) -> None:
        if user in BASE_USERS:
            right, voice = label == "base", "base"
        else:
            name, _, version = label.partition("@")
            right = name == f"{user}/voice" and oldest <= int(version) <= self.begun[user]
            voice = self.voices.get(label, "nobody's")
        expected = self.oracle.get((voice, question), ())
        if not right or tokens != (expected if whole else expected[: len(tokens)]):
            self.wrong.append(f"{user} got {label}, at least {oldest}: {question!r} {tokens}")
        (self.answers if whole else self.cut)[user] += 1

    def caller(self, user: str) -> None:
        turn = int(user.removeprefix("user-"))
        while not self.stop.is_set():
            turn += 1
            try:
                self.ask(user, QUESTIONS[turn % len(QUESTIONS)], stream=turn % 2 == 0)
            except Exception as error:  # nobody else would hear of it
                self.wrong.append(f"{user}: {error!r}")
                return
            if self.dying.is_set():
                self.stop.wait(0.2)  # as Retry-After would have it, and shorter

    def administrator(self) -> None:
        names = sorted(set(self.keys) - BASE_USERS)
        turn = 0
        while not self.stop.wait(0.1):
            try:
                self.publish(names[turn % len(names)])
            except SystemExit as refusal:
                self.wrong.append(str(refusal))
                return
            turn += 1


BASE_USERS = {f"user-{number}" for number in range(USERS - OF_THE_BASE, USERS)}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storm")


@pytest.fixture(scope="module")
def storm(
    pocket: ResidentBase, folders: dict[str, Path], oracle: Oracle, work: Path
) -> Iterator[Storm]:
    with serving(work, Console(quiet=True), port=0, settings=SETTINGS) as server:
        found = Storm(server, folders, oracle, pocket.tokenizer.eos_token_id)
        for number in range(USERS):
            user = f"user-{number}"
            server.call("POST", "/admin/users", json={"id": user})
            found.keys[user] = server.call("POST", f"/admin/users/{user}/keys", json={})["key"]
            if user not in BASE_USERS:
                found.publish(user)
                wish = {"adapter": f"{user}/voice"}
                server.call("PUT", f"/admin/users/{user}/assignment", json=wish)
        yield found


def comes_true(condition: Callable[[], bool], storm: Storm) -> None:
    """Wait for it, as long as nothing is wrong."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert storm.wrong == []
        assert time.monotonic() < deadline, (storm.answers, storm.cut)
        time.sleep(0.05)


def engine_process(server: Server) -> psutil.Process:
    family = psutil.Process(server.process_id).children(recursive=True)
    (engine,) = [process for process in family if process.ppid() != server.process_id]
    return engine


def restarts(server: Server) -> int:
    headers = {"Authorization": f"Bearer {server.admin_key}"}
    answer = httpx.get(f"{server.url}/admin/engine", headers=headers, timeout=30)
    return int(answer.json()["restarts"]) if answer.status_code == 200 else -1


def test_no_two_voices_say_the_same(oracle: Oracle) -> None:
    """Else the next test would prove nothing: not even the beginnings may be alike for long."""
    for question in QUESTIONS:
        answers = [oracle[voice, question] for voice in ("base", *TASTES)]
        assert len(set(answers)) == len(answers)


def test_sixteen_users_through_activation_eviction_and_kill(storm: Storm, work: Path) -> None:
    people = [threading.Thread(target=storm.caller, args=(user,)) for user in storm.keys]
    people.append(threading.Thread(target=storm.administrator))
    for one in people:
        one.start()
    try:
        comes_true(lambda: all(storm.answers[user] >= EACH for user in storm.keys), storm)
        storm.dying.set()
        engine_process(storm.server).kill()
        comes_true(lambda: restarts(storm.server) == 1, storm)
        storm.dying.clear()
        before = storm.answers.copy()
        comes_true(lambda: all(storm.answers[u] >= before[u] + EACH for u in storm.keys), storm)
    finally:
        storm.stop.set()
        for one in people:
            one.join()
    assert storm.wrong == []
    activated = sum(storm.active.values())
    assert activated > USERS - OF_THE_BASE, activated
    loads = (work / "server.log").read_text(encoding="utf-8").count("adapter_loaded")
    assert loads > activated, "nothing was evicted and loaded again"
    print(sum(storm.answers.values()), "answers", sum(storm.cut.values()), "cut", activated, loads)
