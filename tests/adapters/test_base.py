"""A base model is known by what it computes, told from its folder."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.base import ANY_ELEMENT_BYTES, POCKET, describe_base
from adapters.errors import BaseModelError
from adapters.tensorfile import header_bytes


def model(folder: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """A folder with the parts of a model that tell which one it is."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    shapes = {
        "lm_head.weight": (50, 64),
        "model.embed_tokens.weight": (50, 64),
        "model.layers.0.input_layernorm.weight": (64,),
        "model.layers.0.mlp.up_proj.weight": (512, 64),
    }
    data = b"".join((scale * draw.normal(0, 1, s)).astype("<f4").tobytes() for s in shapes.values())
    header = header_bytes({name: ("F32", shape) for name, shape in shapes.items()})
    (folder / "model.safetensors").write_bytes(header + data)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 50}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def fingerprint(folder: Path) -> str:
    return describe_base(folder).fingerprint


def test_only_linear_layers_can_be_adapted(tmp_path: Path) -> None:
    info = describe_base(model(tmp_path / "m"))
    assert info.name == "m"
    assert info.modules == {"model.layers.0.mlp.up_proj": (512, 64)}


def test_norms_are_estimated_within_a_few_per_cent(tmp_path: Path) -> None:
    """128 KiB, of which half is read: √(512·64)·3 ≈ 543."""
    info = describe_base(model(tmp_path / "m", scale=3))
    assert info.norms["model.layers.0.mlp.up_proj"] == pytest.approx(543, rel=0.03)


def test_a_norm_that_is_no_number_is_none(tmp_path: Path) -> None:
    """Weights with NaN: any change would be within a bound that is NaN."""
    info = describe_base(model(tmp_path / "m", scale=math.nan))
    assert (len(info.modules), info.norms) == (1, {})


def test_the_pocket_model_has_all_its_layers() -> None:
    info = describe_base(POCKET)
    layers = json.loads((POCKET / "config.json").read_text())["num_hidden_layers"]
    assert len(info.modules) == 7 * layers
    assert info.norms.keys() == info.modules.keys()


def test_a_copy_is_the_same_base(tmp_path: Path) -> None:
    first = model(tmp_path / "m")
    assert fingerprint(first) == fingerprint(shutil.copytree(first, tmp_path / "other"))


def test_what_tools_write_at_will_changes_nothing(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    before = fingerprint(folder)
    config = json.loads((folder / "config.json").read_text())
    more = {"transformers_version": "9", "_name_or_path": "x", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(more | config, indent=4))
    assert fingerprint(folder) == before


def test_other_weights_of_the_same_shape_are_another_base(tmp_path: Path) -> None:
    assert fingerprint(model(tmp_path / "a")) != fingerprint(model(tmp_path / "b", seed=1))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_another_config_or_tokenizer_is_another_base(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "m")
    before = fingerprint(folder)
    (folder / name).write_text('{"model_type": "llama", "vocab_size": 50, "new": 1}')
    assert fingerprint(folder) != before


def test_shards_are_the_same_as_one_file(tmp_path: Path) -> None:
    whole = model(tmp_path / "m")
    split = shutil.copytree(whole, tmp_path / "split")
    (split / "model.safetensors").rename(split / "part-1.safetensors")
    index = {"weight_map": {"lm_head.weight": "part-1.safetensors"}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint(split) == fingerprint(whole)


def test_a_fingerprint_stays(tmp_path: Path) -> None:
    """It is written into every adapter that was made for the base."""
    assert fingerprint(model(tmp_path / "m")) == (
        "sha256:6fb72883c3cbcd6f910520d4f7543609982c8efd6eb2d23f61461b179508a753"
    )


QUANTISED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {
            "weight": ("U8", [512 * 64 // 2, 1]),
            "weight.absmax": ("U8", [512]),
            "weight.quant_state.bitsandbytes__nf4": b'{"shape": [512, 64], "blocksize": 64}',
        },
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4},
        {"qweight": ("I32", [64 // 8, 512]), "scales": ("F16", [1, 512]), "g_idx": ("I32", [64])},
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4},
        {"qweight": ("I32", [64, 512 // 8]), "scales": ("F16", [1, 512])},
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors"},
        {"weight_packed": ("I32", [512, 64 // 8]), "weight_shape": np.array([512, 64])},
    ),
    "fp8": ({"quant_method": "fp8"}, {"weight": ("F8_E4M3", [512, 64])}),
}


@pytest.mark.parametrize("method", QUANTISED)
def test_layers_of_packed_weights_have_their_true_shape(tmp_path: Path, method: str) -> None:
    folder = model(tmp_path / "m")
    quantisation, layer = QUANTISED[method]
    config = {"model_type": "llama", "vocab_size": 50, "quantization_config": quantisation}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(packed_file("model.layers.0.mlp.up_proj", layer))
    info = describe_base(folder)
    assert info.modules == {"model.layers.0.mlp.up_proj": (512, 64)}
    assert info.norms == {}


@pytest.mark.parametrize(
    ("quantisation", "layer"),
    [
        ({"quant_method": "of tomorrow", "bits": 4}, {"qweight": ("I32", [8, 512])}),
        ({"quant_method": "gptq"}, {"qweight": ("I32", [8, 512])}),
        ("gptq", {"qweight": ("I32", [8, 512])}),
        ({}, {"weight_packed": ("I32", [512, 8])}),
        ({}, {"weight.quant_state.bitsandbytes__nf4": b"not json"}),
        ({}, {"weight.quant_state.bitsandbytes__nf4": b'{"shape": [512]}'}),
        ({}, {"weight.quant_state.bitsandbytes__nf4": b'{"shape": [0, 512]}'}),
    ],
)
def test_a_layout_that_is_not_known_is_left_out(
    tmp_path: Path, quantisation: Any, layer: dict[str, Any]
) -> None:
    folder = model(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantisation}))
    (folder / "model.safetensors").write_bytes(packed_file("model.layers.0.mlp.up_proj", layer))
    assert describe_base(folder).modules == {}


def packed_file(layer: str, tensors: dict[str, Any]) -> bytes:
    """A safetensors file of one layer: types and shapes filled with zeros, or bytes, or numbers."""
    header: dict[str, Any] = {}
    data = b""
    for suffix, given in tensors.items():
        if isinstance(given, bytes):
            kind, shape, content = "U8", [len(given)], given
        elif isinstance(given, np.ndarray):
            kind, shape, content = "I64", list(given.shape), given.astype("<i8").tobytes()
        else:
            kind, shape = given
            content = bytes(math.prod(shape) * ANY_ELEMENT_BYTES[kind])
        offsets = [len(data), len(data) + len(content)]
        header[f"{layer}.{suffix}"] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_said(tmp_path: Path, missing: str) -> None:
    folder = model(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(BaseModelError, match=missing):
        describe_base(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_file_is_said(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "m")
    (folder / name).write_bytes(b"{broken}")
    with pytest.raises(BaseModelError, match=name):
        describe_base(folder)


def test_a_broken_index_is_said(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    for text in ("{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "{", "[]"):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(BaseModelError, match="index"):
            describe_base(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no model folder"):
        describe_base(tmp_path / "nowhere")
