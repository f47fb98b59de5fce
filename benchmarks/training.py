"""Training with BAPOTrainer against TRL's DPOTrainer: time of a step, memory, a fleet of users.

Both sides train one model on the same tokens with the same settings, in turn, in one run; only
ratios are claims. Parts: `step` (pairs a second through the real trainers, rounds in which every
side runs once), `memory` (what a process of its own grows by during training) and `fleet` (one
`bapo fleet` against a `trl dpo` process for each user). Raw figures go to
`benchmarks/results/training.json`, each part with its command, versions and machine.

    make bench-training ARGS="--parts step,memory --rounds 5"
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    logging,
    set_seed,
)

from training.config import BAPOConfig, bf16_pays
from training.data import PreferencePair, load_pairs, save_pairs
from training.encoding import EncodedPair, Tokens
from training.trainer import BAPOTrainer

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "models" / "pocket"
PREFERENCES = ROOT / "examples" / "preferences"
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
PARTS = ("step", "memory", "fleet")

STEPS = 8
DROPPED = 3
"""Of a round's steps: the first ones find cold caches and make the optimiser."""
LARGE_VOCABULARY = 32_000
PAIRS_OF_A_USER = 64

OURS = "BAPO, ours"
OURS_DPO = "DPO, ours"
TRL_DPO = "DPO, TRL"
TRL_BAPO = "BAPO on TRL, references first"
TRL_PLAIN = "BAPO on TRL, references in each step"

STEP_RATIOS = {
    (OURS, TRL_DPO): "≥ 1.3",
    (OURS, TRL_BAPO): "≥ 2.0",
    (OURS, TRL_PLAIN): "",
    (OURS_DPO, TRL_DPO): "",
}
"""Whose pairs a second over whose; BAPO has three completions in a pair, DPO two."""


@dataclass(frozen=True)
class Shape:
    """A model with random weights, and the batch it is trained on."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    pairs: int
    length: int
    """Tokens of a prompt with one answer; half of them are the prompt."""

    def network(self, device: str) -> Any:
        """fp32 on a CPU, bf16 on a GPU, as `load_base` has it."""
        sizes = asdict(self)
        for name in ("architecture", "pairs", "length"):
            del sizes[name]
        set_seed(0)
        settings = AutoConfig.for_model(self.architecture, tie_word_embeddings=True, **sizes)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        network = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa")
        return network.to(device, dtype).requires_grad_(False)

    def batches(self, count: int, *, anchored: bool) -> list[EncodedPair]:
        """Pairs of random tokens for so many steps."""
        draw = random.Random(0)

        def tokens(length: int) -> Tokens:
            return tuple(draw.randrange(2, self.vocab_size) for _ in range(length))

        def answer() -> Tokens:
            return (*tokens(self.length - self.length // 2 - 1), 1)

        made = []
        for _ in range(count * self.pairs):
            pair, base = EncodedPair(tokens(self.length // 2), answer(), answer()), answer()
            made.append(pair.anchored_on([base]) if anchored else pair)
        return made


SMALL = Shape("llama", 256, 704, 4, 4, 4, 4096, pairs=8, length=128)
HALF_BILLION = Shape("qwen2", 896, 4864, 24, 14, 2, 151_936, pairs=8, length=512)
TINY = Shape("llama", 32, 64, 1, 2, 2, 64, pairs=2, length=16)


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each optimiser step ended; what lies between is a step with its data loading."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.clear()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds_a_step(self) -> float:
        """The median over the steps behind the dropped ones."""
        ends = self.ends[DROPPED - 1 :]
        return statistics.median(b - a for a, b in pairwise(ends))


def our_trainer(
    model: Any, config: BAPOConfig, pairs: Sequence[EncodedPair], callbacks: list[TrainerCallback]
) -> Trainer:
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=int(config.lora_alpha),
        target_modules=config.lora_target_modules,
    )
    return BAPOTrainer(get_peft_model(model, lora), config, pairs, callbacks=callbacks)


def trl_trainer(*arguments: Any, **options: Any) -> Trainer:
    # Our own process in the memory part is not to carry TRL.
    from benchmarks.trl_bapo import trl_trainer as build

    return build(*arguments, **options)


SIDES: dict[str, tuple[Callable[..., Trainer], bool]] = {
    OURS: (our_trainer, True),
    OURS_DPO: (our_trainer, False),
    TRL_DPO: (partial(trl_trainer, precompute=True), False),
    TRL_BAPO: (partial(trl_trainer, precompute=True), True),
    TRL_PLAIN: (partial(trl_trainer, precompute=False), True),
}


def trainer_of(side: str, shape: Shape, device: str, clock: Clock, folder: str) -> Trainer:
    """A trainer that is ready: adapter on, references computed."""
    make, anchored = SIDES[side]
    config = BAPOConfig(
        method="bapo" if anchored else "dpo",
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=shape.pairs,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
    )
    pairs = shape.batches(STEPS, anchored=anchored)
    return make(shape.network(device), config, pairs, [clock])


def step(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Pairs a second of each side, and ours over each of TRL's, round by round."""
    shape = HALF_BILLION if arguments.device == "cuda" else SMALL
    clock = Clock()
    speed: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for side in SIDES:
            with console.status(f"step: references of {side}"):
                trainers[side] = trainer_of(side, shape, arguments.device, clock, folder)
        for number in range(arguments.rounds):
            order = list(SIDES)[number % len(SIDES) :] + list(SIDES)[: number % len(SIDES)]
            for side in order:
                with console.status(f"step: round {number + 1} of {arguments.rounds}: {side}"):
                    trainers[side].train()
                speed[side].append(shape.pairs / clock.seconds_a_step())
        found: dict[str, Any] = {"shape": asdict(shape), "pairs a second": speed, "ratios": {}}
        table = Table("pairs a second", "min", "median", "max", "aim")
        _rows(table, speed)
        for (above, below), aim in STEP_RATIOS.items():
            ratio = {f"{above} / {below}": _ratios(speed[above], speed[below])}
            found["ratios"] |= ratio
            _rows(table, ratio, aim=aim)
        if arguments.device == "cuda":
            found["use of the GPU"] = use_of_the_gpu(trainers, shape, speed, table)
    console.print(table)
    return found


def use_of_the_gpu(
    trainers: dict[str, Trainer], shape: Shape, speed: dict[str, list[float]], table: Table
) -> dict[str, Any]:
    """Tokens a second, and the share of what a large bf16 product reaches here and now."""
    peak = matmul_flops()
    found: dict[str, Any] = {"bf16 product of 8192, TFLOP/s": peak / 1e12}
    for side, trainer in trainers.items():
        prompt = shape.length // 2
        answer = shape.length - prompt
        answers = 3 if SIDES[side][1] else 2
        rows = prompt + answers * answer if side in (OURS, OURS_DPO) else answers * shape.length
        model = trainer.model.get_base_model()
        body = sum(
            weight.numel()
            for name, weight in model.get_decoder().named_parameters()
            if weight.dim() == 2 and "embed" not in name
        )
        head = model.get_output_embeddings().weight.numel()
        # Two operations forward and two for the gradient of the activations; frozen weights have
        # no gradient. Not counted: attention, the adapter's gradient, what a side computes twice.
        flops = 4 * (body * rows + head * answers * answer)
        median = statistics.median(speed[side])
        found[side] = {"tokens a second": rows * median, "share": flops * median / peak}
        table.add_row(f"{side}: tokens a second", "", f"{rows * median:,.0f}", "", "")
        table.add_row("… of the matmul peak", "", f"{flops * median / peak:.0%}", "", "")
    return found


def matmul_flops(size: int = 8192, repeats: int = 20) -> float:
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            a @ a
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / repeats)
    return 2 * size**3 / best


def memory(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """MiB that a process grows by from just before training to its peak."""
    shape = HALF_BILLION if arguments.device == "cuda" else SMALL
    table = Table("MiB on top of the state before training", "min", "median", "max", "aim")
    found: dict[str, Any] = {}
    for vocabulary in sorted({shape.vocab_size, LARGE_VOCABULARY}):
        grown: dict[str, list[float]] = {OURS: [], TRL_DPO: []}
        for number in range(arguments.rounds):
            for side, values in grown.items():
                where = f"vocabulary {vocabulary}: round {number + 1} of {arguments.rounds}: {side}"
                with console.status(f"memory: {where}"):
                    values.append(_grown_in_a_child(side, vocabulary, arguments))
        ratio = {f"{OURS} / {TRL_DPO}": _ratios(grown[OURS], grown[TRL_DPO])}
        found[f"vocabulary {vocabulary}"] = {"MiB": grown, "ratios": ratio}
        table.add_section()
        table.add_row(f"vocabulary {vocabulary}", "", "", "", "")
        _rows(table, grown)
        _rows(table, ratio, aim="≤ 0.9")
    console.print(table)
    return found


def _grown_in_a_child(side: str, vocabulary: int, arguments: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "benchmarks.training", "--device", arguments.device]
    command += ["--threads", str(arguments.threads), "--grow", side, str(vocabulary)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{side} did not train:\n{child.stderr[-2000:]}")
    return float(child.stdout.splitlines()[-1])


def grow(side: str, vocabulary: int, device: str) -> float:
    """MiB by which this process grows over training at its peak; the child's part of `memory`."""
    shape = replace(HALF_BILLION if device == "cuda" else SMALL, vocab_size=vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        # What is imported and set up once is there before the measurement begins.
        trainer_of(side, TINY, device, Clock(), folder).train()
        trainer = trainer_of(side, shape, device, Clock(), folder)
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            trainer.train()
            return float(torch.cuda.max_memory_allocated() - before) / 2**20
        # Free memory that malloc has kept would hide growth.
        ctypes.CDLL(None).malloc_trim(0)
        # Linux: from here on the peak counts anew (getrusage's ru_maxrss is the same counter).
        Path("/proc/self/clear_refs").write_text("5")
        resting = _kibibytes("VmRSS")
        trainer.train()
        return (_kibibytes("VmHWM") - resting) / 2**10


def _kibibytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def fleet(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Seconds for all users: our one process, and a TRL process for each, scaled from a few."""
    from benchmarks.trl_dpo_user import seconds_of_trl_dpo

    # Both sides run on these, our defaults; ours trains BAPO and samples its base answers too.
    config = BAPOConfig(use_cpu=arguments.device == "cpu")
    sizes: list[int] = sorted(set(arguments.users))
    ours: dict[int, list[float]] = {size: [] for size in sizes}
    theirs: list[list[float]] = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(arguments.rounds):
            where = f"fleet: round {number + 1} of {arguments.rounds}"
            work = Path(name, str(number))
            theirs.append([])
            for user in range(arguments.trl_users):
                with console.status(f"{where}: TRL, user {user + 1} of {arguments.trl_users}"):
                    folder = work / f"trl-{user}"
                    seconds = seconds_of_trl_dpo(POCKET, pairs_of(user), folder, config)
                theirs[-1].append(seconds)
            for size in sizes:
                with console.status(f"{where}: bapo fleet, {size} users"):
                    ours[size].append(seconds_of_fleet(size, work / f"ours-{size}", config))
    return _fleet_found(ours, theirs, arguments, console)


def seconds_of_fleet(size: int, work: Path, config: BAPOConfig) -> float:
    """One `bapo fleet` over so many users, from the start of the process to its end."""
    data, out, log = work / "data", work / "out", work / "log"
    data.mkdir(parents=True)
    for user in range(size):
        save_pairs(pairs_of(user), data / f"user-{user:03}.jsonl")
    command = [sys.executable, "-m", "bapo", "fleet", "--model", str(POCKET)]
    command += ["--data", str(data), "--out", str(out)]
    if config.use_cpu:
        command += ["--use_cpu", "true"]
    # Base answers that an earlier run left in the user's cache are not to help.
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    began = time.perf_counter()
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, env=environment, cwd=ROOT, check=False
        ).returncode
    seconds = time.perf_counter() - began
    made = len(list(out.glob("*/adapter_model.safetensors")))
    if done or made != size:
        raise SystemExit(f"`bapo fleet` made {made} of {size}:\n{log.read_text()[-2000:]}")
    return seconds


def pairs_of(user: int) -> list[PreferencePair]:
    """64 pairs in one voice; users draw from a common store, so some share prompts."""
    files = sorted(file for file in PREFERENCES.glob("*.jsonl") if "." not in file.stem)
    store = load_pairs(files[user % len(files)])
    return random.Random(user).sample(store, PAIRS_OF_A_USER)


def _fleet_found(
    ours: dict[int, list[float]],
    theirs: list[list[float]],
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    sizes = list(ours)
    scaled = {size: [size * statistics.mean(one) for one in theirs] for size in sizes}
    ratios = {size: _ratios(scaled[size], ours[size]) for size in sizes}
    more = {
        f"{small} to {large}": [
            (b - a) / (large - small) for a, b in zip(ours[small], ours[large], strict=True)
        ]
        for small, large in pairwise(sizes)
    }
    table = Table("seconds", "min", "median", "max", "aim")
    _rows(table, {"TRL, one user": [seconds for one in theirs for seconds in one]})
    note = f"scaled from {arguments.trl_users}, not measured"
    _rows(table, {f"TRL, {size} users ({note})": row for size, row in scaled.items()})
    _rows(table, {f"bapo fleet, {size} users": row for size, row in ours.items()})
    _rows(table, {f"bapo fleet, each further user, {span}": row for span, row in more.items()})
    for size, row in ratios.items():
        _rows(table, {f"TRL over ours, {size} users": row}, aim="≥ 8")
    console.print(table)
    return {
        "prompts": {size: _distinct_prompts(size) for size in sizes},
        "TRL, seconds of each measured user, by round": theirs,
        f"TRL, all users ({note})": scaled,
        "bapo fleet, all users": ours,
        "bapo fleet, each further user": more,
        "TRL over ours": ratios,
    }


def _distinct_prompts(size: int) -> str:
    prompts = [str(pair.prompt) for user in range(size) for pair in pairs_of(user)]
    return f"{len(set(prompts))} distinct of {len(prompts)}"


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _rows(table: Table, figures: dict[str, list[float]], *, aim: str = "") -> None:
    for name, row in figures.items():
        table.add_row(name, *(f"{f(row):.2f}" for f in (min, statistics.median, max)), aim)


def machine(device: str, threads: int) -> dict[str, str]:
    """What the figures were made on and with."""
    packages = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    cpu = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if "model name" in line), cpu)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "bf16 pays": str(bf16_pays(cpu=device == "cpu")),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def keep(part: str, found: dict[str, Any]) -> None:
    """Write one part's figures; those of the other parts stay as they are."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known | {part: found}, indent=2) + "\n")


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between")
    parser.add_argument("--rounds", type=int, default=3, help="of every side, in turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of both sides, on a CPU")
    parser.add_argument("--users", type=int, nargs="+", default=[20], help="sizes of the fleet")
    parser.add_argument("--trl-users", type=int, default=3, help="measured, then scaled")
    parser.add_argument("--grow", nargs=2, help=argparse.SUPPRESS)  # a child of `memory`
    return parser.parse_args(words)


def main() -> None:
    arguments = arguments_of()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    if arguments.grow:
        side, vocabulary = arguments.grow
        print(grow(side, int(vocabulary), arguments.device))
        return
    run = {"step": step, "memory": memory, "fleet": fleet}
    chosen = arguments.parts.split(",")
    if unknown := set(chosen) - set(run):
        raise SystemExit(f"There is no part {', '.join(unknown)}; there are {', '.join(run)}.")
    console = Console()
    logging.set_verbosity_error()
    for part in chosen:
        told: dict[str, Any] = {
            "command": " ".join(["python -m benchmarks.training", *sys.argv[1:]])
        }
        told["machine"] = machine(arguments.device, arguments.threads)
        found = run[part](arguments, console)
        keep(part if arguments.device == "cpu" else f"{part} on cuda", told | found)


if __name__ == "__main__":
    main()
