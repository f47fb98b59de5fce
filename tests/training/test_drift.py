"""The watch on drift: what the figure is, when a run is warned and ended, that looking is free."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.artifact import ADAPTER_FILES, read_manifest
from training.config import BAPOConfig, config_of
from training.data import PreferencePair, save_pairs
from training.drift import DRIFT, drift, watched_answers
from training.encoding import EncodedPair, encode_pairs
from training.errors import ConfigError, DriftedError
from training.fleet import train_fleet
from training.model import ResidentBase, adapted, reference, trainable
from training.preparing import prepare
from training.run import train_adapter
from training.users import users_of

Quick = Callable[..., BAPOConfig]
WEIGHTS = ADAPTER_FILES[1]


def test_the_figure_is_the_kl_of_every_next_token_along_the_base_answers(
    base: ResidentBase, quick: Quick, pairs: list[PreferencePair]
) -> None:
    answers = [
        EncodedPair(pair.prompt, None, None, ((70, 71, 72 + n, 1)[n % 2 :],))
        for n, pair in enumerate(encode_pairs(base.tokenizer, pairs))
    ]
    with trainable(base, quick()) as policy:
        assert drift(policy, answers) == pytest.approx(0, abs=1e-6)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        found = drift(policy, answers)
        by_hand = [_kl_of_row(policy, answer) for answer in answers]
    assert found == pytest.approx(torch.cat(by_hand).mean().item(), rel=1e-4)
    assert found > 0.01


def _kl_of_row(policy: torch.nn.Module, row: EncodedPair) -> torch.Tensor:
    ids = torch.tensor([[*row.prompt, *row.bases[0]]])
    of_answer = slice(len(row.prompt) - 1, -1)
    with torch.no_grad():
        ours = policy(input_ids=ids).logits[0, of_answer].log_softmax(-1)
        with reference(policy):
            theirs = policy(input_ids=ids).logits[0, of_answer].log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


@pytest.mark.parametrize("settings", [{}, {"method": "dpo"}, {"anchor_on": "chosen"}])
def test_every_method_is_watched_on_the_base_models_own_answers(
    base: ResidentBase, quick: Quick, pairs: list[PreferencePair], settings: dict[str, str]
) -> None:
    anchored = prepare(base, pairs, quick())
    own = {pair.prompt: pair.bases for pair in anchored.pairs}
    config = quick(drift_prompts=4, **settings)
    watched = watched_answers(base, prepare(base, pairs, config).pairs, config)
    assert len({answer.prompt for answer in watched}) == 4
    assert all(answer.bases == own[answer.prompt] for answer in watched)


def test_looking_changes_no_bit_and_the_last_look_stands_in_the_manifest(
    base: ResidentBase, quick: Quick, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    settings = {"lora_dropout": 0.1, "method": "dpo"}
    seen = train_adapter(base, pairs, tmp_path / "seen", quick(**settings, drift_steps=2))
    unseen = train_adapter(base, pairs, tmp_path / "unseen", quick(**settings, drift_steps=0))
    assert (seen.out / WEIGHTS).read_bytes() == (unseen.out / WEIGHTS).read_bytes()
    assert seen.manifest.metrics[DRIFT] > 0
    assert DRIFT not in unseen.manifest.metrics


BOUNDS: dict[str, Any] = {"drift_warn": 0.6, "drift_limit": 0.7, "drift_steps": 2}


def test_dpo_at_a_high_rate_is_warned_and_ended_where_bapo_is_not(
    base: ResidentBase,
    quick: Quick,
    pairs: list[PreferencePair],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    often = {"save_strategy": "steps", "save_steps": 1}
    settings = {"learning_rate": 1e-2, "num_train_epochs": 8, **often, **BOUNDS}
    held = train_adapter(base, pairs, tmp_path / "held", quick(anchor_weight=0.1, **settings))
    assert held.manifest.metrics[DRIFT] < BOUNDS["drift_warn"]
    assert not caplog.messages

    with pytest.raises(DriftedError) as caught:
        train_adapter(base, pairs, tmp_path / "dpo", quick(method="dpo", **settings))
    found = re.match(
        r"Stopped at step (\d+) of 24: the drift from the base is (\d\.\d+) nats a token,"
        r" drift_limit is 0\.7; raise anchor_weight, .* within the limit is (\S+)\.$",
        str(caught.value),
    )
    assert found is not None
    assert float(found[2]) > BOUNDS["drift_limit"]
    assert not (tmp_path / "dpo").exists()
    # Written with the last look within the limit, and an adapter that can be looked at.
    assert found[3] == str(tmp_path / "trainer" / f"checkpoint-{int(found[1]) - 2}")
    with adapted(base, found[3]) as policy:
        assert policy.active_adapters == ["default"]
    (warning,) = caplog.messages
    assert warning.startswith("dpo: at step 8 the drift from the base is 0.6")


def test_without_checkpoints_the_sentence_says_how_to_have_them(
    base: ResidentBase, quick: Quick, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    config = quick(method="dpo", drift_steps=1, drift_limit=1e-3)
    with pytest.raises(
        DriftedError, match=r"no checkpoint within the limit was kept, .* save_strat"
    ):
        train_adapter(base, pairs, tmp_path / "dpo", config)
    assert not (tmp_path / "dpo").exists()


def test_in_a_fleet_the_user_who_drifts_fails_alone(
    base: ResidentBase, quick: Quick, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    people = tmp_path / "people"
    people.mkdir()
    for name, count in {"ann": 1, "ben": 6, "eve": 1}.items():
        save_pairs(pairs[:count], people / f"{name}.jsonl")
    config = quick(method="dpo", learning_rate=1e-2, num_train_epochs=8, **BOUNDS)
    found = {o.user: o for o in train_fleet(base, users_of(people), tmp_path / "out", config)}
    assert [found[user].status for user in ("ann", "ben", "eve")] == [
        "trained",
        "failed",
        "trained",
    ]
    assert str(found["ben"].problem).startswith("Stopped at step 10 of 24: the drift")
    assert read_manifest(tmp_path / "out" / "eve") is not None
    assert not (tmp_path / "out" / "ben").exists()


@pytest.mark.parametrize("bound", ["drift_warn", "drift_limit"])
def test_a_bound_is_above_nothing_or_absent(quick: Quick, bound: str) -> None:
    with pytest.raises(ConfigError, match=f"{bound} must be above 0 or none, not 0"):
        quick(**{bound: 0.0})
    assert config_of({bound: None}).watches_drift
