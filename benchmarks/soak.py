"""Minutes of many users, uploads, switches and retirements against one real server; nobody may ever
get another's adapter.

Trains two small adapters, serves them under many names, and lets callers ask while an administrator
publishes new versions (now one adapter's bytes, now the other's), switches and retires. Each answer
is compared with what the version named in `X-Adapter-Id` says when it is asked alone. Prints counts
and the server's memory; exits 1 on a single wrong answer.

    make soak ARGS="5 --users 16"
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "examples"))
from adapters.base import POCKET  # noqa: E402
from training.config import BAPOConfig  # noqa: E402
from training.model import load_base  # noqa: E402
from training.run import train_adapter  # noqa: E402

from serving import Server, serving  # noqa: E402

VOICES = ("pirate", "playful")
QUESTIONS = ("What is the capital of Norway?", "What is 3 times 4?", "What is the symbol of Gold?")
SLOTS = {
    "BAPO_MAX_LORAS": "2",
    "BAPO_ADAPTER_MEMORY_MEBIBYTES": "2",
    "BAPO_DTYPE": "float32",
}


class Soak:
    """The shared state of one run: what each version must say, and what went wrong."""

    def __init__(self, server: Server, folders: dict[str, Path], keys: dict[str, str]) -> None:
        self.server = server
        self.folders = folders
        self.keys = keys
        self.spoken: dict[tuple[str, str], str] = {}  # (voice or base, question) → answer alone
        self.voice_of: dict[str, str] = {"base": "base"}  # version reference → voice
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()

    def learn_answers(self) -> None:
        """What everyone must hear, asked one at a time before the storm."""
        for voice in VOICES:
            self.publish(f"reference-{voice}", voice)
            for question in QUESTIONS:
                key = self.server.admin_key
                said, _ = self.server.ask(key, question, adapter=f"reference-{voice}")
                self.spoken[voice, question] = said
        for question in QUESTIONS:
            self.spoken["base", question], _ = self.server.ask(
                self.server.admin_key, question, adapter="base"
            )

    def publish(self, name: str, voice: str) -> None:
        # Known before it is active: somebody may be answered by it before the upload returns.
        listed = self.server.call("GET", "/admin/adapters")["data"]
        known = {row["adapter"]: row["active_version"] for row in listed}
        self.voice_of[f"{name}@{(known.get(name) or 0) + 1}"] = voice
        self.server.upload(name, self.folders[voice])
        self.counts["published"] += 1

    def caller(self, user: str, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stop.is_set():
            question = rng.choice(QUESTIONS)
            wish = "base" if rng.random() < 0.3 else None
            try:
                said, label = self.server.ask(self.keys[user], question, adapter=wish)
            except SystemExit as refusal:
                self.wrong.append(str(refusal))
                continue
            self.counts["answers"] += 1
            if said != self.spoken[self.voice_of[label], question]:
                self.wrong.append(f"{user} {label} {question!r}: {said!r}")

    def administrator(self, names: list[str]) -> None:
        rng = random.Random(0)
        while not self.stop.wait(0.5):
            self.publish(rng.choice(names), rng.choice(VOICES))
            passing = f"passing-{self.counts['published']}"
            self.publish(passing, rng.choice(VOICES))
            self.server.call("DELETE", f"/admin/adapters/{passing}")
            self.counts["retired"] += 1


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


def memory_mebibytes(port: int) -> float:
    """Resident memory of the server's processes."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
            server = psutil.Process(connection.pid)
            family = [server, *server.children(recursive=True)]
            return float(sum(process.memory_info().rss for process in family)) / 2**20
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(";")[0])
    parser.add_argument("minutes", type=float, nargs="?", default=2.0)
    parser.add_argument("--users", type=int, default=8, help="callers at once")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders = train(work)
        with serving(work, console, settings=SLOTS) as server:
            soak = Soak(server, folders, {})
            soak.learn_answers()
            names = [f"user-{number}/voice" for number in range(arguments.users)]
            for number, name in enumerate(names):
                soak.publish(name, VOICES[number % 2])
                soak.keys[name] = server.create_user(f"user-{number}", name)
            before = memory_mebibytes(httpx.URL(server.url).port or 0)
            run(soak, names, arguments.minutes, console)
            after = memory_mebibytes(httpx.URL(server.url).port or 0)
    console.print(f"{dict(soak.counts)}; memory {before:.0f} → {after:.0f} MiB")
    for line in soak.wrong[:20]:
        console.print(f"[red]wrong:[/red] {line}")
    raise SystemExit(1 if soak.wrong or not soak.counts["answers"] else 0)


def run(soak: Soak, names: list[str], minutes: float, console: Console) -> None:
    """Everybody at once until the time is over."""
    with ThreadPoolExecutor(len(names) + 1) as people:
        running = [people.submit(soak.caller, name, seed) for seed, name in enumerate(names)]
        running.append(people.submit(soak.administrator, names))
        end = time.monotonic() + minutes * 60
        with console.status("soaking …") as status:
            while time.monotonic() < end and all(not future.done() for future in running):
                status.update(f"{soak.counts['answers']} answers, {len(soak.wrong)} wrong")
                time.sleep(0.5)
        soak.stop.set()
        for future in running:
            future.result()


if __name__ == "__main__":
    main()
