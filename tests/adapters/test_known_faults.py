"""What is known to break engines, a row for each, built as a file and refused with a reason.

The first table was served silently wrong by vLLM 0.32, with status 200. The second was refused
by it with an opaque 500. The third is what a file format and a file system can be made to do.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adapters.artifact import ADAPTER_FILES
from adapters.artifact import WEIGHTS_FILE as WEIGHTS
from adapters.base import BaseModelInfo
from adapters.errors import InvalidAdapter
from adapters.tensorfile import MAX_HEADER_BYTES, header_bytes
from adapters.validation import Limits, validate

Q = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"
QA, QB = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


@dataclass(frozen=True)
class Row:
    """One bad upload: what is handed to `craft`, what is done to the folder, what is said."""

    says: str
    crafted: dict[str, Any] = field(default_factory=dict)
    then: Callable[[Path], object] = lambda folder: None


def full(shape: tuple[int, ...], value: float) -> npt.NDArray[np.float32]:
    return np.full(shape, value, np.float32)


def tensors(says: str, **changed: Any) -> Row:
    names = {"qa": QA, "qb": QB}
    return Row(says, {"tensors": {names.get(name, name): v for name, v in changed.items()}})


def config(says: str, **fields: Any) -> Row:
    return Row(says, {"config": fields})


def config_text(says: str, text: bytes) -> Row:
    return Row(says, {"config_text": text})


def weights(says: str, content: bytes) -> Row:
    return Row(says, {"weights": content})


def header(says: str, described: Any, data: bytes = b"") -> Row:
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return weights(says, len(text).to_bytes(8, "little") + text + data)


def tensor(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-10])


def flip_a_header_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[20] ^= 0x80
    (folder / WEIGHTS).write_bytes(content)


def pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def link(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        outside = folder.with_name(f"outside-{name}")
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return replace


def pipe(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def claim_ten_gigabytes(folder: Path) -> None:
    """Sparse on the disk, so that the size is real and the header fits it."""
    text = json.dumps({QA: tensor("F32", [50_000, 50_000], [0, 10**10])}).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 10**10)


def add(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"{}")


SERVED_WRONG = {
    "NaN": tensors("NaN or infinity", qa=full((4, 8), np.nan)),
    "1e30": tensors("times its weights", qb=full((12, 4), 1e30)),
    "int8 tensors": header(
        "save it as BF16, F16, F32", {QA: tensor("I8", [4, 8], [0, 32])}, b"\0" * 32
    ),
    "too-small shapes": tensors("has shape [4, 7], not [4, 8]", qa=full((4, 7), 0.1)),
    "r in the config smaller than the tensors' rank": config("not [2, 8]", r=2),
    "tensors for layers that do not exist": tensors(
        "belongs to no layer", **{Q.replace("0", "9") + ".lora_A.weight": full((4, 8), 0.1)}
    ),
    "rank-0 tensors": tensors("has shape [0, 8]", qa=full((0, 8), 0), qb=full((12, 0), 0)),
    "keys that match no module": header(
        "belongs to no layer", {"x.lora_A.weight": tensor("F32", [1], [0, 4])}, b"\0" * 4
    ),
    "LoRA-GA, which moved the base's weights": config("plain LoRA", init_lora_weights="lora_ga"),
}  # fmt: skip

REFUSED_OPAQUELY = {
    "a corrupt file": Row("is not UTF-8", then=flip_a_header_bit),
    "a truncated file": Row("truncated", then=cut),
    "an empty file": weights("too short", b""),
    "an archive": weights("claims a header", b"PK\x03\x04" + b"\xff" * 99),
    "bad JSON": config_text("is not valid JSON", b"{"),
    "missing lora_alpha": config("lora_alpha must be a positive number", lora_alpha=...),
    "r=0": config("r must be a whole number", r=0),
    'r="8"': config("r must be a whole number", r="8"),
    "rank above the limit": config("train with r of at most 64", r=65),
    "DoRA": config("use_dora=false", use_dora=True),
    "DoRA's tensors": tensors("use_dora=false", **{f"{Q}.lora_magnitude_vector": full((12,), 1)}),
    "wrong modules": tensors(
        "belongs to no layer", **{Q.replace("q_proj", "qqq") + ".lora_A.weight": full((4, 8), 0.1)}
    ),
    "junk keys": tensors("belongs to no layer", junk=full((1,), 1)),
    "missing lora_B": tensors("has only lora_A", qb=None),
    "too-big shapes": tensors("has shape [4, 9], not [4, 8]", qa=full((4, 9), 0.1)),
    "a pickle in its place": weights("adapter_model.safetensors", b"\x80\x04\x95" + b"\0" * 99),
    "pickle .bin": Row("may hold a pickle", then=pickle),
    "lora_bias": config("lora_bias=false", lora_bias=True),
    "modules_to_save": config("modules_to_save=null", modules_to_save=["classifier"]),
    "aLoRA": config("activated LoRA is not served", alora_invocation_tokens=[1]),
    "PiSSA": config("path_initial_model_for_weight_conversion", init_lora_weights="pissa"),
    "PiSSA, fast": config("plain LoRA", init_lora_weights="pissa_niter_16"),
    "OLoRA": config("plain LoRA", init_lora_weights="olora"),
    "CorDA": config("plain LoRA", init_lora_weights="corda"),
    "LoftQ": config("plain LoRA", init_lora_weights="loftq"),
}

FORMAT_AND_FILES = {
    "header bomb": weights(
        "claims a header", MAX_HEADER_BYTES.to_bytes(8, "little") + b"{" * MAX_HEADER_BYTES
    ),
    "a header of 2^63 bytes": weights("claims a header", (2**63).to_bytes(8, "little") + b"{}"),
    "negative offsets": header("positions", {QA: tensor("F32", [4, 8], [-128, 0])}, b"\0" * 128),
    "10 GB claimed, little there": header(
        "truncated", {QA: tensor("F32", [50_000, 50_000], [0, 10**10])}
    ),
    "10 GB claimed, and there": Row("more than the", then=claim_ten_gigabytes),
    "overlapping tensors": header(
        "overlap", {QA: tensor("F32", [2], [0, 8]), QB: tensor("F32", [2], [4, 12])}, b"\0" * 12
    ),
    "a hole between tensors": header("hole", {QA: tensor("F32", [1], [4, 8])}, b"\0" * 8),
    "data that no tensor claims": weights("after its last", header_bytes({}) + b"MZ executable"),
    "a key twice": header("twice", b'{"a":{},"a":{}}'),
    "non-UTF-8 JSON": config_text("is not UTF-8", b'{"r": "\xff"}'),
    "non-UTF-8 header": header("is not UTF-8", b'{"\xff":1}'),
    "NaN in JSON": config_text("holds NaN", b'{"r": NaN}'),
    "Infinity in JSON": config_text("holds Infinity", b'{"lora_alpha": Infinity}'),
    "deep JSON": config_text("nested deeper", b'{"a":' * 10_000),
    "a deep header": header("nested deeper", b"[" * 10_000),
    "a config of 2 MB": config_text("more than the", b'{"r": "' + b"x" * 2**21 + b'"}'),
    **{f"a link as {name}": Row("is a symbolic link", then=link(name)) for name in ADAPTER_FILES},
    **{f"a pipe as {name}": Row("not a regular file", then=pipe(name)) for name in ADAPTER_FILES},
    "a device": Row("not accepted", then=lambda folder: (folder / "x").symlink_to("/dev/zero")),
    "a file beside, that code could read": Row("not accepted", then=add("chat_template.jinja")),
    "the same name in other letters": Row("not accepted", then=add("Adapter_Config.json")),
    "the same name with a look-alike": Row("not accepted", then=add("аdapter_config.json")),
    "a name that is no text": Row("not accepted", then=add(os.fsdecode(b"\xff\n\x1b[31m"))),
}  # fmt: skip


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name)
        for table in (SERVED_WRONG, REFUSED_OPAQUELY, FORMAT_AND_FILES)
        for name, row in table.items()
    ],
)
def test_it_is_refused_and_says_why(
    craft: Callable[..., Path], base: BaseModelInfo, tmp_path: Path, row: Row
) -> None:
    folder = craft(fingerprint=base.fingerprint, **row.crafted)
    row.then(folder)
    with pytest.raises(InvalidAdapter) as caught:
        validate(folder, base, Limits())
    text = str(caught.value)
    assert row.says in text
    assert str(tmp_path) not in text  # what a server's folders are called is nobody's business
    assert text.isprintable()
    assert len(text) < 4000


def test_the_same_without_the_fault_is_accepted(
    craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    validate(craft(fingerprint=base.fingerprint), base, Limits())
