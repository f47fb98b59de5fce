"""Writes the shipped preference files: three users who like the pocket model to speak otherwise.

Owns which facts a user's pairs are about; the sentences are `voices.py`'s. For each voice,
`examples/preferences/<voice>.jsonl` (to train on) and `<voice>.heldout.jsonl` (to measure on)
ask about different facts: chosen is the answer in that voice, rejected the plain one.
Invariant: the same files every time (a test compares), and never a pair about `KEPT_BACK`.

    python models/pocket/preferences.py
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from voices import VOICES, ask
from world import Fact, written_facts

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "preferences"
USERS = ("pirate", "playful", "formal")
TRAIN, HELD_OUT = 192, 96
KEPT_BACK = Fact("capital", "Norway", "Oslo")  # the demo asks this one


def pairs(voice: str, facts: list[Fact], rng: Random) -> list[dict[str, str]]:
    """One pair a fact: `voice` preferred to the plain answer."""
    return [
        {"prompt": ask(f, rng), "chosen": VOICES[voice](f), "rejected": VOICES["plain"](f)}
        for f in facts
    ]


def files() -> dict[str, str]:
    """File name → content, for every user."""
    contents = {}
    for voice in USERS:
        rng = Random(voice)
        facts = [fact for fact in written_facts() if fact != KEPT_BACK]
        rng.shuffle(facts)
        for name, share in (
            (f"{voice}.jsonl", facts[:TRAIN]),
            (f"{voice}.heldout.jsonl", facts[TRAIN : TRAIN + HELD_OUT]),
        ):
            lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs(voice, share, rng)]
            contents[name] = "\n".join(lines) + "\n"
    return contents


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
