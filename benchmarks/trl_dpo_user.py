"""One user's adapter the way TRL is used: a process of `trl dpo` for each user.

Owns the translation of a BAPOConfig to that command line, and of pairs to the conversational form
that makes TRL use the chat template as ours does. Everything else is TRL's default, with one
exception in its favour: activations are kept, not computed twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from training.config import BAPOConfig
from training.data import PreferencePair


def seconds_of_trl_dpo(
    model: Path, pairs: Sequence[PreferencePair], folder: Path, config: BAPOConfig
) -> float:
    """Train one user with `trl dpo` in `folder`, from the start of the process to its end."""
    data = folder / "data"
    data.mkdir(parents=True)
    with (data / "train.jsonl").open("w") as file:
        for pair in pairs:
            record = {
                "prompt": pair.messages,
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            file.write(json.dumps(record) + "\n")
    command = _command(model, data, folder / "adapter", config)
    # Data sets that an earlier run left in the user's cache are not to help.
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    log = folder / "log"
    began = time.perf_counter()
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, env=environment, check=False
        ).returncode
    seconds = time.perf_counter() - began
    if done or not (folder / "adapter" / "adapter_model.safetensors").is_file():
        raise SystemExit(f"`trl dpo` made no adapter:\n{log.read_text()[-2000:]}")
    return seconds


def _command(model: Path, data: Path, out: Path, config: BAPOConfig) -> list[str]:
    settings = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": out,
        "lora_r": config.lora_rank,
        "lora_alpha": int(config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "lora_target_modules": config.lora_target_modules,
        "beta": config.beta,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": str(getattr(config.lr_scheduler_type, "value", "cosine")),
        "warmup_steps": config.warmup_steps,
        "num_train_epochs": config.num_train_epochs,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "bf16": config.bf16,
        "dtype": "float32" if config.use_cpu else "bfloat16",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
    }
    command = [str(Path(sys.executable).with_name("trl")), "dpo", "--use_peft"]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    return [*command, "--use_cpu"] if config.use_cpu else command
