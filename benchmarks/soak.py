"""Minutes of 200 users, uploads, switches, retirements, killed engines and clients that leave,
against one real server; nobody may ever get another's adapter, and nothing may stay taken.

Trains two small adapters and serves them under one name for each user. Callers ask as users drawn
by chance, and some of them leave in the middle. An administrator publishes versions (now one
adapter's bytes, now the other's), switches back and forth and retires; somebody kills the engine
with -9. Each answer, and each beginning of one, is compared with what the version named in
`X-Adapter-Id` says when it is asked alone. Exits 1 on a wrong answer, a refusal without a reason, a
turn or open file that is not given back, or memory that grows.

    make soak ARGS="5 --users 200"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "examples"))
from adapters.base import POCKET  # noqa: E402
from benchmarks.soak_watch import MEMORY_MIB_A_MINUTE, MORE_FILES, Watch  # noqa: E402
from training.config import BAPOConfig  # noqa: E402
from training.model import load_base  # noqa: E402
from training.run import train_adapter  # noqa: E402

from serving import Server, serving  # noqa: E402

VOICES = ("pirate", "playful")
QUESTIONS = ("What is the capital of Norway?", "What is 3 times 4?", "What is the symbol of Gold?")
SMALL = {
    "BAPO_MAX_LORAS": "4",
    "BAPO_ADAPTER_MEMORY_MEBIBYTES": "8",
    "BAPO_DTYPE": "float32",
    "BAPO_ADAPTER_TURN_SECONDS": "0.2",
}
RESTART_SECONDS = 90.0
"""After a kill, the engine may be away for so long."""
KILL_PAUSE = (25.0, 50.0)
WARM_UP_SECONDS = 60.0
ENDED = "data: [DONE]"


class Soak:
    """The shared state of one run: what each version must say, and what went wrong."""

    def __init__(self, server: Server, folders: dict[str, Path], watch: Watch) -> None:
        self.server = server
        self.folders = folders
        self.watch = watch
        self.keys: dict[str, str] = {}  # user → API key
        self.spoken: dict[tuple[str, str], str] = {}  # (voice or base, question) → answer alone
        self.voice_of: dict[str, str] = {"base": "base"}  # version reference → voice
        self.active: dict[str, int] = {}  # adapter → its newest version
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.engine_back_by = 0.0
        """Until then, `engine_unavailable` has its reason."""

    def learn_answers(self) -> None:
        """What everyone must hear, asked one at a time before the storm."""
        for voice in VOICES:
            self.publish(f"reference-{voice}", voice)
            for question in QUESTIONS:
                key = self.server.admin_key
                said, _ = self.server.ask(key, question, adapter=f"reference-{voice}")
                self.spoken[voice, question] = said
        for question in QUESTIONS:
            said, _ = self.server.ask(self.server.admin_key, question, adapter="base")
            self.spoken["base", question] = said

    def publish(self, name: str, voice: str) -> None:
        # Known before it is active: somebody may be answered by it before the upload returns.
        version = self.active.get(name, 0) + 1
        self.voice_of[f"{name}@{version}"] = voice
        self.server.upload(name, self.folders[voice])
        self.active[name] = version
        self.counts["published"] += 1

    def switch(self, name: str, version: int) -> None:
        self.server.call("POST", f"/admin/adapters/{name}/activate", json={"version": version})
        self.counts["switched"] += 1

    def retire(self, name: str) -> None:
        self.server.call("DELETE", f"/admin/adapters/{name}")
        self.counts["retired"] += 1

    def check(self, label: str, question: str, said: str, is_whole: bool) -> None:
        """Count an answer, or the beginning of one, and note a wrong one."""
        known = self.spoken[self.voice_of[label], question]
        right = said.strip() == known if is_whole else known.startswith(said.lstrip())
        self.counts["answers" if is_whole else "beginnings"] += 1
        if not right:
            self.wrong.append(f"{label} {question!r}: {said!r} is not {known!r}")

    def check_refusal(self, error: dict[str, Any]) -> None:
        """Count a refusal, and note one that there was no reason for."""
        code = error["code"]
        self.counts[code] += 1
        engine_was_killed = time.monotonic() < self.engine_back_by
        if code != "adapter_busy" and not (code == "engine_unavailable" and engine_was_killed):
            self.wrong.append(f"refused: {error}")


async def call_for(soak: Soak, client: httpx.AsyncClient, seed: int, until: float) -> None:
    """Ask as one user after the other, streamed or not, and now and then leave."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        user, question = rng.choice(list(soak.keys)), rng.choice(QUESTIONS)
        headers = {"Authorization": f"Bearer {soak.keys[user]}"}
        if rng.random() < 0.2:
            headers["X-Adapter-Id"] = "base"
        leaves_after = rng.randrange(1, 12) if rng.random() < 0.2 else None
        body = {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 64,
            "stream": rng.random() < 0.7,
        }
        if leaves_after is not None and rng.random() < 0.3:
            # So soon that it may still be waiting for its turn.
            asked = client.post("/v1/chat/completions", json=body, headers=headers)
            try:
                await asyncio.wait_for(asked, rng.random() / 2)
            except TimeoutError:
                soak.counts["left early"] += 1
            continue
        await ask(soak, client, headers, body, question, leaves_after)


async def ask(
    soak: Soak,
    client: httpx.AsyncClient,
    headers: dict[str, str],
    body: dict[str, Any],
    question: str,
    leaves_after: int | None,
) -> None:
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers
        ) as answer:
            if answer.is_error:
                soak.check_refusal(json.loads(await answer.aread())["error"])
                return
            label = answer.headers["X-Adapter-Id"]
            if not body["stream"]:
                found = json.loads(await answer.aread())
                said = found["choices"][0]["message"]["content"]
                soak.check(label, question, said, is_whole=True)
                return
            said, lines = "", 0
            async for line in answer.aiter_lines():
                if line == ENDED:
                    soak.check(label, question, said, is_whole=True)
                    return
                if not line:
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    soak.check_refusal(event["error"])
                    soak.check(label, question, said, is_whole=False)
                    return
                said += event["choices"][0]["delta"].get("content") or ""
                lines += 1
                if lines == leaves_after:
                    soak.counts["left"] += 1
                    soak.check(label, question, said, is_whole=False)
                    return
            soak.wrong.append(f"{label}: a stream ended without an end")
    except httpx.TransportError as error:
        soak.wrong.append(f"connection: {error!r}")


async def administer(soak: Soak, names: list[str], until: float) -> None:
    rng = random.Random(0)
    while time.monotonic() < until:
        name, voice = rng.choice(names), rng.choice(VOICES)
        await asyncio.to_thread(soak.publish, name, voice)
        other = rng.choice(names)
        await asyncio.to_thread(soak.switch, other, rng.randint(1, soak.active[other]))
        passing = f"passing-{soak.counts['published']}"
        await asyncio.to_thread(soak.publish, passing, voice)
        await asyncio.to_thread(soak.retire, passing)
        await asyncio.sleep(0.5)


async def kill_engines(soak: Soak, until: float) -> None:
    """Now and then, at a time of chance, the engine's process; and wait for the next one."""
    rng = random.Random(1)
    while (pause := rng.uniform(*KILL_PAUSE)) + time.monotonic() + 20 < until:
        await asyncio.sleep(pause)
        engine = await asyncio.to_thread(soak.watch.engine)
        if engine is None:
            continue
        soak.engine_back_by = time.monotonic() + RESTART_SECONDS
        engine.kill()
        soak.counts["engines killed"] += 1
        began = time.monotonic()
        await asyncio.sleep(1)
        if not await ready(soak.server, RESTART_SECONDS):
            soak.wrong.append("the engine did not come back")
            return
        soak.counts["seconds without an engine"] += round(time.monotonic() - began)
        soak.engine_back_by = time.monotonic() + 5  # answers that are on their way


async def ready(server: Server, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    async with httpx.AsyncClient(timeout=30) as client:
        while time.monotonic() < deadline:
            if (await client.get(f"{server.url}/health/ready")).status_code == httpx.codes.OK:
                return True
            await asyncio.sleep(0.25)
    return False


async def storm(soak: Soak, names: list[str], minutes: float, callers: int) -> None:
    """Everybody at once until the time is over."""
    until = time.monotonic() + minutes * 60
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=soak.server.url, timeout=180, limits=limits) as client:
        await asyncio.gather(
            administer(soak, names, until),
            kill_engines(soak, until),
            *(call_for(soak, client, seed, until) for seed in range(callers)),
        )


def train(work: Path) -> dict[str, Path]:
    base = load_base(POCKET)
    settings = BAPOConfig(
        learning_rate=1e-3,
        num_train_epochs=4,
        anchor_weight=0.05,
        anchor_cache=str(work / "anchors.jsonl"),
        output_dir=str(work / "trainer"),
    )
    for voice in VOICES:
        pairs = ROOT / "examples" / "preferences" / f"{voice}.jsonl"
        train_adapter(base, pairs, work / voice, settings, label=voice)
    return {voice: work / voice for voice in VOICES}


def what_is_left(soak: Soak, files_before: int) -> list[str]:
    """What has not been given back ten seconds after the last request; and leaks."""
    deadline = time.monotonic() + 10
    while True:
        slots = soak.server.call("GET", "/admin/engine")["slots"]
        files = soak.watch.open_files()
        found = [f"slots {slots}"] if slots["running"] or slots["waiting"] else []
        found += [f"open files {files}"] if files > files_before + MORE_FILES else []
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(";")[0])
    parser.add_argument("minutes", type=float, nargs="?", default=2.0)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--callers", type=int, default=12, help="requests at once")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders = train(work)
        with serving(work, console, port=0, settings=SMALL) as server:
            watch = Watch(server.process_id)
            soak = Soak(server, folders, watch)
            soak.learn_answers()
            names = [f"user-{number}/voice" for number in range(arguments.users)]
            for number, name in enumerate(names):
                soak.publish(name, VOICES[number % 2])
                soak.keys[name] = server.create_user(f"user-{number}", name)
            console.print(f"{arguments.users} users, each with an adapter; soaking …")
            soak.counts.clear()
            files_before = watch.open_files()
            watch.start()
            asyncio.run(storm(soak, names, arguments.minutes, arguments.callers))
            watch.stop.set()
            soak.wrong += what_is_left(soak, files_before)
            report(soak, arguments.minutes, files_before, console)
    raise SystemExit(1 if soak.wrong or not soak.counts["answers"] else 0)


def report(soak: Soak, minutes: float, files_before: int, console: Console) -> None:
    """Print what was counted and measured; a leak joins what is wrong."""
    watch = soak.watch
    console.print(f"{minutes:g} minutes: {dict(sorted(soak.counts.items()))}")
    own, engines = watch.middle
    console.print(f"memory: server {own:.0f} MiB, engine {engines:.0f} MiB (medians)")
    warm_up = min(WARM_UP_SECONDS, minutes * 60 / 3)
    slope = watch.slope(warm_up)
    console.print(
        f"slope of the server's memory after {warm_up:.0f} s: {slope.estimate:+.2f} MiB a minute"
        f" (95 %: {slope.low:+.2f} to {slope.high:+.2f}; a leak from {MEMORY_MIB_A_MINUTE:g})"
    )
    console.print(f"open files: {files_before} before, {watch.open_files()} after")
    if slope.is_a_leak:
        soak.wrong.append("memory grows")
    for line in soak.wrong[:20]:
        console.print("wrong:", line, style="red", markup=False)
    console.print(f"{len(soak.wrong)} wrong")


if __name__ == "__main__":
    main()
