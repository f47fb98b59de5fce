"""A small valid adapter folder for the pocket model, without training one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters.base import BaseModelInfo

RANK = 4


def plain_adapter(folder: Path, base: BaseModelInfo, seed: int = 0) -> Path:
    """Write rank-4 weights for the base's first query projection."""
    module = next(name for name in sorted(base.modules) if name.endswith("q_proj"))
    outputs, inputs = base.modules[module]
    random = np.random.default_rng(seed)
    prefix = f"base_model.model.{module}"
    tensors = {
        f"{prefix}.lora_A.weight": random.normal(0, 0.01, (RANK, inputs)).astype(np.float32),
        f"{prefix}.lora_B.weight": random.normal(0, 0.01, (outputs, RANK)).astype(np.float32),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
