"""What vLLM refuses with an opaque error or serves silently wrong is refused here, and says why."""

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adapters.artifact import write_manifest
from adapters.base import BaseModelInfo
from adapters.errors import IncompatibleBase, InvalidAdapter
from adapters.provenance import derive_manifest
from adapters.tensorfile import header_bytes
from adapters.validation import Limits, validate

Craft = Callable[..., Path]
Numbers = npt.NDArray[np.float32]

Q = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"
QA, QB = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
Q_LAYER, DOWN_LAYER = (name.removeprefix("base_model.model.") for name in (Q, DOWN))


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
        {"init_lora_weights": "eva", "eva_config": {"rho": 1.0, "tau": 0.99}},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": ...},
        {"target_modules": "all-linear"},
        {"target_modules": "(a+)+$", "exclude_modules": "(a+)+$", "layers_pattern": "(a+)+$"},
        {"use_what_comes_next": False},
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
        ({"init_lora_weights": "corda"}, "plain LoRA"),
        ({"init_lora_weights": "loftq"}, "plain LoRA"),
        ({"init_lora_weights": "lora_ga"}, "plain LoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        ({"use_what_comes_next": True}, "'use_what_comes_next' is not known"),
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
        ({"base_model.model.lm_head.lora_A.weight": full((4, 8), 1)}, "leave lm_head out"),
        ({"base_model.model.lm_head.weight": full((4, 8), 1)}, "leave lm_head out"),
        ({"base_model.model.model.embed_tokens.weight": full((4, 8), 1)}, "save_embedding_layers"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": full((4, 8), 1)}, "embeddings"),
        ({f"{Q}.base_layer.lora_A.weight": full((4, 8), 1)}, "not the base's"),
        ({f"base_model.model.{QA}": full((4, 8), 1)}, "no layer"),
        ({Q.replace("q_proj", "qkv_proj") + ".lora_A.weight": full((4, 8), 1)}, "no layer"),
        (
            {Q.replace("model.l", "language_model.model.l") + ".lora_A.weight": full((4, 8), 1)},
            "no",
        ),
        ({f"{Q}.modules_to_save.weight": full((12, 8), 1)}, "modules_to_save=null"),
        ({f"{Q}.lora_magnitude_vector": full((12,), 1)}, "DoRA"),
        ({f"{Q}.lora_B.bias": full((12,), 1)}, "biases"),
        ({f"{Q}.lora_A.default.bias": full((12,), 1)}, "biases"),
        ({f"{Q}.lora_A.default.other.weight": full((4, 8), 1)}, "no layer"),
        ({f"{Q}.lora_A": full((4, 8), 1)}, "no layer"),
        ({f"{Q}.weight": full((12, 8), 1)}, "no layer"),
        ({"lora_A.weight": full((4, 8), 1)}, "no layer"),
        # The same tensor twice, by names that only some readers take for the same.
        ({QA.removeprefix("base_model.model."): full((4, 8), 1)}, "by another name"),
        ({f"{Q}.lora_A.default.weight": full((4, 8), 1)}, "by another name"),
        (
            {f"{DOWN}.lora_A.weight": None, f"{DOWN}.lora_A.a.weight": full((4, 16), 1)},
            "2 adapters",
        ),
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
    large = {QA: full((4, 8), 10), QB: full((12, 4), 10)}  # ΔW is 12 by 8 of 4·10·10·2
    assert "would change by 7.84e+03" in refused(craft(tensors=large), quantised)[0]


def test_the_bound_is_on_the_change_itself(craft: Craft, base: BaseModelInfo) -> None:
    """Two large halves that cancel but for a little, as a converted PiSSA's do."""
    b = full((12, 4), 50)
    b[:, 2], b[:, 3] = -50, -49.999
    report = validate(craft(tensors={QA: full((4, 8), 50), QB: b}), base, Limits())
    assert report.change == pytest.approx(50 * 0.001 * 96**0.5 * 2 / 2, rel=0.01)


@pytest.mark.parametrize("size", [1e-25, 1e-15, 1e-2])
def test_a_change_is_measured_however_small(size: float, craft: Craft, base: BaseModelInfo) -> None:
    """Squares of the first vanish in single precision, and those of the second nearly."""
    module = {QA: full((4, 8), size), QB: full((12, 4), size)}
    none = {f"{DOWN}.lora_B.weight": full((8, 4), 0)}
    report = validate(craft(tensors={**module, **none}), base, Limits())
    assert report.change == pytest.approx(4 * size**2 * 96**0.5 * 2 / 2, rel=1e-5)


def test_the_bound_is_a_setting(craft: Craft, base: BaseModelInfo) -> None:
    refused(craft(), base, max_delta_ratio=0.01)
    validate(craft(tensors={QB: full((12, 4), 20)}), base, Limits(max_delta_ratio=100))


def test_an_adapter_that_changes_nothing(craft: Craft, base: BaseModelInfo) -> None:
    zero = {QB: full((12, 4), 0), f"{DOWN}.lora_B.weight": full((8, 4), 0)}
    assert "answer like the base" in refused(craft(tensors=zero), base)[0]


def test_no_tensors_at_all(craft: Craft, base: BaseModelInfo) -> None:
    assert "no tensor" in refused(craft(weights=header_bytes({})), base)[0]


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


BOTH = {"target_modules": ["q_proj", "down_proj"]}


def warnings(folder: Path, base: BaseModelInfo) -> tuple[str, ...]:
    return validate(folder, base, Limits()).warnings


def test_the_same_base_by_another_name_warns(craft: Craft, base: BaseModelInfo) -> None:
    renamed = base.model_copy(update={"name": "other"})
    (warning,) = warnings(craft(config=BOTH, fingerprint=base.fingerprint), renamed)
    assert "tiny" in warning


def test_with_a_manifest_there_is_nothing_to_warn_of(craft: Craft, base: BaseModelInfo) -> None:
    assert warnings(craft(config=BOTH, fingerprint=base.fingerprint), base) == ()


def test_a_base_that_was_only_assumed_is_no_proof(craft: Craft, base: BaseModelInfo) -> None:
    """Nobody said that it was made for that base, so nobody can say that it was not for this."""
    folder = craft(config=BOTH)
    manifest = derive_manifest(folder, base, validate(folder, base, Limits()), "a")
    write_manifest(folder, manifest)
    assert warnings(folder, base) == ()
    other = base.model_copy(update={"fingerprint": "sha256:" + "b" * 64})
    (warning,) = warnings(folder, other)
    assert "only assumed" in warning


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (None, "not known"),
        ("", "not known"),
        (7, "not known"),
        ("someone/tiny", "only the name"),
        ("unsloth/Tiny-unsloth-bnb-4bit", "only the name"),
        ("/models/Tiny-AWQ/", "only the name"),
        ("someone/tiny-2", "names another base model"),
        ("C:\\models\\other", "names another base model"),
        ("x" * 10**5, "names another base model"),
    ],
)
def test_what_a_config_says_of_its_base(
    craft: Craft, base: BaseModelInfo, said: Any, says: str
) -> None:
    folder = craft(config=BOTH | {"base_model_name_or_path": said})
    (warning,) = warnings(folder, base)
    assert says in warning
    assert len(warning) < 400


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": ["q_proj"]}, f"leaves out: {DOWN_LAYER}"),
        ({"target_modules": [Q_LAYER, "mlp.down_proj"]}, None),
        ({"target_modules": ["proj"]}, f"leaves out: {DOWN_LAYER} and 1 more"),
        ({"target_modules": ".*", "exclude_modules": ["q_proj"]}, f"leaves out: {Q_LAYER}"),
        (BOTH | {"layers_to_transform": [1]}, "leaves out"),
        (BOTH | {"layers_to_transform": 0}, None),
        (BOTH | {"layers_to_transform": [0, {}]}, None),
    ],
    ids=str,
)
def test_a_config_and_tensors_that_disagree(
    craft: Craft, base: BaseModelInfo, config: dict[str, Any], says: str | None
) -> None:
    found = warnings(craft(config=config, fingerprint=base.fingerprint), base)
    assert (says in " ".join(found)) if says else (found == ())


def test_layers_that_were_to_be_trained_and_are_not_there(
    craft: Craft, base: BaseModelInfo
) -> None:
    without = {f"{DOWN}.lora_A.weight": None, f"{DOWN}.lora_B.weight": None}
    (warning,) = warnings(craft(config=BOTH, tensors=without, fingerprint=base.fingerprint), base)
    assert "does not change: " + DOWN_LAYER in warning


def test_layers_that_a_pattern_may_leave_out(craft: Craft, base: BaseModelInfo) -> None:
    without = {f"{DOWN}.lora_A.weight": None, f"{DOWN}.lora_B.weight": None}
    config = BOTH | {"exclude_modules": ".*down_proj"}
    assert warnings(craft(config=config, tensors=without, fingerprint=base.fingerprint), base) == ()


class BadDisk(io.BytesIO):
    """A file of a disk that fails; no real one can be had."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_disk_that_fails_is_said(
    craft: Craft, base: BaseModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = craft()
    monkeypatch.setattr("adapters.validation.open_regular", lambda path: (BadDisk(), 100))
    assert "cannot be read (Input/output error)" in refused(folder, base)[0]


@pytest.mark.timeout(20)
def test_a_long_list_of_layers_takes_no_time(craft: Craft, base: BaseModelInfo) -> None:
    many = base.model_copy(
        update={"modules": base.modules | {f"model.x.{n}.y": (1, 1) for n in range(500)}}
    )
    names = [f"layer{n}" for n in range(70_000)]
    began = time.perf_counter()
    validate(craft(config={"target_modules": names}), many, Limits())
    assert time.perf_counter() - began < 2


def test_the_largest_change_is_told(craft: Craft, base: BaseModelInfo) -> None:
    """‖B·A‖·scale = 1 on a layer whose weights have a norm of 2."""
    tensors = dict.fromkeys((f"{DOWN}.lora_A.weight", f"{DOWN}.lora_B.weight"))
    a, b = full((4, 8), 0), full((12, 4), 0)
    a[0, 0], b[0, 0] = 1, 0.5
    report = validate(craft(tensors={**tensors, QA: a, QB: b}), base, Limits())
    assert report.change == pytest.approx(0.5)
    unknown = base.model_copy(update={"norms": {}})
    assert validate(craft(), unknown, Limits()).change is None
