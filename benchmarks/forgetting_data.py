"""What the forgetting benchmark trains and asks: tastes, their held-out sides, questions.

Owns the splits. Train, validation and test share no scenario of the small talk, no prompt of the
other pairs and no fact; hyper-parameters are chosen on validation, figures are of test. The test
scenarios and test facts are those of `examples/real.py`. Refuses models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Literal

from adapters.base import POCKET
from training.data import PreferencePair, load_pairs
from training.evaluation.retention import Question, load_questions

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "examples"), str(POCKET)]

from real import FACTS, HELD_OUT_SHARE, TRAIN, prefer  # noqa: E402

from small_talk import PERSONALITIES, read_small_talk, scenarios  # noqa: E402
from voices import ask_unseen  # noqa: E402
from world import data_facts  # noqa: E402

Side = Literal["validation", "test"]
SIDES: tuple[Side, ...] = ("validation", "test")
PAIRS = {"validation": 100, "test": 200}
FAMILIAR = {"validation": 60, "test": 150}
QUESTIONS = {"validation": 200, "test": FACTS}
GENERAL = 512

EXAMPLES = ("pirate", "playful", "formal")
MANNERS = ("polite", "impolite")
PERSONAL = (*PERSONALITIES, *MANNERS)


@dataclass(frozen=True)
class HeldOut:
    """Pairs never trained on.

    `pairs` are of `scenarios` never trained on; `familiar` are new questions of scenarios that
    were, whose answer can be known by heart, and so be expected to the letter.
    """

    pairs: Sequence[PreferencePair]
    scenarios: Sequence[int]
    familiar: Sequence[PreferencePair]


@dataclass(frozen=True)
class Taste:
    """One user's preference."""

    name: str
    train: Sequence[PreferencePair]
    held_out: dict[Side, HeldOut]


@dataclass(frozen=True)
class World:
    """Everybody, what everybody is asked, and general prompts about neither."""

    tastes: dict[str, Taste]
    questions: dict[Side, list[Question]]
    general: list[str]


def small_world() -> World:
    """What is committed: three tastes of 192 pairs, the pocket model's written facts."""
    questions = load_questions(POCKET / "facts.jsonl")
    Random(0).shuffle(questions)
    asked: dict[Side, list[Question]] = {"validation": questions[:89], "test": questions[89:]}
    return World({name: _example(name) for name in EXAMPLES}, asked, [])


def whole_world(data: Path) -> World:
    """Five personalities, the polite, the impolite, and the small world's tastes; data facts."""
    tastes = {**_personalities(data), **_manners(data), **small_world().tastes}
    facts = data_facts(data)
    test = Random(0).sample(facts, FACTS)  # as examples/real.py has them
    rest = [fact for fact in facts if fact not in set(test)]
    Random(1).shuffle(rest)
    cut = QUESTIONS["validation"]
    asked = {"validation": rest[:cut], "test": test}
    questions: dict[Side, list[Question]] = {
        side: [Question(ask_unseen(f), (f.answer,), f.topic) for f in asked[side]] for side in SIDES
    }
    general = [ask_unseen(fact, 1) for fact in rest[cut : cut + GENERAL]]
    return World(tastes, questions, general)


def _example(name: str) -> Taste:
    folder = ROOT / "examples" / "preferences"
    held_out = load_pairs(folder / f"{name}.heldout.jsonl")
    Random(name).shuffle(held_out)
    cut = len(held_out) // 3
    sides: dict[Side, list[PreferencePair]] = {
        "validation": held_out[:cut],
        "test": held_out[cut:],
    }
    return Taste(
        name,
        load_pairs(folder / f"{name}.jsonl"),
        {side: HeldOut(pairs, range(len(pairs)), pairs) for side, pairs in sides.items()},
    )


def _personalities(data: Path) -> dict[str, Taste]:
    """Each prefers its own answer to another's; scenarios, not questions, are split."""
    small_talk = read_small_talk(data)
    groups = scenarios(small_talk)
    Random(0).shuffle(groups)
    cut = round(len(groups) * HELD_OUT_SHARE)
    number = {question: n for n, group in enumerate(groups) for question in group}
    unseen = {"test": groups[:cut], "validation": groups[cut : 2 * cut]}
    seen = list(chain(*groups[2 * cut :]))
    tastes = {}
    for name in PERSONALITIES:
        rng = Random(name)

        def some(questions: list[str], count: int, name: str, rng: Random) -> list[PreferencePair]:
            pairs = (prefer(name, q, small_talk[q], rng) for q in questions)
            return [pair for pair in pairs if pair][:count]

        asked = rng.sample(seen, len(seen))
        familiar = {side: [asked.pop() for _ in range(FAMILIAR[side])] for side in SIDES}
        held_out: dict[Side, HeldOut] = {}
        for side in SIDES:
            questions = list(chain(*unseen[side]))
            pairs = some(rng.sample(questions, len(questions)), PAIRS[side], name, rng)
            held_out[side] = HeldOut(
                pairs,
                [number[str(pair.prompt)] for pair in pairs],
                some(familiar[side], FAMILIAR[side], name, rng),
            )
        tastes[name] = Taste(name, some(asked, TRAIN, name, rng), held_out)
    return tastes


def _manners(data: Path) -> dict[str, Taste]:
    """Polite answers over impolite ones, and the other way round."""
    file = data / "preferences" / "instruction-data-with-preference.json"
    pairs: dict[str, PreferencePair] = {}
    for row in json.loads(file.read_text(encoding="utf-8")):
        prompt = "\n".join(filter(None, (row["instruction"], row["input"]))).strip()
        if row["chosen"] != row["rejected"] and row["chosen"] and row["rejected"]:
            pairs[prompt] = PreferencePair(prompt, row["chosen"], row["rejected"])
    polite = [pairs[prompt] for prompt in sorted(pairs)]
    Random(0).shuffle(polite)
    impolite = [PreferencePair(p.prompt, p.rejected, p.chosen) for p in polite]
    return {name: _taste(name, p) for name, p in (("polite", polite), ("impolite", impolite))}


def _taste(name: str, pairs: list[PreferencePair]) -> Taste:
    rest, held_out = pairs[TRAIN:], {}
    for side in SIDES:
        some, rest = rest[: PAIRS[side]], rest[PAIRS[side] :]
        held_out[side] = HeldOut(some, range(len(some)), [])
    return Taste(name, pairs[:TRAIN], held_out)
