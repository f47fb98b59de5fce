"""What a training run can be told, and how an experiment file is read.

Owns the settings of one adapter's training: BAPO's own beside everything that
`transformers.TrainingArguments` has, flat, so that an experiment is one YAML file of
`name: value` lines in TRL's manner. Refuses paths of data and models inside `BAPOConfig`;
those are the experiment's. A config that exists is in range.
"""

# ruff: noqa: RUF009 - setting() is dataclasses.field with the help line beside the value

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from transformers import IntervalStrategy, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from training.errors import ConfigError
from training.losses import AnchorType, PreferenceType

Method = Literal["bapo", "dpo", "sft"]
AnchorEngine = Literal["auto", "transformers", "vllm"]
AnchorOn = Literal["base", "chosen"]
MAX_LORA_RANK = 512


def setting(default: Any, help: str) -> Any:
    """A dataclass field with the line that says what it does."""
    return field(default=default, metadata={"help": help})


@dataclass
class BAPOConfig(TrainingArguments):  # type: ignore[misc]
    """Settings of one training run; every `TrainingArguments` field may be given too.

    Raises ConfigError, one sentence, where a value is out of range.
    """

    method: Method = setting("bapo", "bapo, dpo (no anchor), or sft (chosen answers, no anchor).")
    beta: float = setting(0.1, "Strength of the preference term's KL leash (β).")
    loss_type: PreferenceType = setting("sigmoid", "sigmoid (DPO's), ipo, hinge, dpop or sft.")
    label_smoothing: float = setting(0.0, "Probability that a label is flipped (ε); sigmoid only.")
    dpop_weight: float = setting(5.0, "Weight of the hinge on the chosen answer; dpop only.")
    sft_weight: float = setting(0.0, "Weight of SFT on the chosen answer beside the preference.")
    anchor_weight: float = setting(0.02, "Weight of the anchor (λ); of the order of β or below.")
    anchor_type: AnchorType = setting("hinge", "hinge, absolute, squared, log_ratio or kl.")
    anchor_on: AnchorOn = setting("base", "What is anchored: base (its own answer) or chosen.")
    anchor_length_normalise: bool = setting(False, "Charge the anchor per token of base answer.")
    anchor_answers: int = setting(1, "Base answers anchored for each prompt, sampled apart.")
    anchor_prompts: str | None = setting(None, "JSONL file of general prompts to anchor as well.")
    anchor_prompts_per_pair: int = setting(1, "General prompts anchored beside each pair.")
    anchor_engine: AnchorEngine = setting("auto", "Base answers by transformers, vllm or auto.")
    anchor_temperature: float = setting(1.0, "Base answers are sampled at this; 0 is greedy.")
    anchor_max_new_tokens: int = setting(128, "A base answer is cut after so many tokens.")
    anchor_batch_size: int = setting(64, "Prompts answered together by the base model.")
    anchor_cache: str | None = setting(None, "JSONL file of base answers; default: user cache.")
    drift_steps: int = setting(20, "Steps between two looks at the drift from the base; 0: none.")
    drift_prompts: int = setting(32, "Prompts whose base answers are looked at for drift.")
    drift_warn: float | None = setting(1.0, "Drift (KL, nats a token) above which a run warns.")
    drift_limit: float | None = setting(None, "Drift (KL, nats a token) above which a run stops.")
    max_prompt_length: int = setting(1024, "A longer prompt (tokens) is an error, never cut.")
    max_completion_length: int = setting(1024, "A longer answer (tokens) is an error, never cut.")
    lora_rank: int = setting(8, "Rank of the adapter (r).")
    max_lora_rank: int = setting(16, "Largest rank that the server takes (its --max-lora-rank).")
    lora_alpha: float = setting(16.0, "LoRA scale: the update counts alpha / r times.")
    lora_dropout: float = setting(0.0, "Dropout in front of the adapter.")
    lora_target_modules: str = setting(
        "all-linear", "Layers that get an adapter: all-linear, or names with commas between."
    )

    load_in_4bit: bool = setting(False, "Keep the base in 4 bits (QLoRA); needs bitsandbytes.")

    output_dir: str | None = setting(None, "Where checkpoints go; default: OUT-checkpoints.")
    learning_rate: float = setting(2e-4, "Peak learning rate.")
    num_train_epochs: float = setting(3.0, "Passes over the pairs.")
    per_device_train_batch_size: int = setting(16, "Pairs in a step, on each device.")
    lr_scheduler_type: str = setting("cosine", "Learning-rate schedule after the warm-up.")
    warmup_steps: float = setting(0.1, "Warm-up: steps, or below 1 a fraction of all steps.")
    weight_decay: float = setting(0.0, "AdamW's weight decay.")
    logging_steps: float = setting(10, "Steps between two log lines.")
    save_strategy: str = setting("no", "When checkpoints are written: no, steps or epoch.")
    report_to: str | list[str] | None = setting("none", "Trackers: none, tensorboard, wandb …")
    bf16: bool | None = setting(None, "bf16 autocast; default: where the device is fast at it.")
    disable_tqdm: bool | None = setting(True, "The Trainer's own bars stay off; ours is used.")
    remove_unused_columns: bool = setting(False, "Batches are packed here, not by column name.")
    dataloader_pin_memory: bool = setting(False, "Batches are too small for pinning to pay.")
    fsdp: bool | None = setting(None, "Keep a part of each weight in each process (FSDP2).")

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.method == "sft":
            self.loss_type = "sft"
        if self.method != "bapo" or self.anchor_weight == 0:
            self.method = "sft" if self.loss_type == "sft" else "dpo"
            self.anchor_weight = 0.0
        self.checkpoints_beside_result = self.output_dir is None
        if self.output_dir is None:
            # The Trainer makes this folder even where nothing is saved; not in the user's.
            self.output_dir = str(Path(tempfile.gettempdir(), "bapo-trainer"))
        # On a machine without accelerators transformers wants to be told so before it allows bf16.
        # DeepSpeed has CPU processes of its own, which accelerate finds only where nobody says so.
        if not torch.accelerator.is_available() and not _launched_with("DeepSpeed"):
            self.use_cpu = True
        self._check_sharding()
        if self.bf16 is None:
            self.bf16 = bf16_pays(cpu=self.use_cpu)
        try:
            super().__post_init__()
        except (ValueError, ImportError) as error:
            raise ConfigError(_first_line(error)) from error
        self._check_stages()
        self._check_trackers()

    @property
    def anchored(self) -> bool:
        """Whether there is an anchor."""
        return self.anchor_weight > 0

    @property
    def anchored_on_base(self) -> bool:
        """Whether the base model has to answer the prompts first."""
        return self.anchored and self.anchor_on == "base"

    @property
    def watches_drift(self) -> bool:
        """Whether the drift from the base is looked at during training."""
        return self.drift_steps > 0

    def hyperparameters(self) -> dict[str, Any]:
        """What shaped the result, for the manifest: our own fields and the optimiser's."""
        return {name: getattr(self, name) for name in _RECORDED}

    def _check_trackers(self) -> None:
        for name in self.report_to or ():
            if name not in INTEGRATION_TO_CALLBACK:
                known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
                raise ConfigError(f"There is no tracker '{name}' for report_to; there are {known}.")
            if name not in get_available_reporting_integrations():
                raise ConfigError(f"report_to {name} needs its package: pip install {name}.")

    @property
    def shards(self) -> bool:
        """Whether each process keeps a part of every weight only."""
        return bool(self.fsdp) or _launched_with("FSDP")

    def _check_sharding(self) -> None:
        """accelerate passes over both on CPUs, without a word, where `use_cpu` is given."""
        for engine, asked in (("FSDP", self.fsdp), ("DeepSpeed", self.deepspeed)):
            if self.use_cpu and (asked or _launched_with(engine)):
                raise ConfigError(
                    f"{engine} is for accelerators: on CPUs train data-parallel (torchrun, or"
                    " accelerate with MULTI_CPU)."
                )
        if self.shards and self.load_in_4bit:
            raise ConfigError("FSDP goes without load_in_4bit: take one of the two.")

    def _check_stages(self) -> None:
        """Once the Trainer has read the engines' own settings."""
        asked = self.fsdp_plugin_args or {"fsdp_version": os.environ.get("FSDP_VERSION", "1")}
        if self.shards and int(asked["fsdp_version"]) != 2:
            raise ConfigError("FSDP needs its second version: fsdp_version: 2.")
        if self.deepspeed_plugin is not None and self.deepspeed_plugin.zero_stage == 3:
            raise ConfigError(
                "DeepSpeed's ZeRO-3 is not supported: take ZeRO-2, FSDP or load_in_4bit."
            )

    def _check_ranges(self) -> None:
        for name in ("method", "loss_type", "anchor_type", "anchor_on", "anchor_engine"):
            choices = get_args(_HINTS[name])
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}.")
        for name, low in _MINIMUM.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name} must be at least {low}, not {getattr(self, name)}.")
        for name in ("beta", "learning_rate", "num_train_epochs", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("drift_warn", "drift_limit"):
            if not (getattr(self, name) is None or getattr(self, name) > 0):
                raise ConfigError(f"{name} must be above 0 or none, not {getattr(self, name)}.")
        if self.max_lora_rank > MAX_LORA_RANK:
            raise ConfigError(f"max_lora_rank is at most {MAX_LORA_RANK}, vLLM serves no more.")
        if self.lora_rank > self.max_lora_rank:
            raise ConfigError(
                f"lora_rank {self.lora_rank} is more than the server takes, {self.max_lora_rank}:"
                " lower it, or give --max-lora-rank here as `bapo serve` has it."
            )
        if self.label_smoothing >= 0.5:
            raise ConfigError("label_smoothing must be below 0.5; above, the labels turn round.")
        if self.anchor_answers > 1 and not self.anchor_temperature:
            raise ConfigError("anchor_answers above 1 needs anchor_temperature above 0.")
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ConfigError(f"label_smoothing needs loss_type sigmoid, not {self.loss_type}.")
        if self.sft_weight and "sft" in (self.method, self.loss_type):
            raise ConfigError("sft_weight adds SFT to another loss_type; with sft leave it out.")
        if self.anchor_on == "chosen" and (self.anchor_prompts or self.anchor_answers > 1):
            raise ConfigError(
                "anchor_on chosen goes without anchor_prompts and anchor_answers: a pair has"
                " one chosen answer, a general prompt none."
            )


_MINIMUM = {
    "anchor_answers": 1,
    "anchor_prompts_per_pair": 1,
    "anchor_batch_size": 1,
    "anchor_max_new_tokens": 1,
    "anchor_temperature": 0,
    "anchor_weight": 0,
    "dpop_weight": 0,
    "drift_prompts": 1,
    "drift_steps": 0,
    "label_smoothing": 0,
    "lora_dropout": 0,
    "lora_rank": 1,
    "max_completion_length": 1,
    "max_prompt_length": 1,
    "per_device_train_batch_size": 1,
    "sft_weight": 0,
}

_MACHINE_ONLY = {
    "anchor_batch_size",
    "anchor_cache",
    "anchor_engine",
    "anchor_prompts",
    "dataloader_pin_memory",
    "disable_tqdm",
    "drift_limit",
    "drift_prompts",
    "drift_steps",
    "drift_warn",
    "fsdp",
    "logging_steps",
    "max_lora_rank",
    "method",
    "output_dir",
    "remove_unused_columns",
    "report_to",
    "save_strategy",
}
_RECORDED = [n for n in BAPOConfig.__annotations__ if n not in _MACHINE_ONLY]
_RECORDED += ["gradient_accumulation_steps", "max_grad_norm", "max_steps"]
_HINTS = get_type_hints(BAPOConfig)


def _launched_with(engine: str) -> bool:
    """Whether `accelerate launch` was told to use FSDP or DeepSpeed."""
    return os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "").lower() == "true"


def bf16_pays(*, cpu: bool = False) -> bool:
    """Whether bf16 products are faster here: any recent GPU, and CPUs with units for it."""
    if torch.cuda.is_available() and not cpu:
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True)
class Experiment:
    """One adapter to train: from what, on what, to where."""

    model: str
    data: str
    out: str
    eval_data: str | None
    overwrite: bool
    config: BAPOConfig


def read_settings(path: str | Path) -> dict[str, Any]:
    """The `name: value` lines of an experiment file. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no experiment file {path}.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {_first_line(error)}.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold 'name: value' lines.")
    return settings


def experiment(settings: Mapping[str, Any]) -> Experiment:
    """Settings as a checked experiment; text is converted to each setting's type.

    Raises ConfigError for a name that is unknown, a value of the wrong type, and where
    `model`, `data` or `out` is missing, or `eval_data` with an `eval_strategy`.
    """
    rest = dict(settings)
    places = {name: rest.pop(name, None) for name in ("model", "data", "out")}
    for name, value in places.items():
        if not value:
            raise ConfigError(f"'{name}' is missing: give it in the file or as --{name}.")
    overwrite = _typed("overwrite", rest.pop("overwrite", False), bool)
    eval_data = rest.pop("eval_data", None)
    model, data, out = (str(value) for value in places.values())
    held_out = str(eval_data) if eval_data else None
    config = config_of(rest)
    refuse_idle_evaluation(config, evaluates=held_out is not None)
    return Experiment(model, data, out, held_out, overwrite, config)


def refuse_idle_evaluation(config: BAPOConfig, *, evaluates: bool) -> None:
    """Raises ConfigError where evaluation is asked for and there is nothing to evaluate on."""
    asked = IntervalStrategy(config.eval_strategy)
    if asked is not IntervalStrategy.NO and not evaluates:
        raise ConfigError(
            f"eval_strategy is {asked.value!r}, but there are no pairs to evaluate on: name them"
            " with eval_data, or leave eval_strategy out."
        )


def config_of(settings: Mapping[str, Any]) -> BAPOConfig:
    """A BAPOConfig from loosely typed settings. Raises ConfigError."""
    known = {f.name for f in fields(BAPOConfig) if f.init}
    for name in settings:
        if name not in known:
            raise ConfigError(f"There is no setting '{name}'; see `bapo train --help`.")
    return BAPOConfig(**{k: _typed(k, v, _HINTS[k]) for k, v in settings.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ConfigError(f"The setting '{name}' cannot be {value!r}: {problem}.") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
