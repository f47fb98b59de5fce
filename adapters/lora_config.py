"""What `adapter_config.json` may say: a plain LoRA, its rank and its scale.

Owns reading PEFT's configuration with suspicion, and turning away every feature that the engine
would drop in silence or fail on. Refuses tensors. `LoraSettings` that were read describe a LoRA
whose whole effect is `scale * B @ A`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.artifact import CONFIG_FILE
from adapters.errors import InvalidAdapter
from adapters.files import read_regular
from adapters.strictjson import Malformed, parse_object

MAX_CONFIG_BYTES = 2**20

# Initialisations that change only where training began. The others (PiSSA, OLoRA, CorDA, LoRA-GA,
# LoftQ) also move the base weights, so the saved adapter alone is not the trained model. vLLM 0.32
# takes LoRA-GA for a plain one, and would answer as neither the base nor the trained model does.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})

# PEFT features beyond a plain LoRA: what to do instead of having them on.
REFUSED_FEATURES = {
    "use_dora": "DoRA is not served: train with use_dora=false",
    "lora_bias": "biases are not served: train with lora_bias=false",
    "modules_to_save": "whole modules are not served: train with modules_to_save=null",
    "trainable_token_indices": "trained tokens are not served: leave trainable_token_indices out",
    "target_parameters": "adapted parameters are not served: name layers in target_modules",
    "alora_invocation_tokens": "activated LoRA is not served: leave alora_invocation_tokens out",
    "layer_replication": "replicated layers are not served: train with layer_replication=null",
    "fan_in_fan_out": "transposed layers are not served: train with fan_in_fan_out=false",
    "use_qalora": "QALoRA is not served: train with use_qalora=false",
    "use_bdlora": "block-diagonal LoRA is not served: leave use_bdlora out",
    "arrow_config": "Arrow routing is not served: leave arrow_config out",
    "kasa_config": "KaSA is not served: leave kasa_config out",
    "monteclora_config": "MonteCLoRA is not served: leave monteclora_config out",
    "megatron_config": "Megatron's layers are not served: leave megatron_config out",
}
KNOWN_SWITCHES = {*REFUSED_FEATURES, "use_rslora"}


@dataclass(frozen=True)
class LoraSettings:
    """The part of PEFT's configuration that decides an adapter's effect."""

    rank: int
    alpha: float
    use_rslora: bool

    @property
    def scale(self) -> float:
        """The factor on `B @ A`: alpha/r, or alpha/√r for rank-stabilised LoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of an untrusted folder, as it is. Raises InvalidAdapter."""
    try:
        text = read_regular(folder / CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES)
        return parse_object(text, max_bytes=MAX_CONFIG_BYTES)
    except Malformed as error:
        raise InvalidAdapter([f"{CONFIG_FILE} {error}"]) from None
    except OSError as error:
        raise InvalidAdapter([f"{CONFIG_FILE} cannot be read ({error.strerror})"]) from None


def settings_of(config: Mapping[str, Any], max_rank: int | None = None) -> LoraSettings:
    """What the config says of the adapter's effect.

    Raises InvalidAdapter with everything in the file that must change.
    """
    problems = [*_kind(config), *_numbers(config, max_rank), *_features(config), *_patterns(config)]
    if problems:
        raise InvalidAdapter(problems)
    return LoraSettings(config["r"], float(config["lora_alpha"]), config.get("use_rslora", False))


def coverage(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether PEFT would give a module an adapter, as far as the config's lists tell.

    True as well where the config has a pattern: a stranger's regular expression is never run.
    """
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    wanted, unwanted = _names(targets), _names(config.get("exclude_modules"))
    numbers = {layers} if type(layers) is int else _numbers_in(layers)

    def covers(module: str) -> bool:
        # PEFT's rule: the whole name, or an end of it at a dot.
        parts = module.split(".")
        ends = {".".join(parts[start:]) for start in range(len(parts))}
        layer = next((int(part) for part in parts if part.isdecimal()), None)
        return (
            (not isinstance(targets, list) or bool(ends & wanted))
            and not ends & unwanted
            and (not numbers or layer is None or layer in numbers)
        )

    return covers


def _names(listed: Any) -> frozenset[str]:
    return frozenset(n for n in listed if type(n) is str) if type(listed) is list else frozenset()


def _numbers_in(listed: Any) -> frozenset[int]:
    return frozenset(n for n in listed if type(n) is int) if type(listed) is list else frozenset()


def _kind(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"peft_type must be 'LORA', not {_shown(config.get('peft_type'))}"
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        yield f"task_type must be 'CAUSAL_LM', not {_shown(config['task_type'])}"
    if config.get("bias", "none") != "none":
        yield f"bias must be 'none', not {_shown(config['bias'])}: biases are not served"
    init = config.get("init_lora_weights", True)
    plain = isinstance(init, str) and init.lower() in PLAIN_INITS
    if not (init is None or type(init) is bool or plain):
        yield (
            f"init_lora_weights {_shown(init)} changes the base weights: convert the adapter to "
            "a plain LoRA with PEFT's path_initial_model_for_weight_conversion"
        )


def _numbers(config: Mapping[str, Any], max_rank: int | None) -> Iterator[str]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        yield f"r must be a whole number from 1, not {_shown(rank)}"
    elif max_rank is not None and rank > max_rank:
        yield f"its rank {_shown(rank)} is over the limit: train with r of at most {max_rank}"
    if not _positive_number(alpha):
        yield f"lora_alpha must be a positive number, not {_shown(alpha)}"
    if type(config.get("use_rslora", False)) is not bool:
        yield f"use_rslora must be true or false, not {_shown(config['use_rslora'])}"


def _features(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (advice for name, advice in REFUSED_FEATURES.items() if config.get(name))
    # Every variant of LoRA has come with such a switch: one that is not known here is not plain.
    for name, value in config.items():
        if name.startswith("use_") and value and name not in KNOWN_SWITCHES:
            yield f"{name[:40]!r} is not known here: train without it"


def _patterns(config: Mapping[str, Any]) -> Iterator[str]:
    """One rank and one alpha for all layers; a pattern that repeats them is harmless."""
    for name, uniform in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            yield f"{name} must be a table"
        elif any(value != config.get(uniform) for value in pattern.values()):
            yield f"{name} gives layers their own {uniform}: train with one {uniform} for all"


def _positive_number(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value)) and value > 0
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
