"""The model card: what it says of a manifest, and that no manifest can make it say more."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from adapters.artifact import Manifest, read_manifest, write_manifest
from training.card import model_card
from training.config import BAPOConfig

FINGERPRINT = "sha256:" + "a" * 64
HOSTILE = [
    "x\n---\nlicense: evil\n---\n# Owned",
    "a | b |\n| c | d |",
    r"a \| b",
    "a\\",
    "` | b `",
    "``` \n\n```",
    "<script>alert(1)</script>",
    '<a href="`">`</a>',
    "[click](https://evil.example) https://evil.example www.evil.example",
    "![](https://evil.example/pixel.png)",
    "**bold** _it_ ~~no~~ &lt; $x$",
    "é&#124;<b>&amp;",
    "\u202egnp.exe\u2028\x00\x1b[31m",
    "'; rm -rf / #",
    "",
    "   ",
    "x" * 500,
]


def manifest(**fields: Any) -> Manifest:
    record: dict[str, Any] = {
        "name": "alice/concise",
        "base": {"name": "Qwen/Qwen3-0.6B", "fingerprint": FINGERPRINT},
        "method": "bapo",
        "hyperparameters": BAPOConfig(use_cpu=True).hyperparameters(),
        "data": {"sha256": "b" * 64, "pairs": 512, "prompts": 256, "tokens": 9000},
        "metrics": {"train/loss": 0.123456789, "train/rewards/accuracies": 1.0},
        "versions": {"torch": "2.9.0", "peft": "0.18.0"},
        "seed": 42,
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return Manifest.model_validate(record | fields)


def header_and_page(card: str) -> tuple[dict[str, Any], list[Token]]:
    """The metadata as the Hub reads it, and the rest as a Markdown parser with tables does."""
    empty, header, page = card.split("---\n", 2)
    assert empty == ""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return yaml.safe_load(header), parser.parse(page)


def rows(tokens: list[Token]) -> dict[str, str]:
    """Every table's rows, as they are shown."""
    cells = [
        "".join(part.content for part in tokens[at + 1].children or ())
        for at, token in enumerate(tokens)
        if token.type == "td_open"
    ]
    return dict(zip(cells[::2], cells[1::2], strict=True))


def test_the_header_is_the_hubs() -> None:
    header, _ = header_and_page(model_card(manifest()))
    assert header == {
        "base_model": "Qwen/Qwen3-0.6B",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "bapo", "dpo"],
    }


def test_a_bapo_adapter_is_told_in_words_and_tables() -> None:
    card = model_card(manifest())
    assert "# `alice/concise`" in card
    assert "BAPO (Base-Anchored Preference Optimization, Lee et al." in card
    assert "DPO's preference term (β = `0.1`)" in card
    assert "The anchor (type `hinge`, λ = `0.02`), a term of its own" in card
    _, tokens = header_and_page(card)
    shown = rows(tokens)
    assert shown["lora_rank"] == "8"
    assert shown["lr_scheduler_type"] == "cosine"
    assert shown["sha256"] == "b" * 64
    assert (shown["pairs"], shown["train/loss"]) == ("512", "0.123457")
    assert (shown["base fingerprint"], shown["seed"]) == (FINGERPRINT, "42")
    assert (shown["torch version"], shown["created"]) == ("2.9.0", "2026-01-02T03:04:05Z")


def test_it_says_how_to_use_the_adapter() -> None:
    card = model_card(manifest())
    _, tokens = header_and_page(card)
    python, shell = [token.content for token in tokens if token.type == "fence"]
    compile(python, "card", "exec")
    assert len(python.strip().splitlines()) == 5
    assert 'AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B"), "."' in python
    assert "bapo adapters publish alice/concise . --activate" in shell
    assert "-H 'X-Adapter-Id: alice/concise'" in shell
    assert "not held-out ones" in card
    assert "not held-out ones" not in model_card(manifest(metrics={}))


@pytest.mark.parametrize(
    "settings", [{}, {"beta": 0.3}, BAPOConfig(method="dpo", use_cpu=True).hyperparameters()]
)
def test_a_dpo_adapter_has_no_anchor(settings: dict[str, Any]) -> None:
    card = model_card(manifest(method="dpo", hyperparameters=settings))
    header, _ = header_and_page(card)
    assert header["tags"] == ["lora", "dpo"]
    assert "is the whole loss: there is no anchor" in card
    assert "anchor_" not in card
    assert "Base-Anchored" not in card


def test_other_losses_are_told_as_they_are() -> None:
    def card(**settings: Any) -> str:
        config = BAPOConfig(use_cpu=True, **settings)
        return model_card(manifest(method=config.method, hyperparameters=config.hyperparameters()))

    alone = card(method="sft")
    assert "with SFT (supervised fine-tuning) on the preferred answer alone." in alone
    assert header_and_page(alone)[0]["tags"] == ["lora", "sft"]
    assert "anchor_" not in alone
    both = card(method="dpo", sft_weight=0.5)
    assert "DPO's preference term (β = `0.1`) with SFT on the preferred answer (α = `0.5`)" in both
    assert "holds the likelihood of the preferred answers" in card(anchor_on="chosen")


def test_a_bare_manifest_and_an_unknown_method_have_a_card() -> None:
    bare = {"name": "a", "base": {"name": "b", "fingerprint": FINGERPRINT}}
    for method in ("bapo", "dpo", "kto"):
        card = model_card(Manifest.model_validate(bare | {"method": method}))
        assert "## Hyperparameters" not in card
        assert "β" not in card
    assert "with `kto`." in card
    assert header_and_page(card)[0]["tags"] == ["lora"]


@pytest.mark.parametrize("name", ["/data/models/pocket", "models\\pocket", "a/b/c", "../x", ""])
def test_a_base_that_is_no_model_of_the_hub_is_not_named_as_one(name: str) -> None:
    header, _ = header_and_page(model_card(manifest(base=base(name))))
    assert "base_model" not in header


@pytest.mark.parametrize("name", ["123", "true", "2024-01-01", "no", "1e5"])
def test_a_base_stays_text_in_the_header(name: str) -> None:
    assert header_and_page(model_card(manifest(base=base(name))))[0]["base_model"] == name


def base(name: str) -> dict[str, str]:
    return {"name": name, "fingerprint": FINGERPRINT}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_manifest_changes_the_cards_structure(text: str) -> None:
    plain = manifest(
        method="kto",
        hyperparameters={"key": "v", "list": "v"},
        data={"data key": "v"},
        metrics={"metric": 1.0},
        versions={"package": "v"},
    )
    hostile = manifest(
        name=text,
        base=base(text),
        method=text[:128],
        hyperparameters={f"1{text}": text, f"2{text}": [text, {text: None}]},
        data={f"3{text}": text},
        metrics={f"4{text}": 1.0},
        versions={f"5{text}": text},
    )
    header, tokens = header_and_page(model_card(hostile))
    assert set(header) <= {"base_model", "library_name", "pipeline_tag", "tags"}
    _, expected = header_and_page(model_card(plain))
    assert [token.type for token in tokens] == [token.type for token in expected]
    inline = {part.type for token in tokens for part in token.children or ()}
    assert inline <= {"text", "text_special", "code_inline"}
    assert len(rows(tokens)) == len(rows(expected))
    python, shell = [token.content for token in tokens if token.type == "fence"]
    compile(python, "card", "exec")
    assert "rm -rf" not in shell


def test_hostile_settings_do_not_break_the_sentences_of_a_known_method() -> None:
    for text in HOSTILE:
        settings = dict.fromkeys(("loss_type", "beta", "anchor_type", "anchor_weight"), text)
        for value in (settings, {key: [text] for key in settings}):
            _, tokens = header_and_page(model_card(manifest(hyperparameters=value)))
            assert sum(token.type == "paragraph_open" for token in tokens) == 3 + 5
            assert set(rows(tokens)) >= set(settings)


def test_a_value_is_shown_as_it_is() -> None:
    said = r"a|b `c` <d> \ é _e_"
    _, tokens = header_and_page(model_card(manifest(data={"note": said})))
    assert rows(tokens)["note"] == said


def test_the_card_of_a_manifest_from_disk_is_the_same(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    kept = read_manifest(tmp_path)
    assert kept is not None
    assert model_card(kept) == model_card(manifest())
