"""What LoRA tensors are called, and whether they are those of the base's own layers.

Owns the names: PEFT's own, `base_model.model.<module>.lora_A.weight`, and the two other ways in
which tools write the same (an adapter's name before `.weight`, no prefix). Refuses values. Each
A and each B that comes out of here was there once, under whichever name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from adapters.base import BaseModelInfo
from adapters.tensorfile import TensorEntry

Side = Literal["A", "B"]
Pair = Mapping[Side, TensorEntry]

KEY_PREFIX = "base_model.model."
SHOWN_NAME = 120

# What a name that is no plain LoRA's betrays, and what to do about it.
HINTS = {
    "lora_embedding_": "embeddings are not served: leave them out of target_modules",
    "lora_magnitude_vector": "DoRA is not served: train with use_dora=false",
    ".bias": "biases are not served: train with bias='none' and lora_bias=false",
    "modules_to_save": "whole modules are not served: train with modules_to_save=null",
    ".base_layer.": "only the adapter's own tensors belong here, not the base's",
    "embed_tokens": "embeddings are not served: save with save_embedding_layers=False",
    "lm_head": "the output head is not served: leave lm_head out of target_modules",
    "_fsdp_wrapped_module": "save the unwrapped model",
    "_orig_mod": "save the model that was not compiled",
}


class LoraKey(NamedTuple):
    """One half of one layer's change; sorts as the served file is written."""

    module: str
    side: Side

    @property
    def name(self) -> str:
        """The tensor's name in PEFT's own manner."""
        return f"{KEY_PREFIX}{self.module}.lora_{self.side}.weight"


def parse_key(name: str) -> tuple[LoraKey, str | None] | None:
    """The half that a tensor is by its name, with the adapter named inside; None: no LoRA's."""
    parts = name.removeprefix(KEY_PREFIX).split(".")
    adapter = None
    if parts[-1] == "weight" and len(parts) > 3 and parts[-2] not in ("lora_A", "lora_B"):
        adapter = parts.pop(-2)
    if len(parts) < 3 or parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B"):
        return None
    return LoraKey(".".join(parts[:-2]), "A" if parts[-2] == "lora_A" else "B"), adapter


def by_key(entries: Iterable[TensorEntry]) -> tuple[dict[LoraKey, TensorEntry], list[str]]:
    """Tensors by their key; and what is wrong with the names of those left out."""
    found: dict[LoraKey, TensorEntry] = {}
    problems: list[str] = []
    adapters: set[str | None] = set()
    for entry in entries:
        parsed = parse_key(entry.name)
        if parsed is None:
            problems.append(f"{shown(entry)} belongs to no layer of a plain LoRA{_hint(entry)}")
            continue
        key, adapter = parsed
        adapters.add(adapter)
        if key in found:
            problems.append(f"{shown(entry)} is the same as {shown(found[key])} by another name")
        found[key] = entry
    if len(adapters) > 1:
        names = ", ".join(sorted(repr(name)[:40] if name else "none" for name in adapters)[:4])
        problems.append(f"its tensors name {len(adapters)} adapters ({names}): save one alone")
    return found, problems


def pairs_for(
    entries: Iterable[TensorEntry], base: BaseModelInfo, rank: int
) -> tuple[dict[str, Pair], list[str]]:
    """Module → its A and B; and why they are not exactly LoRA tensors of the base's layers."""
    keyed, problems = by_key(entries)
    found: dict[str, dict[Side, TensorEntry]] = defaultdict(dict)
    for (module, side), entry in keyed.items():
        shape = base.modules.get(module)
        if shape is None:
            problems.append(f"{shown(entry)} belongs to no layer of {base.name}{_hint(entry)}")
            continue
        wanted = (rank, shape[1]) if side == "A" else (shape[0], rank)
        if entry.shape != wanted:
            problems.append(f"{shown(entry)} has shape {list(entry.shape)}, not {list(wanted)}")
        found[module][side] = entry
    problems += [f"{m} has only lora_{next(iter(s))}" for m, s in found.items() if len(s) == 1]
    return dict(found), problems


def shown(entry: TensorEntry) -> str:
    return f"the tensor {entry.name[:SHOWN_NAME]!r}"


def _hint(entry: TensorEntry) -> str:
    return next((f" ({hint})" for part, hint in HINTS.items() if part in entry.name), "")
