"""Whatever bytes come, only the domain's errors come out, in bounded time and memory."""

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.base import BaseModelInfo
from adapters.errors import InvalidAdapter
from adapters.normalise import normalise
from adapters.tensorfile import MAX_HEADER_BYTES
from adapters.validation import Limits, validate

FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
CONFIG_FIELDS = (
    "peft_type r lora_alpha use_rslora bias init_lora_weights rank_pattern alpha_pattern "
    "modules_to_save use_dora task_type target_modules"
)
MANIFEST_FIELDS = "name base method metrics created schema_version seed data"
FIELDS = st.sampled_from(f"{CONFIG_FIELDS} {MANIFEST_FIELDS}".split())


def outcome(folder: Path, base: BaseModelInfo) -> None:
    """Accepted, and then it can be brought to normal form; or refused in words."""
    try:
        validate(folder, base, Limits())
        normalise(folder, folder.with_name(folder.name + "-served"))
    except InvalidAdapter as error:
        assert error.problems  # noqa: PT017 - either outcome is fine, a third is not
        str(error).encode()


QUICK = settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(data=st.data())
def test_changed_bytes(
    craft: Callable[..., Path], base: BaseModelInfo, data: st.DataObject
) -> None:
    folder = craft(fingerprint=base.fingerprint)
    path = folder / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    # Mostly where the structure is; a change among the numbers is a number.
    position = data.draw(st.integers(0, min(len(content) - 1, 600)))
    content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    path.write_bytes(content[: data.draw(st.integers(0, 2**14))])
    outcome(folder, base)


@QUICK
@given(name=st.sampled_from([FILES[0], FILES[2]]), changes=st.dictionaries(FIELDS, JSON))
@example(name=FILES[0], changes={"lora_alpha": 10**400})
@example(name=FILES[0], changes={"lora_alpha": 5e-324})
@example(name=FILES[2], changes={"data": {"\ud800": 1}})
def test_changed_fields(
    craft: Callable[..., Path], base: BaseModelInfo, name: str, changes: dict[str, object]
) -> None:
    folder = craft(fingerprint=base.fingerprint)
    record = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(record))
    outcome(folder, base)


@QUICK
@given(
    shape=st.lists(st.integers(-1, 2**70), max_size=3),
    offsets=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=3),
    dtype=st.sampled_from(["F32", "BF16", "I8", "", "f32"]),
)
def test_made_up_headers(
    craft: Callable[..., Path],
    base: BaseModelInfo,
    shape: list[int],
    offsets: list[int],
    dtype: str,
) -> None:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    text = json.dumps({"base_model.model.x.lora_A.weight": tensor}).encode()
    outcome(craft(weights=len(text).to_bytes(8, "little") + text + b"\0" * 64), base)


def bomb(kind: str) -> bytes:
    """The largest header allowed, filled with one sort of thing."""
    unit = {
        "tables": b'"%07d":{},',
        "lists": b'"%07d":[[]],',
        "escapes": b'"%07d\\u0041\\u0041":1,',
        "tensors": b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},',
    }[kind]
    count = (MAX_HEADER_BYTES - 64) // len(unit % 0)
    text = b"{" + b"".join(unit % n for n in range(count)) + b'"z":0}'
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("kind", ["tables", "lists", "escapes", "tensors"])
def test_header_bombs(craft: Callable[..., Path], base: BaseModelInfo, kind: str) -> None:
    folder = craft(weights=bomb(kind))
    began = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(InvalidAdapter):
        validate(folder, base, Limits())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
    assert time.perf_counter() - began < 15  # of which tracing is most


def test_a_claim_of_ten_gigabytes(craft: Callable[..., Path], base: BaseModelInfo) -> None:
    """Ten sparse gigabytes on the disk, and a header that fits them: refused before reading."""
    side = 50_000
    text = json.dumps(
        {
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {
                "dtype": "F32",
                "shape": [side, side],
                "data_offsets": [0, 4 * side**2],
            }
        }
    ).encode()
    folder = craft(weights=len(text).to_bytes(8, "little") + text)
    with (folder / FILES[1]).open("r+b") as file:
        file.truncate(8 + len(text) + 4 * side**2)
    for limits in (Limits(), Limits(max_bytes=2**40)):
        tracemalloc.start()
        with pytest.raises(InvalidAdapter):
            validate(folder, base, limits)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        tracemalloc.stop()
