"""Two processes of half the batch train what one of the whole batch does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.artifact import ADAPTER_FILES, HISTORY_FILE
from training.data import PreferencePair, save_pairs


def test_data_parallel_training_is_the_training_of_one(
    base_folder: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    save_pairs(pairs, data)
    settings = {
        "model": base_folder,
        "data": data,
        "anchor-cache": tmp_path / "answers.jsonl",
        "anchor-max-new-tokens": 12,
        "anchor-type": "squared",  # the others have a kink where training begins
        "use-cpu": "true",
        "bf16": "false",
        "epochs": 3,
        "warmup-steps": 0,
        "learning-rate": 1e-3,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    verb = tmp_path / "verb.py"
    verb.write_text("from training.cli import train\ntrain()\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(verb)]
    for name, command, size in (("one", [sys.executable, str(verb)], 6), ("two", launcher, 3)):
        where = ["--out", str(tmp_path / name), "--batch-size", str(size)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        ended = subprocess.run(
            [*command, *words, *where],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("reward accuracy") == 1  # one process talks
    one, two = (load_file(tmp_path / name / ADAPTER_FILES[1]) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-3)
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_B" in name) > 1e-3
    told_by_one, told_by_two = (
        json.loads((tmp_path / name / HISTORY_FILE).read_text())["steps"] for name in ("one", "two")
    )
    assert told_by_two == [pytest.approx(line, abs=1e-3) for line in told_by_one]
