"""The served form answers as the original does, and equal adapters are equal bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.artifact import artifact_digest
from adapters.base import BaseModelInfo, describe_base
from adapters.errors import InvalidAdapter, StoreFull
from adapters.normalise import normalise
from adapters.tensorfile import read_header
from adapters.validation import Limits, validate

Craft = Callable[..., Path]
IDS = torch.arange(2 * 9).reshape(2, 9) % 64


def served(folder: Path) -> Path:
    target = folder.with_name(folder.name + "-served")
    normalise(folder, target)
    return target


def test_normal_form_is_its_own_normal_form(craft: Craft) -> None:
    once = served(craft())
    assert artifact_digest(served(once)) == artifact_digest(once)


def tensors_of(folder: Path) -> dict[str, Any]:
    """As the safetensors library reads them; torch's, because numpy has no bf16."""
    return dict(load_file(folder / "adapter_model.safetensors"))


def test_who_wrote_the_upload_leaves_no_trace(craft: Craft) -> None:
    """The same numbers as fp32 from the safetensors library, with metadata, as they come."""
    ours = craft(dtype="BF16", config={"lora_dropout": 0.5})
    numbers = {name: values.float() for name, values in tensors_of(ours).items()}
    theirs = craft(weights=save(numbers, metadata={"format": "pt"}))
    assert artifact_digest(served(theirs)) == artifact_digest(served(ours))


def test_scale_and_weights_are_one_thing(craft: Craft) -> None:
    """alpha 8 at rank 4 is B doubled at alpha 4; at rsLoRA's √4 = 2 it is alpha 4."""
    plain = craft(config={"lora_alpha": 8})
    doubled = {
        name: values.numpy() * np.float32(2)
        for name, values in tensors_of(plain).items()
        if "lora_B" in name
    }
    folded = craft(config={"lora_alpha": 4}, tensors=doubled)
    stabilised = craft(config={"lora_alpha": 4, "use_rslora": True})
    assert len({artifact_digest(served(f)) for f in (plain, folded, stabilised)}) == 1


def test_the_form(craft: Craft, base: BaseModelInfo) -> None:
    folder = served(craft(config={"lora_alpha": 7.5, "use_rslora": True}))
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["target_modules"] == sorted(base.modules)
    assert not config.get("use_rslora")
    weights = folder / "adapter_model.safetensors"
    with weights.open("rb") as file:
        header = read_header(file, weights.stat().st_size)
    names = [entry.name for entry in header]
    assert names == sorted(names)
    assert {entry.dtype for entry in header} == {"BF16"}
    assert validate(folder, base, Limits()).scale == 1.0


def test_a_scaled_value_beyond_bf16_is_refused(craft: Craft) -> None:
    with pytest.raises(InvalidAdapter, match="bf16"):
        served(craft(config={"lora_alpha": 1e300}))


def test_a_full_disk_is_said(craft: Craft, file_limit: Callable[[int], Any]) -> None:
    folder = craft()
    with file_limit(100), pytest.raises(StoreFull):
        served(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model, saved."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def fresh(tiny: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model(IDS).logits
    return answer


SHAPES: list[dict[str, Any]] = [
    {"lora_alpha": 16, "target_modules": "all-linear"},
    {"lora_alpha": 5, "use_rslora": True, "target_modules": "all-linear"},
    {"lora_alpha": 16, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"lora_alpha": 16, "target_modules": r".*\.(up|down)_proj"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peft_answers_the_same_with_either(
    tiny: Path, tmp_path: Path, shape: dict[str, Any], dtype: torch.dtype
) -> None:
    """As PEFT saved it and in normal form: the same answer within bf16 rounding."""
    torch.manual_seed(1)
    model: Any = get_peft_model(fresh(tiny), LoraConfig(r=8, task_type="CAUSAL_LM", **shape))
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    model.to(dtype).save_pretrained(tmp_path / "original")
    info = describe_base(tiny)
    validate(tmp_path / "original", info, Limits())
    normalise(tmp_path / "original", tmp_path / "served")
    validate(tmp_path / "served", info, Limits())

    plain = logits(fresh(tiny))
    before = logits(PeftModel.from_pretrained(fresh(tiny), str(tmp_path / "original")))
    after = logits(PeftModel.from_pretrained(fresh(tiny), str(tmp_path / "served")))
    effect = (before - plain).abs().max()
    assert (after - before).abs().max() < 0.02 * effect
    assert effect > 1e-3
