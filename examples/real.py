"""Real preferences: five personalities of published small talk, one adapter and one user each.

For each personality its own answer is preferred to another personality's. Scenarios, not questions,
are split into train and held-out. Prints what BAPO and plain DPO gained and forgot, uploads the
five BAPO adapters and chats as five users.

    make real DATA=../shared/data
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from itertools import chain
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from adapters.base import POCKET
from training.data import PreferencePair
from training.evaluation.retention import Question
from training.model import load_base

from learning import User, learn
from serving import serving

sys.path.append(str(POCKET))  # the pocket model's world and small talk, which built it
from small_talk import PERSONALITIES, Answers, read_small_talk, scenarios
from voices import ask_unseen
from world import data_facts

WORK = Path(__file__).resolve().parents[1] / "runs" / "real"
TRAIN, HELD_OUT, STYLE, FACTS = 512, 200, 200, 400
HELD_OUT_SHARE = 0.2
QUESTIONS = ("Tell me a joke", "Do you like being a bot?", "Good morning", "I am bored")
SETTINGS = {"learning_rate": 1e-3, "num_train_epochs": 6, "seed": 0}


def prefer(personality: str, question: str, answers: Answers, rng: Random) -> PreferencePair | None:
    """`personality`'s answer over another's; None where all of them say the same."""
    others = [answers[p] for p in PERSONALITIES if answers[p] != answers[personality]]
    if not others:
        return None
    return PreferencePair(question, answers[personality], rng.choice(others))


def users(data: Path) -> list[User]:
    """One user a personality; all of them share one split into scenarios."""
    small_talk = read_small_talk(data)
    groups = scenarios(small_talk)
    Random(0).shuffle(groups)
    cut = round(len(groups) * HELD_OUT_SHARE)
    unseen, seen = list(chain(*groups[:cut])), list(chain(*groups[cut:]))

    found = []
    for personality in PERSONALITIES:
        rng = Random(personality)

        def some(questions: list[str], count: int) -> list[PreferencePair]:
            pairs = (prefer(personality, q, small_talk[q], rng) for q in questions)  # noqa: B023
            return [pair for pair in pairs if pair][:count]

        asked = rng.sample(seen, len(seen))
        # New questions of scenarios that were trained on: the answer can be known by heart.
        style = [(q, small_talk[q][personality]) for q in asked[-STYLE:]]
        held_out = some(rng.sample(unseen, len(unseen)), HELD_OUT)
        found.append(User(personality, some(asked[:-STYLE], TRAIN), held_out, style))
    return found


def questions(data: Path) -> list[Question]:
    """A sample of the country and element facts, each in a phrasing the base never saw."""
    sample = Random(0).sample(data_facts(data), FACTS)
    return [Question(ask_unseen(fact), (fact.answer,), fact.topic) for fact in sample]


def chat(work: Path, console: Console) -> None:
    """Serve the five adapters and ask everyone the same."""
    with serving(work, console) as server:
        keys = {}
        for personality in PERSONALITIES:
            server.upload(f"small-talk/{personality}", work / personality)
            keys[personality] = server.create_user(personality, f"small-talk/{personality}")
        for question in QUESTIONS:
            table = Table("asked as", "X-Adapter-Id", "answer", title=question)
            table.add_row("nobody (admin)", *reversed(server.ask(server.admin_key, question)))
            for personality, key in keys.items():
                table.add_row(personality, *reversed(server.ask(key, question)))
            console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the data folder (chitchat/, facts/)")
    arguments = parser.parse_args()
    if not (arguments.data / "chitchat").is_dir():
        parser.error(f"{arguments.data} has no folder chitchat/: make real DATA=<the data folder>")
    console = Console()
    began = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    asked = questions(arguments.data)
    console.print(learn(load_base(POCKET), users(arguments.data), asked, WORK, **SETTINGS))
    chat(WORK, console)
    console.print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
