"""Where an adapter made elsewhere comes from, as far as its files tell.

Owns the derived manifest and what an upload says of its base. Refuses to believe any of it:
a name is a stranger's word, so the base of a derived manifest is marked as assumed. Reads
adapter_config.json and, where it is there, the model card's tags.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adapters.artifact import MANIFEST_FILE, BaseReference, Manifest
from adapters.base import BaseModelInfo
from adapters.files import read_regular
from adapters.limits import ValidationReport
from adapters.lora_config import read_config, settings_of
from adapters.strictjson import Malformed

CARD_FILE = "README.md"
MAX_CARD_BYTES = 2**18
MAX_TEXT = 128

# As their model cards are tagged; the first that applies, the more special before the general.
PRODUCERS = ("unsloth", "llama-factory", "axolotl", "ms-swift", "trl")
METHODS = ("dpo", "orpo", "kto", "cpo", "simpo", "grpo", "ppo", "reward-trainer", "sft")

_TAG = re.compile(r"^ *- ['\"]?([A-Za-z0-9._-]{1,64})['\"]? *\r?$", re.MULTILINE)
# What a repack of the same weights adds to their name.
_REPACK = re.compile(r"(-unsloth)?-(bnb-)?(4|8)bit$|-(gptq|awq|fp8)(-int[48])?$")


def derive_manifest(
    folder: Path, base: BaseModelInfo, report: ValidationReport, name: str
) -> Manifest:
    """A manifest for an adapter that came without one; `report` says that it fits `base`.

    Raises InvalidAdapter where the folder's config can no longer be read.
    """
    config = read_config(folder)
    settings = settings_of(config)
    tags = _card_tags(folder)
    peft = _text(config.get("peft_version"))
    return Manifest(
        name=name[:512],
        base=BaseReference(name=base.name[:512], fingerprint=base.fingerprint, assumed=True),
        method=next((method for method in METHODS if method in tags), "lora"),
        producer=_producer(config, tags),
        hyperparameters={
            "lora_rank": report.rank,
            "lora_alpha": settings.alpha,
            "use_rslora": settings.use_rslora,
            "init_lora_weights": _text(config.get("init_lora_weights", True)),
            "base_model_name_or_path": said_base(config),
        },
        versions={"peft": peft} if peft else {},
    )


def doubts_about_base(config: Mapping[str, Any], base: BaseModelInfo) -> str:
    """Why an adapter without a manifest may not be for this base, in one sentence."""
    said = said_base(config)
    missing = f"there is no {MANIFEST_FILE}"
    if said is None:
        return f"{missing}: whether it was made for this base is not known"
    if _plain_name(said) == _plain_name(base.name):
        return f"{missing}: only the name {said!r} says that it was made for this base"
    return (
        f"{missing}, and its config names another base model: {said!r}, while this is "
        f"{base.name!r}; make sure that they are the same"
    )


def said_base(config: Mapping[str, Any]) -> str | None:
    """The base model that adapter_config.json names, if any."""
    said = config.get("base_model_name_or_path")
    return _text(said) if isinstance(said, str) and said else None


def _plain_name(name: str) -> str:
    """The model's own name: `unsloth/Llama-3.1-8B-bnb-4bit` → `llama-3.1-8b`."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    return _REPACK.sub("", last)


def _producer(config: Mapping[str, Any], tags: Collection[str]) -> str | None:
    mapping = config.get("auto_mapping")
    patched = isinstance(mapping, dict) and mapping.get("unsloth_fixed")
    if patched or any(field.startswith("unsloth_") for field in config):
        return "unsloth"
    tagged = next((producer for producer in PRODUCERS if producer in tags), None)
    return tagged or ("peft" if "peft_version" in config or "peft" in tags else None)


def _card_tags(folder: Path) -> frozenset[str]:
    """Entries of lists in the front matter of a model card; a strange card has none."""
    try:
        text = read_regular(folder / CARD_FILE, max_bytes=MAX_CARD_BYTES)
    except (Malformed, OSError):
        return frozenset()
    parts = text.decode("utf-8", "replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return frozenset()
    return frozenset(tag.lower() for tag in _TAG.findall(parts[1]))


def _text(value: Any) -> Any:
    """What can be kept of a field as it is: a short string, or a plain true or false."""
    if isinstance(value, str):
        return value[:MAX_TEXT]
    return value if isinstance(value, bool) else None
