"""An adapter's model card: the README.md beside its weights, told from the manifest alone.

Owns the wording and the escaping. Refuses to read or write files, and to say anything that
the manifest does not. Names and values of a manifest are text from elsewhere, so none of them
reaches the page bare: a value is a code span or, where it could end one, character
references, which Markdown never takes for structure; in the Hub's header only a base that is
named like a model of the Hub appears.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from adapters.artifact import Manifest
from adapters.errors import InvalidName
from adapters.names import check_adapter_id

PAPERS = {
    "bapo": "BAPO (Base-Anchored Preference Optimization, Lee et al., Findings of EMNLP 2024,"
    " arXiv 2407.00693)",
    "dpo": "DPO (Direct Preference Optimization, Rafailov et al. 2023, arXiv 2305.18290)",
    "sft": "SFT (supervised fine-tuning) on the preferred answer alone",
}
TAGS = {"bapo": ["lora", "bapo", "dpo"], "dpo": ["lora", "dpo"], "sft": ["lora", "sft"]}
PREFERENCE_TERMS = {
    "sigmoid": "DPO's preference term",
    "ipo": "IPO's preference term",
    "hinge": "SLiC's hinge on the preference",
    "dpop": "DPOP's preference term",
    "sft": "SFT on the preferred answer",
}
LONGEST_VALUE = 200
ENDS_A_CODE_SPAN = set("`|\\")  # the last two within a table

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def model_card(manifest: Manifest) -> str:
    """The README.md of an adapter's folder, with the Hub's metadata at its head."""
    # As manifest.json has it: enumerations are their values, dates are text.
    said = manifest.model_dump(mode="json")
    parts = [
        _header(said),
        f"# {_value(said['name'])}",
        _what_it_is(said),
        _table("Hyperparameters", _effective(said)),
        _table("Data", said["data"]),
        _table("Metrics", said["metrics"]),
        _table("Made with", _origin(said)),
        _use(said),
        _limits(said),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(said: Mapping[str, Any]) -> str:
    base = said["base"]["name"]
    metadata = {
        # The Hub refuses a card whose base_model could not be one of its models.
        **({"base_model": base} if _HUB_ID.fullmatch(base) else {}),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": TAGS.get(said["method"], ["lora"]),
    }
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---"


def _what_it_is(said: Mapping[str, Any]) -> str:
    method = said["method"]
    opening = (
        f"A LoRA adapter for {_value(said['base']['name'])}, trained on pairs of a preferred and a"
        f" rejected answer with {PAPERS.get(method) or _value(method)}."
    )
    if method == "bapo":
        return f"{opening} {_preference(said)} teaches the preference. {_anchor(said)}"
    if method == "dpo":
        return (
            f"{opening} {_preference(said)} is the whole loss: there is no anchor that holds it to"
            " the base model's own answers."
        )
    return opening


def _preference(said: Mapping[str, Any]) -> str:
    settings = said["hyperparameters"]
    term = PREFERENCE_TERMS.get(str(settings.get("loss_type")), "The preference term")
    if "beta" in settings and settings.get("loss_type") != "sft":
        term = f"{term} (β = {_value(settings['beta'])})"
    weight = settings.get("sft_weight")
    return f"{term} with SFT on the preferred answer (α = {_value(weight)})" if weight else term


def _anchor(said: Mapping[str, Any]) -> str:
    settings = said["hyperparameters"]
    symbols = {"anchor_type": "type", "anchor_weight": "λ ="}
    known = [f"{word} {_value(settings[k])}" for k, word in symbols.items() if k in settings]
    aside = f" ({', '.join(known)})" if known else ""
    whose = "preferred" if settings.get("anchor_on") == "chosen" else "base model's own"
    return (
        f"The anchor{aside}, a term of its own, holds the likelihood of the {whose}"
        " answers to the same prompts where it was."
    )


def _effective(said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings; without an anchor, without those of the anchor, which did nothing."""
    ignored = "anchor_" if said["method"] in ("dpo", "sft") else ()
    return {k: v for k, v in said["hyperparameters"].items() if not k.startswith(ignored)}


def _origin(said: Mapping[str, Any]) -> dict[str, Any]:
    rows = {"base": said["base"]["name"], "base fingerprint": said["base"]["fingerprint"]}
    rows |= {} if said["seed"] is None else {"seed": said["seed"]}
    rows |= {f"{package} version": version for package, version in said["versions"].items()}
    return rows | {"created": said["created"]}


def _table(title: str, rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    lines = [f"| {_value(name)} | {_value(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| name | value |", "|---|---|", *lines])


def _use(said: Mapping[str, Any]) -> str:
    base, name = json.dumps(said["base"]["name"]), _adapter_id(said["name"])
    return f"""\
## How to use it

With PEFT, in this folder; the base is named as in training, after a model of the Hub or a folder:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), ".")
```

With bapo-server:

```sh
bapo adapters publish {name} . --activate
curl "$BAPO_SERVER/v1/chat/completions" -H "Authorization: Bearer $BAPO_KEY" \\
    -H 'X-Adapter-Id: {name}' -H 'Content-Type: application/json' \\
    -d '{{"messages": [{{"role": "user", "content": "Hello!"}}]}}'
```"""


def _adapter_id(name: str) -> str:
    """The adapter's name where a server would take it; it goes into a shell command."""
    try:
        return check_adapter_id(name)
    except InvalidName:
        return "my-adapter"


def _limits(said: Mapping[str, Any]) -> str:
    lines = [
        "It fits the base model of the fingerprint above and no other; bapo-server refuses it"
        " elsewhere.",
        "It learned one preference from the pairs it was given. On prompts unlike theirs it may"
        " answer as the base does, or worse.",
        "Nobody has checked its answers for truth or harm; the base model's licence and limits"
        " hold for it, too.",
    ]
    if said["method"] == "bapo":
        lines.append(
            "The anchor makes forgetting less, on prompts like the trained, not impossible."
        )
    if any(name.startswith("train/") for name in said["metrics"]):
        lines.append(
            "Metrics that begin with `train/` are of the trained pairs, not held-out ones."
        )
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines)])


def _value(value: object) -> str:
    """A name or value, in one line of Markdown that stands for nothing but itself."""
    text = _plain(value)
    if text and text.isascii() and not ENDS_A_CODE_SPAN & set(text):
        return f"`{text}`"
    return "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text) or "(empty)"


def _plain(value: object) -> str:
    """A value as text of one line; what cannot be printed is a space."""
    if isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
