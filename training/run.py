"""One adapter from beginning to end: pairs in, a folder out.

Owns the order of the steps: encode, base answers, references, training, writing. Refuses
how each step is done. The folder `out` is either there whole or not at all; checkpoints
stand beside it, only where they were asked for or the run was stopped.
"""

import copy
import importlib.metadata
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import set_seed

from adapters.artifact import Manifest
from training.checkpoints import StopWhenAsked, claim, last_checkpoint, run_identity
from training.config import BAPOConfig, refuse_idle_evaluation
from training.data import PreferencePair, pairs_digest
from training.drift import DRIFT, DriftWatch, watched_answers
from training.errors import ConfigError, DataError, OutOfMemory, Stopped
from training.history import Line, history
from training.model import ResidentBase, load_base, trainable
from training.preparing import Pairs, Prepared, pairs_of, prepare
from training.progress import TrainingBar, bar
from training.sharding import in_one_piece
from training.trainer import BAPOTrainer
from training.writing import recover, refuse_existing, write_adapter

ALLOCATOR_WORDS = ("can't allocate memory", "out of memory")
"""How torch's allocators, of CPUs and of libraries on GPUs, say that there is no more."""


@dataclass(frozen=True)
class TrainResult:
    """A finished adapter: its folder, its manifest, and the seconds each part took."""

    out: Path
    manifest: Manifest
    metrics: dict[str, float]
    seconds: dict[str, float]


def train_adapter(
    model: ResidentBase | str | Path,
    pairs: Pairs,
    out: str | Path,
    config: BAPOConfig | None = None,
    *,
    eval_pairs: Pairs = (),
    name: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    label: str | None = None,
) -> TrainResult:
    """Train one adapter and write it to `out` as a PEFT folder with manifest and model card.

    `model` may be a base already in memory, which is left as it was; a folder or Hub name
    is loaded for this one run. `pairs` may name a file or data set, and so may
    `eval_pairs`, on which the loss is taken after every epoch (or as `eval_strategy`
    says). `name` (default: the folder's) goes into the manifest. `resume` goes on from the
    run's last checkpoint, if it has one. `label` shows progress bars under that text.

    A SIGINT or SIGTERM ends the run after the running step with a checkpoint, and Stopped.
    Raises TrainingError and the adapters' errors, each one sentence, before anything is
    written; OSError where the disk fails, with nothing left behind.
    """
    target = Path(out).absolute()
    config = _at_home(config or BAPOConfig(), target, evaluates=bool(eval_pairs))
    if config.should_save:  # of several processes, one writes
        recover(target.parent, [target.name])
    refuse_existing(target, overwrite=overwrite)
    data = pairs_of(pairs)
    if not data:
        raise DataError("There are no preference pairs to train on.")
    held_out = pairs_of(eval_pairs)
    if config.shards and isinstance(model, ResidentBase):
        raise ConfigError(
            "FSDP takes a base in memory apart; train one adapter, with `bapo train`."
        )
    base = model if isinstance(model, ResidentBase) else _load(model, config)
    label = label if config.process_index == 0 else None  # of several processes, one talks
    identity = run_identity(base.info, data, config)
    checkpoints = Path(str(config.output_dir))
    checkpoint = last_checkpoint(checkpoints, identity) if resume else None
    clock = _Clock()
    with _memory_in_words(config):
        with config.main_process_first(local=False):  # the others find its answers in the cache
            ready = prepare(base, data, config, held_out=held_out, label=label)
            watched = watched_answers(base, ready.held_out or ready.pairs, config)
        clock.lap("base answers and references")
        set_seed(config.seed)
        with trainable(base, config) as policy:
            if config.should_save:
                claim(checkpoints, identity)
            watch = DriftWatch(watched, name or target.name)
            metrics, record = _fit(policy, ready, config, checkpoint, watch, label)
            policy = in_one_piece(policy, here=config.should_save)
            clock.lap("training")
            manifest = _manifest(name or target.name, base, data, ready, config, metrics)
            if config.should_save:
                write_adapter(
                    policy,
                    manifest,
                    record,
                    ready.pairs,
                    target,
                    base=base.info,
                    max_rank=config.max_lora_rank,
                )
    if config.should_save and config.save_strategy == "no" and config.checkpoints_beside_result:
        shutil.rmtree(checkpoints, ignore_errors=True)  # at most a stopped run's, now finished
    clock.lap("writing")
    return TrainResult(target, manifest, metrics, clock.laps)


def _load(model: str | Path, config: BAPOConfig) -> ResidentBase:
    _ = config.device  # with several processes, this chooses each one's GPU
    return load_base(model, cpu=config.use_cpu, four_bit=config.load_in_4bit)


def _at_home(config: BAPOConfig, target: Path, *, evaluates: bool) -> BAPOConfig:
    """The config with its checkpoints beside the result, and evaluating where there is data.

    Raises ConfigError where it is to evaluate and there is none.
    """
    config = copy.copy(config)
    refuse_idle_evaluation(config, evaluates=evaluates)
    if config.checkpoints_beside_result:
        config.output_dir = str(target.with_name(f"{target.name}-checkpoints"))
    if evaluates and config.eval_strategy == "no":
        config.eval_strategy = "epoch"
    return config


def _fit(
    policy: PeftModel,
    ready: Prepared,
    config: BAPOConfig,
    checkpoint: Path | None,
    watch: DriftWatch,
    label: str | None,
) -> tuple[dict[str, float], dict[str, list[Line]]]:
    """Train, and say how it ended (the means over the last epoch's pairs) and how it went.

    May raise Stopped.
    """
    stop = StopWhenAsked()
    with bar(label) as show, stop.listening():
        progress = TrainingBar(show)
        trainer = BAPOTrainer(
            policy,
            config,
            ready.pairs,
            eval_pairs=ready.held_out,
            general=ready.general,
            callbacks=[progress, stop, watch],
        )
        progress.figures = trainer.recent
        progress.tokens = lambda: trainer.tokens
        watch.log = trainer.log
        output = trainer.train(str(checkpoint) if checkpoint else None)
    if output.global_step < trainer.state.max_steps:
        raise Stopped(
            f"Stopped after step {output.global_step} of {trainer.state.max_steps}; the checkpoint"
            f" is in {config.output_dir}, go on with --resume."
        )
    metrics = {
        "train/steps": float(output.global_step),
        "train/seconds": output.metrics["train_runtime"],
        **{f"train/{name}": value for name, value in trainer.last_epoch().items()},
        **trainer.last_evaluation(),
        **({} if watch.last is None else {DRIFT: watch.last}),
    }
    return metrics, history(trainer.history, trainer.state.log_history)


def _manifest(
    name: str,
    base: ResidentBase,
    data: list[PreferencePair],
    ready: Prepared,
    config: BAPOConfig,
    metrics: dict[str, float],
) -> Manifest:
    record: dict[str, Any] = {
        "name": name,
        "base": {"name": base.info.name, "fingerprint": base.info.fingerprint},
        "method": config.method,
        "hyperparameters": config.hyperparameters(),
        "data": {
            "sha256": pairs_digest(data).removeprefix("sha256:"),
            "pairs": len(data),
            "prompts": len({pair.prompt for pair in ready.pairs}),
            "tokens": sum(map(len, ready.pairs)),
            "general_prompts": len(ready.general),
        },
        "metrics": metrics,
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "transformers", "peft")},
        "seed": config.seed,
        "created": datetime.now(UTC),
    }
    return Manifest.model_validate(record)


@contextmanager
def _memory_in_words(config: BAPOConfig) -> Iterator[None]:
    """Turn an allocator's refusal into the settings that would help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            words in str(error) for words in ALLOCATOR_WORDS
        ):
            raise
        raise OutOfMemory(
            "Out of memory: lower per_device_train_batch_size"
            f" (now {config.per_device_train_batch_size}; gradient_accumulation_steps makes up for"
            f" it), or give gradient_checkpointing, or lower max_completion_length"
            f" (now {config.max_completion_length})."
        ) from error


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
