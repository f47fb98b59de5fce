"""The shipped pocket model is what its card says, and the files made from its world are current."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import preferences

from adapters.base import POCKET, describe_base
from training.data import load_pairs
from training.evaluation.retention import answer_texts

import voices
from world import written_facts

if TYPE_CHECKING:
    from training.model import ResidentBase


def test_it_is_small_enough_for_git() -> None:
    weights = POCKET / "model.safetensors"
    assert sum(file.stat().st_size for file in POCKET.iterdir() if file.is_file()) < 12_000_000
    header = json.loads(
        weights.read_bytes()[8:][: int.from_bytes(weights.read_bytes()[:8], "little")]
    )
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    assert {entry["dtype"] for entry in tensors} == {"BF16"}
    assert weights.stat().st_size < 2 * 6_000_000


def test_it_knows_its_world_in_phrasings_it_never_saw(pocket: ResidentBase) -> None:
    """A sample of what the card counts whole; sums and products are its weak side."""
    facts = random.Random(1).sample(written_facts(), 160)
    said = answer_texts(pocket.model, pocket.tokenizer, [voices.ask_unseen(f, 1) for f in facts])
    known = sum(
        reply in {voice(fact) for voice in voices.VOICES.values()}
        for fact, reply in zip(facts, said, strict=True)
    )
    assert known / len(facts) >= 0.9


def test_unseen_phrasings_are_unseen() -> None:
    for topic, phrasings in voices.UNSEEN.items():
        assert len(phrasings) == 2
        assert not set(phrasings) & set(voices.PHRASINGS[topic])


def test_the_world_has_no_fact_twice() -> None:
    facts = written_facts()
    assert len(facts) >= 400
    assert len({(fact.topic, fact.subject) for fact in facts}) == len(facts)


def test_question_set_is_current() -> None:
    assert (POCKET / "facts.jsonl").read_text(encoding="utf-8") == voices.question_set()


def test_shipped_preferences_are_current_and_readable() -> None:
    on_disk = {file.name: file.read_text(encoding="utf-8") for file in preferences.FOLDER.iterdir()}
    assert on_disk == preferences.files()
    for voice in preferences.USERS:
        train, held_out = (
            load_pairs(preferences.FOLDER / name)
            for name in (f"{voice}.jsonl", f"{voice}.heldout.jsonl")
        )
        assert not {pair.prompt for pair in train} & {pair.prompt for pair in held_out}


def test_the_fingerprint_is_of_the_content_not_of_the_folder(tmp_path: Path) -> None:
    for file in POCKET.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert describe_base(tmp_path).fingerprint == describe_base(POCKET).fingerprint
