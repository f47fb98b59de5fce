"""Bases and adapters of any size with random weights, for measuring what does not depend on them.

Owns writing them; what is measured with them is the benchmarks'. Adapters are as PEFT writes them,
in bf16, for every linear layer or for some.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

POCKET = Path(__file__).resolve().parents[1] / "models" / "pocket"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SCALE = 0.02
BASES = {
    "pocket": {},
    "0.5B": {"hidden": 896, "layers": 24, "intermediate": 4864, "heads": 14},
    "8B": {"hidden": 4096, "layers": 32, "intermediate": 14336, "heads": 32},
}
"""Shapes of bases; the pocket model is the only one with learned weights."""


def base_of(name: str, scratch: Path) -> Path:
    """The folder of one of `BASES`, written to `scratch` if it is not there."""
    if name == "pocket":
        return POCKET
    folder = scratch / name
    return folder if folder.is_dir() else write_base(folder, **BASES[name])


def write_base(folder: Path, *, hidden: int, layers: int, intermediate: int, heads: int) -> Path:
    """A Llama in bf16 with the pocket model's tokenizer. Returns the folder."""
    pocket = AutoConfig.from_pretrained(POCKET)
    config = LlamaConfig(
        vocab_size=pocket.vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=pocket.eos_token_id,
        pad_token_id=pocket.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in POCKET.iterdir():
        if "token" in file.name or file.name.endswith(".jinja"):
            shutil.copy(file, folder)
    return folder


def write_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int,
    seed: int,
    modules: Sequence[str] = ATTENTION + MLP,
    alpha: int | None = None,
) -> Path:
    """A LoRA adapter for `base`; alpha is its rank unless given. Returns the folder."""
    config = AutoConfig.from_pretrained(base)
    hidden, wide = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * hidden // config.num_attention_heads
    shapes = {
        **dict.fromkeys(("q_proj", "o_proj"), (hidden, hidden)),
        **dict.fromkeys(("k_proj", "v_proj"), (hidden, keys)),
        **dict.fromkeys(("gate_proj", "up_proj"), (hidden, wide)),
        "down_proj": (wide, hidden),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for module in modules:
            inside = "self_attn" if module in ATTENTION else "mlp"
            name = f"base_model.model.model.layers.{layer}.{inside}.{module}"
            width, out = shapes[module]
            for part, shape in (("lora_A", (rank, width)), ("lora_B", (out, rank))):
                weights = SCALE * torch.randn(shape, generator=generator)
                tensors[f"{name}.{part}.weight"] = weights.bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": alpha or rank,
        "target_modules": list(modules),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder
