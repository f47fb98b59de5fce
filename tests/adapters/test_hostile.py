"""Whatever bytes come, only the domain's errors come out, in bounded time and memory.

And whatever is accepted is what safetensors' own reader finds in it, scaled and rounded.
"""

import json
import math
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from adapters.base import BaseModelInfo
from adapters.errors import InvalidAdapter
from adapters.lora_tensors import parse_key
from adapters.normalise import normalise
from adapters.tensorfile import encode_bf16, header_bytes
from adapters.validation import Limits, validate

from header_bombs import KINDS, bomb

Craft = Callable[..., Path]

FILES = CONFIG, WEIGHTS, MANIFEST = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
)
MIB = 2**20

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
# All of PEFT 0.21's, some that other tools add, and a manifest's.
CONFIG_FIELDS = (
    "peft_type task_type peft_version auto_mapping base_model_name_or_path revision inference_mode "
    "r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora "
    "modules_to_save init_lora_weights layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern megatron_config megatron_core trainable_token_indices loftq_config eva_config "
    "corda_config lora_ga_config use_dora velora_config alora_invocation_tokens use_qalora "
    "qalora_group_size monteclora_config layer_replication lora_bias target_parameters use_bdlora "
    "arrow_config kasa_config ensure_weight_tying unsloth_training_args use_next"
)
MANIFEST_FIELDS = (
    "name base method metrics created schema_version seed data producer versions hyperparameters "
    "verdict"
)
FIELDS = st.sampled_from(f"{CONFIG_FIELDS} {MANIFEST_FIELDS}".split())

QUICK = settings(
    max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(folder: Path, base: BaseModelInfo) -> bool:
    """Accepted, and then served as it was read; or refused in words. The files are small."""
    served = folder.with_name(folder.name + "-served")
    refusal = scale = None
    tracemalloc.start()
    try:
        scale = validate(folder, base, Limits()).scale
        normalise(folder, served)
        validate(served, base, Limits())
    except InvalidAdapter as error:
        refusal = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * MIB
    if refusal is not None or scale is None:
        assert refusal is not None
        assert refusal.problems
        assert str(refusal).isprintable()
        assert str(folder) not in str(refusal)
        return False
    assert_read_alike(folder, served, scale)
    return True


def told(accepted: bool) -> None:
    """For `--hypothesis-show-statistics`: how often there is more to check than a refusal."""
    event(f"accepted: {accepted}")


def assert_read_alike(folder: Path, served: Path, scale: float) -> None:
    """What safetensors reads in the upload is, scaled and rounded, what it reads in our form."""
    theirs, ours = (load((place / WEIGHTS).read_bytes()) for place in (folder, served))
    wanted = {}
    for name, values in theirs.items():
        parsed = parse_key(name)
        assert parsed is not None
        factor = scale if parsed[0].side == "B" else 1.0
        wanted[parsed[0].name] = (values.double() * factor).float().bfloat16()
    assert ours.keys() == wanted.keys()
    for name, values in ours.items():
        assert torch.equal(values, wanted[name])


def test_a_good_one_is_accepted_and_read_alike(craft: Craft, base: BaseModelInfo) -> None:
    """The check above is not idle."""
    folder = craft(fingerprint=base.fingerprint, dtype="F16")
    assert outcome(folder, base)


@QUICK
@given(data=st.data())
def test_changed_bytes(craft: Craft, base: BaseModelInfo, data: st.DataObject) -> None:
    folder = craft(fingerprint=base.fingerprint)
    path = folder / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    # Mostly where the structure is; a change among the numbers is a number.
    position = data.draw(st.integers(0, min(len(content) - 1, 600)))
    content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    path.write_bytes(content[: data.draw(st.integers(0, 2**14))])
    told(outcome(folder, base))


@QUICK
@given(position=st.integers(0, 700), value=st.binary(min_size=1, max_size=4))
def test_changed_numbers(craft: Craft, base: BaseModelInfo, position: int, value: bytes) -> None:
    """The last bytes of the weights: any bits are some number, NaN and infinity among them."""
    folder = craft(fingerprint=base.fingerprint, dtype="F16")
    content = bytearray((folder / WEIGHTS).read_bytes())
    start = len(content) - 4 - position
    content[start : start + len(value)] = value
    (folder / WEIGHTS).write_bytes(content)
    told(outcome(folder, base))


@QUICK
@given(name=st.sampled_from([CONFIG, MANIFEST]), changes=st.dictionaries(FIELDS, JSON))
@example(name=CONFIG, changes={"lora_alpha": 10**400})
@example(name=CONFIG, changes={"lora_alpha": 1.7e308})
@example(name=CONFIG, changes={"lora_alpha": 5e-324})
@example(name=MANIFEST, changes={"data": {"\ud800": 1}})
@example(name=MANIFEST, changes={"created": "9999-12-31T23:59:59-14:00"})
@example(name=MANIFEST, changes={"\n\x1b[31m": 1})
def test_changed_fields(
    craft: Craft, base: BaseModelInfo, name: str, changes: dict[str, object]
) -> None:
    folder = craft(fingerprint=base.fingerprint)
    record = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(record))
    told(outcome(folder, base))


def renamed(name: str, how: str) -> str:
    return {
        "adapter": name.replace(".weight", ".default.weight"),
        "other adapter": name.replace(".weight", ".b.weight"),
        "bare": name.removeprefix("base_model.model."),
        "twice": f"base_model.model.{name}",
        "base layer": name.replace(".lora_", ".base_layer.lora_"),
        "upper": name.upper(),
        "side": name.replace("lora_A", "lora_B"),
        "embedding": name.replace("lora_A.weight", "lora_embedding_A"),
        "packed": name.replace("q_proj", "qkv_proj"),
        "bias": name.replace(".weight", ".bias"),
    }[how]


HOW = ["adapter", "other adapter", "bare", "twice", "base layer", "upper", "side", "embedding",
       "packed", "bias"]  # fmt: skip
SIZES = st.one_of(st.integers(-1, 20), st.sampled_from([2**31, 2**53, 2**63, 2**64, 1.0, True]))
EDITS = st.one_of(
    st.tuples(st.just("rename"), st.integers(0, 3), st.sampled_from(HOW)),
    st.tuples(st.just("rename all"), st.just(0), st.sampled_from(HOW)),
    st.tuples(st.just("dtype"), st.integers(0, 3), st.sampled_from(["F16", "F64", "I8", "", 1])),
    st.tuples(st.just("shape"), st.integers(0, 3), st.lists(SIZES, max_size=3)),
    st.tuples(st.just("data_offsets"), st.integers(0, 3), st.lists(SIZES, max_size=3)),
    st.tuples(st.just("turn"), st.integers(0, 3), st.none()),
    st.tuples(st.just("swap"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("drop"), st.integers(0, 3), st.none()),
    st.tuples(st.just("metadata"), st.just(0), JSON),
    st.tuples(st.just("extra"), st.integers(0, 3), JSON),
)


def edited(header: dict[str, Any], edit: tuple[str, int, Any]) -> dict[str, Any]:
    """A safetensors header with one thing about it changed, its own offsets untouched."""
    kind, number, value = edit
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return header
    name = names[number % len(names)]
    if kind == "metadata":
        return {"__metadata__": value, **header}
    if kind == "rename":
        return {renamed(n, value) if n == name else n: entry for n, entry in header.items()}
    if kind == "rename all":
        return {renamed(n, value): entry for n, entry in header.items()}
    if kind == "drop":
        return {n: entry for n, entry in header.items() if n != name}
    if kind == "turn":
        return dict(reversed(header.items()))
    entries = {n: dict(entry) if isinstance(entry, dict) else entry for n, entry in header.items()}
    if kind == "swap":
        other = names[value % len(names)]
        entries[name], entries[other] = entries[other], entries[name]
    else:
        entries[name][kind] = value
    return entries


@QUICK
@given(edits=st.lists(EDITS, min_size=1, max_size=3))
@example(edits=[("turn", 0, None)])
@example(edits=[("rename all", 0, "adapter")])
@example(edits=[("rename all", 0, "bare"), ("metadata", 0, {"format": "pt"})])
@example(edits=[("rename", 0, "bare"), ("rename", 1, "adapter")])
def test_edited_headers(
    craft: Craft, base: BaseModelInfo, edits: list[tuple[str, int, Any]]
) -> None:
    folder = craft(fingerprint=base.fingerprint)
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for edit in edits:
        header = edited(header, edit)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    told(outcome(folder, base))


@QUICK
@given(
    source=st.sampled_from(FILES),
    target=st.sampled_from(FILES),
    start=st.integers(0, 3000),
    end=st.integers(0, 3000),
    tail=st.binary(max_size=12),
)
def test_files_swapped_cut_and_extended(
    craft: Craft, base: BaseModelInfo, source: str, target: str, start: int, end: int, tail: bytes
) -> None:
    folder = craft(fingerprint=base.fingerprint)
    content = (folder / source).read_bytes()
    (folder / target).write_bytes(content[start : len(content) - end] + tail)
    told(outcome(folder, base))


@QUICK
@given(
    shape=st.lists(st.integers(-1, 2**70), max_size=3),
    offsets=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=3),
    dtype=st.sampled_from(["F32", "BF16", "I8", "", "f32"]),
)
def test_made_up_headers(
    craft: Craft, base: BaseModelInfo, shape: list[int], offsets: list[int], dtype: str
) -> None:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    text = json.dumps({"base_model.model.x.lora_A.weight": tensor}).encode()
    told(outcome(craft(weights=len(text).to_bytes(8, "little") + text + b"\0" * 64), base))


def measured(work: Callable[[], object]) -> tuple[int, float]:
    """Peak bytes and seconds of some work; tracing makes it slower, not larger."""
    began = time.perf_counter()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1], time.perf_counter() - began
    finally:
        tracemalloc.stop()


def many_layers(count: int, side: int) -> BaseModelInfo:
    modules = {f"model.layers.{n}.self_attn.q_proj": (side, side) for n in range(count)}
    return BaseModelInfo(name="m", fingerprint="sha256:" + "0" * 64, modules=modules)


def test_a_file_near_the_limit_costs_a_few_of_its_tensors(craft: Craft, tmp_path: Path) -> None:
    """30 MiB in 120 tensors of 256 KiB: neither its size nor their number is held."""
    layers, side, rank = 60, 1024, 64
    base = many_layers(layers, side)
    draw = np.random.default_rng(0)
    numbers = encode_bf16(draw.normal(0, 0.05, (side, rank)))
    shapes = {}
    for module in base.modules:
        shapes[f"base_model.model.{module}.lora_A.weight"] = ("BF16", (rank, side))
        shapes[f"base_model.model.{module}.lora_B.weight"] = ("BF16", (side, rank))
    content = header_bytes(shapes) + numbers * len(shapes)
    largest = len(numbers)
    limits = Limits(max_bytes=len(content))
    folder = craft(config={"r": rank, "lora_alpha": rank}, weights=content)
    validate(folder, base, limits)  # whatever a first run brings in is not this file's
    peak, seconds = measured(lambda: validate(folder, base, limits))
    assert peak < 16 * largest < len(content) / 3
    assert seconds < 20
    peak, seconds = measured(lambda: normalise(folder, tmp_path / "served"))
    assert peak < 48 * largest < len(content)
    assert seconds < 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_has_no_more_room_than_the_base_needs(craft: Craft, kind: str) -> None:
    """What the format would allow (4 MiB) costs 100 MB to parse; 32 layers need far less."""
    base = many_layers(7 * 32, 4096)
    folder = craft(weights=bomb(kind, 4 * MIB))
    with pytest.raises(InvalidAdapter, match="claims a header"):
        validate(folder, base, Limits())
    folder = craft(weights=bomb(kind, 200 * 1024))

    def refused() -> None:
        with pytest.raises(InvalidAdapter):
            validate(folder, base, Limits())

    peak, seconds = measured(refused)
    assert peak < 32 * MIB
    assert seconds < 5


@pytest.mark.parametrize("max_bytes", [Limits().max_bytes, 2**40])
def test_a_claim_of_ten_gigabytes(craft: Craft, base: BaseModelInfo, max_bytes: int) -> None:
    """Ten sparse gigabytes on the disk, and a header that fits them: refused before reading."""
    side = 50_000
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    shape = {"dtype": "F32", "shape": [side, side], "data_offsets": [0, 4 * side**2]}
    text = json.dumps({name: shape}).encode()
    folder = craft(weights=len(text).to_bytes(8, "little") + text)
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(8 + len(text) + 4 * math.prod(shape["shape"]))  # type: ignore[arg-type]

    def refused() -> None:
        with pytest.raises(InvalidAdapter):
            validate(folder, base, Limits(max_bytes=max_bytes))

    assert measured(refused)[0] < 4 * MIB
