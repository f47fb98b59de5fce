"""The whole line on a laptop: three tastes learned, served by one engine, asked the same thing.

Trains three adapters on the shipped pocket model with BAPO and, to compare, with plain DPO; prints
what each gained and what it forgot; starts the server; uploads; asks as each user and as nobody.

    make demo            leaves the server running until Ctrl-C
    make demo ARGS=--exit
"""

from __future__ import annotations

import argparse
import shutil
import signal
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adapters.base import POCKET
from training.data import load_pairs
from training.evaluation.retention import load_questions
from training.model import load_base

from learning import User, learn
from serving import Server, serving

ROOT = Path(__file__).resolve().parents[1]
PAIRS = ROOT / "examples" / "preferences"
WORK = ROOT / "runs" / "demo"
USERS = {"anne": "pirate", "ben": "playful", "carla": "formal"}
QUESTION = "What is the capital of Norway?"

# Hard enough for plain DPO to lose what it knew: the anchor is what the demo is about.
SETTINGS = {"learning_rate": 1e-3, "num_train_epochs": 6, "anchor_weight": 0.05, "seed": 0}


def users() -> list[User]:
    found = []
    for taste in USERS.values():
        held_out = load_pairs(PAIRS / f"{taste}.heldout.jsonl")
        style = [(str(pair.prompt), pair.chosen) for pair in held_out]
        found.append(User(taste, load_pairs(PAIRS / f"{taste}.jsonl"), held_out, style))
    return found


def ask_everyone(server: Server, console: Console) -> dict[str, str]:
    """Upload the adapters, create the users, ask; returns the users' keys."""
    keys: dict[str, str] = {}
    for user, taste in USERS.items():
        version = server.upload(taste, WORK / taste)
        keys[user] = server.create_user(user, taste)
        console.print(f"uploaded {version['ref']} ({version['bytes']:,} bytes) for {user}")
    table = Table("asked as", "X-Adapter-Id", "answer", title=QUESTION)
    table.add_row("nobody (admin)", *reversed(server.ask(server.admin_key, QUESTION)))
    for user, key in keys.items():
        table.add_row(user, *reversed(server.ask(key, QUESTION)))
    console.print(table)
    return keys


def curl(server: Server, key: str, adapter: str | None) -> str:
    header = f" -H 'X-Adapter-Id: {adapter}'" if adapter else ""
    body = f'{{"messages":[{{"role":"user","content":"{QUESTION}"}}],"temperature":0}}'
    return (
        f"curl -s {server.url}/v1/chat/completions -H 'Authorization: Bearer {key}'{header}"
        f" -H 'Content-Type: application/json' -d '{body}'"
    )


def wait_for_interrupt() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exit", action="store_true", help="end instead of leaving the server up")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    console = Console()
    began = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    base = load_base(POCKET)
    questions = load_questions(POCKET / "facts.jsonl")
    console.print(learn(base, users(), questions, WORK, **SETTINGS))
    with serving(WORK, console, arguments.port) as server:
        keys = ask_everyone(server, console)
        console.print(f"the demo took {time.monotonic() - began:.0f} s\n")
        first = next(iter(keys))
        console.print(f"Try it yourself, as {first} and without a personal adapter:\n")
        # Not through Rich: a line that wraps cannot be copied.
        print(curl(server, keys[first], None), curl(server, keys[first], "base"), sep="\n\n")
        if not arguments.exit:
            print("\nThe server is running; Ctrl-C stops it.", flush=True)
            wait_for_interrupt()


if __name__ == "__main__":
    main()
