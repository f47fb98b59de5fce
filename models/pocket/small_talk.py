"""Reads the five-personality small talk of a data folder (`chitchat/*.tsv`).

Owns the file format and what a scenario is: questions that share an answer in every personality.
Anything split into train and held-out must be split by scenario, or answers leak.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

PERSONALITIES = ("professional", "friendly", "witty", "caring", "enthusiastic")

Answers = dict[str, str]  # personality → answer


def read_small_talk(data: Path) -> dict[str, Answers]:
    """Question → its answers, for the questions that every personality answers."""
    table: dict[str, Answers] = defaultdict(dict)
    for personality in PERSONALITIES:
        path = data / "chitchat" / f"qna_chitchat_{personality}.tsv"
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                table[row["Question"].strip()][personality] = row["Answer"].replace("\\n", "\n")
    return {q: answers for q, answers in table.items() if len(answers) == len(PERSONALITIES)}


def scenarios(small_talk: dict[str, Answers]) -> list[list[str]]:
    """The questions of each scenario, in a fixed order."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for question in sorted(small_talk):
        groups[tuple(small_talk[question][p] for p in PERSONALITIES)].append(question)
    return [groups[key] for key in sorted(groups)]
