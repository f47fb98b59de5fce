"""What vLLM refuses with an opaque error or serves silently wrong is refused here, and says why."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adapters.base import BaseModelInfo
from adapters.errors import IncompatibleBase, InvalidAdapter
from adapters.tensorfile import header_bytes
from adapters.validation import Limits, validate

Craft = Callable[..., Path]
Numbers = npt.NDArray[np.float32]

Q = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"
QA, QB = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


def refused(folder: Path, base: BaseModelInfo, **limits: Any) -> list[str]:
    with pytest.raises(InvalidAdapter) as caught:
        validate(folder, base, Limits(**limits))
    assert str(caught.value).count("\n") == 0
    return caught.value.problems


def full(shape: tuple[int, ...], value: float) -> Numbers:
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_good_adapter(craft: Craft, base: BaseModelInfo, dtype: str) -> None:
    report = validate(craft(dtype=dtype), base, Limits())
    assert (report.rank, report.scale, report.parameters) == (4, 2.0, 4 * (12 + 8 + 8 + 16))
    assert len(report.modules) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"lora_alpha": 0.5},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}},
        {"rank_pattern": {}, "modules_to_save": None, "layer_replication": None},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"task_type": "CAUSAL_LM", "bias": "none", "lora_dropout": 0.1, "new_in_peft": 1},
    ],
)
def test_good_configs(craft: Craft, base: BaseModelInfo, config: dict[str, Any]) -> None:
    validate(craft(config=config), base, Limits())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"peft_type": ...}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"r": 0}, "r must"),
        ({"r": -4}, "r must"),
        ({"r": "4"}, "r must"),
        ({"r": True}, "r must"),
        ({"r": 4.0}, "r must"),
        ({"r": ...}, "r must"),
        ({"r": 65}, "over the limit"),
        ({"r": 10**300}, "over the limit"),
        ({"lora_alpha": ...}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": -8}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_modules"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 16}}, "alpha_pattern"),
        ({"rank_pattern": [4]}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "PiSSA_niter_16"}, "plain LoRA"),
        ({"init_lora_weights": "olora"}, "plain LoRA"),
        ({"init_lora_weights": ["pissa"]}, "plain LoRA"),
        ({"init_lora_weights": {}}, "plain LoRA"),
    ],
    ids=str,
)
def test_bad_configs(craft: Craft, base: BaseModelInfo, config: dict[str, Any], says: str) -> None:
    assert says in " ".join(refused(craft(config=config), base))


def test_everything_to_change_is_said_at_once(craft: Craft, base: BaseModelInfo) -> None:
    config = {"r": 0, "lora_alpha": None, "use_dora": True, "bias": "all"}
    assert len(refused(craft(config=config), base)) == 4


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"r": NaN}', b"[" * 99999])
def test_a_config_that_is_no_json(craft: Craft, base: BaseModelInfo, text: bytes) -> None:
    assert "adapter_config.json" in refused(craft(config_text=text), base)[0]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({QB: None}, "has only lora_A"),
        ({QA: None}, "has only lora_B"),
        ({QA: full((3, 8), 0.1)}, "has shape [3, 8], not [4, 8]"),
        ({QA: full((4, 7), 0.1)}, "has shape"),
        ({QA: full((4, 9), 0.1)}, "has shape"),
        ({QB: full((4, 12), 0.1)}, "has shape"),
        ({QA: full((32,), 0.1)}, "has shape"),
        ({QA: full((8, 8), 0.1), QB: full((12, 8), 0.1)}, "has shape"),
        ({QA: full((0, 8), 0.1), QB: full((12, 0), 0.1)}, "has shape"),
        ({"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": full((4, 8), 1)}, "no"),
        ({"base_model.model.lm_head.lora_A.weight": full((4, 8), 1)}, "belongs to no layer"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": full((4, 8), 1)}, "no layer"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": full((4, 8), 1)}, "no layer"),
        ({f"{Q}.lora_A.default.weight": full((4, 8), 1)}, "no layer"),
        ({f"{Q}.lora_magnitude_vector": full((12,), 1)}, "no layer"),
        ({f"{Q}.lora_B.bias": full((12,), 1)}, "no layer"),
        ({"../../etc/passwd": full((1,), 1)}, "no layer"),
        ({QA: full((4, 8), np.nan)}, "NaN or infinity"),
        ({QB: full((12, 4), np.inf)}, "NaN or infinity"),
        ({QA: full((4, 8), 1e30)}, "times its weights"),
        ({QA: full((4, 8), 3e38), QB: full((12, 4), 3e38)}, "times its weights"),
        ({QA: full((4, 8), 1e30), QB: full((12, 4), 1e-30)}, "lora_A of"),
        ({QA: full((4, 8), 1e-30), QB: full((12, 4), 1e30)}, "lora_B of"),
        ({QB: full((12, 4), 20)}, "times its weights"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_bad_tensors(
    craft: Craft, base: BaseModelInfo, tensors: dict[str, Numbers | None], says: str
) -> None:
    assert says in " ".join(refused(craft(tensors=tensors), base))


def test_a_rank_in_the_config_below_that_of_the_tensors(craft: Craft, base: BaseModelInfo) -> None:
    """vLLM would serve it at the wrong scale."""
    assert len(refused(craft(config={"r": 2}), base)) == 4


def test_a_huge_alpha_is_a_huge_change(craft: Craft, base: BaseModelInfo) -> None:
    assert "times its weights" in refused(craft(config={"lora_alpha": 1e300}), base)[0]


def test_without_known_norms_there_is_still_a_bound(craft: Craft, base: BaseModelInfo) -> None:
    quantised = base.model_copy(update={"norms": {}})
    validate(craft(), quantised, Limits())
    problems = refused(craft(tensors={QB: full((12, 4), 200)}), quantised)
    assert "would change by up to" in problems[0]


def test_the_bound_is_a_setting(craft: Craft, base: BaseModelInfo) -> None:
    refused(craft(), base, max_delta_ratio=0.01)
    validate(craft(tensors={QB: full((12, 4), 20)}), base, Limits(max_delta_ratio=100))


def test_an_adapter_that_changes_nothing(craft: Craft, base: BaseModelInfo) -> None:
    zero = {QB: full((12, 4), 0), f"{DOWN}.lora_B.weight": full((8, 4), 0)}
    assert "answer like the base" in refused(craft(tensors=zero), base)[0]


def test_no_tensors_at_all(craft: Craft, base: BaseModelInfo) -> None:
    assert "no tensor" in refused(craft(weights=header_bytes({})), base)[0]


def test_int8_tensors(craft: Craft, base: BaseModelInfo) -> None:
    header = b'{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}'
    weights = len(header).to_bytes(8, "little") + header + b"\0" * 4
    assert "save it as BF16, F16, F32" in refused(craft(weights=weights), base)[0]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95" + b"\0" * 99])
def test_weights_that_are_something_else(craft: Craft, base: BaseModelInfo, content: bytes) -> None:
    assert "adapter_model.safetensors" in refused(craft(weights=content), base)[0]


def test_a_truncated_file(craft: Craft, base: BaseModelInfo) -> None:
    whole = (craft() / "adapter_model.safetensors").read_bytes()
    assert "truncated" in refused(craft(weights=whole[:-10]), base)[0]


def test_too_many_bytes(craft: Craft, base: BaseModelInfo) -> None:
    assert "more than the 100 allowed" in refused(craft(), base, max_bytes=100)[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapter_model.bin", "pickle"),
        ("training_args.bin", "pickle"),
        ("tokenizer.json", "not accepted"),
        ("chat_template.jinja", "not accepted"),
        ("Adapter_Config.json", "not accepted"),
        (".hidden", "not accepted"),
    ],
)
def test_files_that_do_not_belong(craft: Craft, base: BaseModelInfo, name: str, says: str) -> None:
    folder = craft()
    (folder / name).write_bytes(b"{}")
    assert says in refused(folder, base)[0]


def test_the_model_card_that_peft_writes_is_left_alone(craft: Craft, base: BaseModelInfo) -> None:
    folder = craft()
    (folder / "README.md").write_text("# An adapter")
    validate(folder, base, Limits())


FILES = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_link_is_not_followed(craft: Craft, base: BaseModelInfo, name: str) -> None:
    folder = craft(fingerprint=base.fingerprint)
    outside = folder.with_name("outside")
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert f"{name} is a symbolic link" in refused(folder, base)[0]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", FILES)
def test_a_silent_pipe_holds_nobody(craft: Craft, base: BaseModelInfo, name: str) -> None:
    folder = craft(fingerprint=base.fingerprint)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name} is not a regular file" in refused(folder, base)[0]


@pytest.mark.parametrize("name", FILES[:2])
def test_a_missing_file(craft: Craft, base: BaseModelInfo, name: str) -> None:
    folder = craft()
    (folder / name).unlink()
    assert f"{name} is missing" in refused(folder, base)[0]


def test_a_folder_in_place_of_a_file(craft: Craft, base: BaseModelInfo) -> None:
    folder = craft()
    (folder / FILES[1]).unlink()
    (folder / FILES[1]).mkdir()
    refused(folder, base)


def test_no_folder(tmp_path: Path, base: BaseModelInfo) -> None:
    assert "cannot be read" in refused(tmp_path / "nowhere", base)[0]


def test_an_adapter_for_another_base(craft: Craft, base: BaseModelInfo) -> None:
    with pytest.raises(IncompatibleBase, match="made for the base model"):
        validate(craft(fingerprint="sha256:" + "b" * 64), base, Limits())


def test_the_same_base_by_another_name_warns(craft: Craft, base: BaseModelInfo) -> None:
    renamed = base.model_copy(update={"name": "other"})
    (warning,) = validate(craft(fingerprint=base.fingerprint), renamed, Limits()).warnings
    assert "tiny" in warning


def test_without_a_manifest_it_warns(craft: Craft, base: BaseModelInfo) -> None:
    assert len(validate(craft(), base, Limits()).warnings) == 1
    assert validate(craft(fingerprint=base.fingerprint), base, Limits()).warnings == ()
