"""Two processes of half the batch train what one of the whole batch does, however they share."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.artifact import ADAPTER_FILES, HISTORY_FILE
from training.data import PreferencePair, save_pairs

Begin = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., tuple[int, str, str]]

VERB = "from training.cli import train\ntrain()\n"

ON_CPUS_TOO = """
# accelerate shards on accelerators only: here CPU processes take its branch, too.
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from training.config import BAPOConfig

begin = AcceleratorState.__init__

def with_fsdp(self, *args, fsdp_plugin=None, **more):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **more)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

AcceleratorState.__init__ = with_fsdp
BAPOConfig._check_sharding = lambda self: None
"""

NO_NUMBER = """
# In the second process alone, and in its second step.
import os
from training.trainer import BAPOTrainer

right = BAPOTrainer._loss

def wrong(self, *args):
    loss = right(self, *args)
    lost = os.environ["RANK"] == "1" and self.state.global_step == 1
    return loss._replace(total=loss.total * float("nan")) if lost else loss

BAPOTrainer._loss = wrong
"""


@pytest.fixture
def begin(base_folder: Path, pairs: list[PreferencePair], tmp_path: Path) -> Begin:
    """`bapo train --out tmp_path/NAME` in one process, or in one of `processes`; 6 pairs a step."""
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

    def train(
        name: str,
        *launcher: str,
        processes: int = 1,
        before: str = "",
        env: dict[str, str] | None = None,
        **own: object,
    ) -> "subprocess.Popen[str]":
        verb = tmp_path / f"{name}.py"
        verb.write_text(before + VERB)
        where = {"out": tmp_path / name, "batch-size": 6 // processes}
        chosen = settings | where | {n.replace("_", "-"): value for n, value in own.items()}
        words = [word for n, value in chosen.items() for word in (f"--{n}", str(value))]
        paths = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        return subprocess.Popen(
            [sys.executable, *launcher, str(verb), *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | paths | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return train


@pytest.fixture
def run(begin: Begin) -> Run:
    """The same to its end, of several processes by way of torchrun: exit status, output, errors."""

    def train(name: str, *, processes: int = 1, **own: Any) -> tuple[int, str, str]:
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher = torchrun if processes > 1 else []
        begun = begin(name, *launcher, processes=processes, **own)
        said, complained = begun.communicate(timeout=240)
        return begun.returncode, said, complained

    return train


def expect_equal(one: Path, two: Path) -> None:
    """Both trained the same adapter, and told the same of it."""
    weights, others = (load_file(folder / ADAPTER_FILES[1]) for folder in (one, two))
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], atol=2e-5, rtol=1e-3)
    assert max(tensor.abs().max() for name, tensor in weights.items() if "lora_B" in name) > 1e-3
    told = [json.loads((folder / HISTORY_FILE).read_text()) for folder in (one, two)]
    for kind in ("steps", "evaluations"):
        assert told[1][kind] == [pytest.approx(line, abs=1e-3) for line in told[0][kind]]


def test_data_parallel_training_is_the_training_of_one(run: Run, tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        status, said, complained = run(name, processes=processes)
        assert status == 0, complained
        assert said.count("reward accuracy") == 1  # one process talks
    expect_equal(tmp_path / "one", tmp_path / "two")


def test_sharded_training_is_the_training_of_one(run: Run, tmp_path: Path) -> None:
    """Through the Trainer and accelerate's FSDP2, drift, writing and parity check included."""
    anchor = {"anchor_type": "kl", "anchor_weight": 0.1}
    status, _, complained = run("whole", **anchor)
    assert status == 0, complained
    status, _, complained = run("parts", processes=2, fsdp="true", before=ON_CPUS_TOO, **anchor)
    assert status == 0, complained
    expect_equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs deepspeed")
def test_deepspeed_with_whole_weights_is_the_training_of_one(run: Run, tmp_path: Path) -> None:
    """Not in our environments: once installed, whoever unwraps a model imports it, for seconds."""
    own = {"processes": 2, "use_cpu": "false", "ddp_backend": "gloo"}
    asked = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
    stages = [asked | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in "23"]
    assert run("one")[0] == 0
    status, _, complained = run("two", env=stages[0], **own)
    assert status == 0, complained
    expect_equal(tmp_path / "one", tmp_path / "two")
    status, _, complained = run("three", env=stages[1], **own)
    assert status == 1
    assert "ZeRO-3 is not supported" in complained


def test_a_loss_that_is_no_number_in_one_process_stops_every_process(
    begin: Begin, tmp_path: Path
) -> None:
    # Not by torchrun, which would end the one that waits.
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    saving = {"save_strategy": "steps", "save_steps": 1}
    begun = [
        begin(
            "lost",
            processes=2,
            before=NO_NUMBER,
            env=world | {"LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
            **saving,
        )
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=180)[1] for process in begun]
    finally:
        for process in begun:
            process.kill()
    assert [process.returncode for process in begun] == [1, 1], said
    sentence = r"The loss is nan at step 2, in the batch of the pairs \d, \d, \d; lower .*"
    found = [re.findall(sentence, complained) for complained in said]
    assert len(found[0]) == 1
    assert found[0] == found[1]  # both name the three pairs of the one
    assert found[0][0].endswith(
        f"The last good checkpoint is {tmp_path}/lost-checkpoints/checkpoint-1."
    )
    assert not (tmp_path / "lost").exists()
    kept = {folder.name for folder in (tmp_path / "lost-checkpoints").glob("checkpoint-*")}
    assert kept == {"checkpoint-1"}
