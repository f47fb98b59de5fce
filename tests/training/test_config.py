"""Settings: every one is explained, and a wrong one is named."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config import BAPOConfig, config_of, experiment, read_settings
from training.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_setting_of_ours_has_a_line_that_says_what_it_does() -> None:
    ours = [f for f in fields(BAPOConfig) if f.name in BAPOConfig.__annotations__]
    assert len(ours) > 20
    assert all(f.metadata.get("help") for f in ours)


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_evaluation_on_nothing_is_refused(strategy: str) -> None:
    settings = {"model": "m", "data": "d", "out": "o", "use_cpu": True, "eval_strategy": strategy}
    with pytest.raises(ConfigError, match=f"'{strategy}', but there are no pairs to evaluate on"):
        experiment(settings)
    assert experiment(settings | {"eval_data": "e"}).eval_data == "e"
    assert experiment(settings | {"eval_strategy": "no"}).eval_data is None


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_experiments_load(path: Path) -> None:
    settings = read_settings(path) | {"use_cpu": True}
    assert experiment(settings).config.method == "bapo"


def test_text_becomes_the_type_of_its_setting() -> None:
    # YAML 1.1 reads 1e-3 as text, and flags are text always.
    config = config_of(
        {"learning_rate": "1e-3", "lora_rank": "4", "anchor_length_normalise": "true"}
        | {"use_cpu": "yes", "anchor_type": "squared"}
    )
    assert (config.learning_rate, config.lora_rank) == (0.001, 4)
    assert config.anchor_length_normalise is True
    assert config.anchor_type == "squared"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bta": 1}, "There is no setting 'bta'"),
        ({"beta": "much"}, "The setting 'beta' cannot be 'much'"),
        ({"beta": 0}, "beta must be above 0"),
        ({"anchor_weight": -1}, "anchor_weight must be at least 0"),
        ({"anchor_weight": "nan"}, "anchor_weight must be at least 0"),
        ({"anchor_type": "rope"}, "anchor_type"),
        ({"method": "ppo"}, "method"),
        ({"loss_type": "kto"}, "loss_type"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing needs loss_type sigmoid"),
        ({"sft_weight": -1}, "sft_weight must be at least 0"),
        ({"sft_weight": 1, "method": "sft"}, "sft_weight adds SFT to another loss_type"),
        ({"anchor_on": "rejected"}, "anchor_on"),
        ({"anchor_on": "chosen", "anchor_answers": 2}, "anchor_on chosen goes without"),
        ({"report_to": "notepad"}, "There is no tracker 'notepad'"),
        ({"report_to": "tensorboard"}, "pip install tensorboard"),
        ({"dpop_weight": -1}, "dpop_weight must be at least 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be below 0.5"),
        ({"lora_rank": 17}, "lora_rank 17 is more than the server takes, 16: lower it"),
        ({"lora_rank": 513, "max_lora_rank": 513}, "max_lora_rank is at most 512"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(settings | {"use_cpu": True})
    assert said in str(caught.value)


@pytest.mark.parametrize("engine", ["FSDP", "DeepSpeed"])
def test_what_would_be_passed_over_on_cpus_is_refused_however_it_is_asked_for(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"fsdp": "true"} if engine == "FSDP" else {"deepspeed": "zero2.json"}
    with pytest.raises(ConfigError, match=f"{engine} is for accelerators: on CPUs train data"):
        config_of(asked | {"use_cpu": True})
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")  # `accelerate launch` does so
    with pytest.raises(ConfigError, match=f"{engine} is for accelerators"):
        BAPOConfig(use_cpu=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"load_in_4bit": True}, "FSDP goes without load_in_4bit"),
        ({"fsdp_config": {"version": 1}}, "FSDP needs its second version"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(
    settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine with an accelerator, whose devices a config does not touch.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=said):
        BAPOConfig(fsdp=True, bf16=False, **settings)


def test_a_value_out_of_range_is_named_in_python_too() -> None:
    with pytest.raises(ConfigError, match="method must be one of bapo, dpo"):
        BAPOConfig(method="ppo")  # type: ignore[arg-type]


def test_the_method_says_what_the_loss_is() -> None:
    def method(**settings: Any) -> tuple[str, str, float]:
        config = BAPOConfig(use_cpu=True, **settings)
        return config.method, config.loss_type, config.anchor_weight

    assert method(method="dpo", anchor_weight=0.5) == ("dpo", "sigmoid", 0)
    assert method(anchor_weight=0, loss_type="ipo") == ("dpo", "ipo", 0)
    assert method(method="sft") == ("sft", "sft", 0)
    assert method(anchor_weight=0, loss_type="sft") == ("sft", "sft", 0)
    assert method(anchor_weight=0.5, loss_type="sft") == ("bapo", "sft", 0.5)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="'data' is missing"):
        experiment({"model": "m", "out": "o"})


@pytest.mark.parametrize(("text", "said"), [("a: [", "not a YAML"), ("- a", "'name: value'")])
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_settings(path)
    with pytest.raises(ConfigError, match="There is no experiment file"):
        read_settings(tmp_path / "none.yaml")


def test_the_docs_list_every_setting_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    own = {f.name: f for f in fields(BAPOConfig) if "help" in f.metadata}
    assert set(BAPOConfig.__annotations__) & set(own) == set(BAPOConfig.__annotations__)
    for name in BAPOConfig.__annotations__:
        default = "" if own[name].default is None else f"`{own[name].default}`"
        assert f"| `{name}` | {default} | {own[name].metadata['help']} |" in page
