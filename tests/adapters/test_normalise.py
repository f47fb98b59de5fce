"""The served form answers as the original does, and equal adapters are equal bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save

from adapters.artifact import artifact_digest
from adapters.base import BaseModelInfo, describe_base
from adapters.errors import InvalidAdapter, StoreFull
from adapters.normalise import normalise, scaled
from adapters.tensorfile import header_bytes, read_header
from adapters.validation import Limits, validate

from tiny_llama import load_tiny_llama, logits, save_tiny_llama

Craft = Callable[..., Path]


def served(folder: Path) -> Path:
    target = folder.with_name(folder.name + "-served")
    normalise(folder, target)
    return target


def test_normal_form_is_its_own_normal_form(craft: Craft) -> None:
    once = served(craft())
    assert artifact_digest(served(once)) == artifact_digest(once)


def tensors_of(folder: Path) -> dict[str, Any]:
    """As the safetensors library reads them; torch's, because numpy has no bf16."""
    return dict(load_file(folder / "adapter_model.safetensors"))


def test_who_wrote_the_upload_leaves_no_trace(craft: Craft) -> None:
    """The same numbers as fp32 from the safetensors library, with metadata, as they come."""
    ours = craft(dtype="BF16", config={"lora_dropout": 0.5})
    numbers = {name: values.float() for name, values in tensors_of(ours).items()}
    theirs = craft(weights=save(numbers, metadata={"format": "pt"}))
    assert artifact_digest(served(theirs)) == artifact_digest(served(ours))


def test_scale_and_weights_are_one_thing(craft: Craft) -> None:
    """alpha 8 at rank 4 is B doubled at alpha 4; at rsLoRA's √4 = 2 it is alpha 4."""
    plain = craft(config={"lora_alpha": 8})
    doubled = {
        name: values.numpy() * np.float32(2)
        for name, values in tensors_of(plain).items()
        if "lora_B" in name
    }
    folded = craft(config={"lora_alpha": 4}, tensors=doubled)
    stabilised = craft(config={"lora_alpha": 4, "use_rslora": True})
    assert len({artifact_digest(served(f)) for f in (plain, folded, stabilised)}) == 1


@pytest.mark.parametrize(
    "factor", [1.0, 2.0, 0.1, 3.0, 1 / 3, 2.0**-60, 7e30, float(np.float32(0.3))]
)
def test_products_are_those_of_double_precision(factor: float) -> None:
    """Of every float32 exponent, the smallest numbers too, although most are made in float32."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        doubles = (values.astype(np.float64) * factor).astype(np.float32)
        found = scaled(values, factor).astype(np.float32)
    assert found.tobytes() == doubles.tobytes()


def test_zero_has_one_sign(craft: Craft) -> None:
    numbers = {name: values.numpy() for name, values in tensors_of(craft()).items()}
    plus, minus = ({n: v.copy() for n, v in numbers.items()} for _ in range(2))
    for tensors, zero in ((plus, 0.0), (minus, -0.0)):
        for values in tensors.values():
            values[0, 0] = zero
    both = {artifact_digest(served(craft(tensors=tensors))) for tensors in (plus, minus)}
    assert len(both) == 1


def test_the_order_of_files_and_fields_leaves_no_trace(craft: Craft) -> None:
    folder = craft()
    config = json.loads((folder / "adapter_config.json").read_text())
    turned = json.dumps(dict(reversed(config.items())), indent=7).encode()
    tensors = tensors_of(folder)
    backwards = craft(
        config_text=turned,
        weights=file_in_order(dict(sorted(tensors.items(), reverse=True))),
    )
    assert artifact_digest(served(folder)) == artifact_digest(served(backwards))


def file_in_order(tensors: dict[str, Any]) -> bytes:
    """A file with its tensors as given; the safetensors library would sort them."""
    shapes = {name: ("F32", tuple(values.shape)) for name, values in tensors.items()}
    return header_bytes(shapes) + b"".join(v.numpy().tobytes() for v in tensors.values())


RENAMED: dict[str, Callable[[str], str]] = {
    "the adapter's name inside": lambda name: name.replace(".weight", ".default.weight"),
    "another adapter's name inside": lambda name: name.replace(".weight", ".witty-2.weight"),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "neither": lambda name: name.removeprefix("base_model.model.").replace(".weight", ".x.weight"),
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED.keys())
def test_other_names_for_the_same_tensors(
    craft: Craft, base: BaseModelInfo, rename: Callable[[str], str]
) -> None:
    """PEFT would load these as the base in silence, vLLM refuses the first two."""
    plain = craft()
    other = craft(weights=save({rename(name): v for name, v in tensors_of(plain).items()}))
    validate(other, base, Limits())
    assert artifact_digest(served(other)) == artifact_digest(served(plain))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when vLLM imports it
def test_vllm_reads_the_served_form_as_we_do(craft: Craft, base: BaseModelInfo) -> None:
    """Its own loader: every layer, nothing scaled any more, the numbers that were written."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    folder = served(craft(config={"lora_alpha": 5, "use_rslora": True}))
    helper = PEFTHelper.from_local_dir(str(folder), None)
    suffixes = {module.rpartition(".")[2] for module in base.modules}
    model = LoRAModel.from_local_checkpoint(
        str(folder), suffixes, helper, lora_model_id=1, device="cpu"
    )
    assert model.loras.keys() == base.modules.keys()
    tensors = tensors_of(folder)
    for module, layer in model.loras.items():
        assert (layer.rank, layer.scaling) == (4, 1.0)
        for side, found in (("A", layer.lora_a), ("B", layer.lora_b)):
            assert torch.equal(found, tensors[f"base_model.model.{module}.lora_{side}.weight"])


def test_a_name_in_two_forms_is_refused_here_too(craft: Craft) -> None:
    folder = craft()
    tensors = tensors_of(folder)
    name = next(iter(tensors))
    twice = tensors | {name.removeprefix("base_model.model."): tensors[name].clone()}
    with pytest.raises(InvalidAdapter, match="by another name"):
        served(craft(weights=save(twice)))


def test_the_form(craft: Craft, base: BaseModelInfo) -> None:
    folder = served(craft(config={"lora_alpha": 7.5, "use_rslora": True}))
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["target_modules"] == sorted(base.modules)
    assert not config.get("use_rslora")
    weights = folder / "adapter_model.safetensors"
    with weights.open("rb") as file:
        header = read_header(file, weights.stat().st_size)
    names = [entry.name for entry in header]
    assert names == sorted(names)
    assert {entry.dtype for entry in header} == {"BF16"}
    assert validate(folder, base, Limits()).scale == 1.0


def test_a_scaled_value_beyond_bf16_is_refused(craft: Craft) -> None:
    with pytest.raises(InvalidAdapter, match="bf16"):
        served(craft(config={"lora_alpha": 1e300}))


def test_a_full_disk_is_said(craft: Craft, file_limit: Callable[[int], Any]) -> None:
    folder = craft()
    with file_limit(100), pytest.raises(StoreFull):
        served(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model, saved."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


SHAPES: list[dict[str, Any]] = [
    {"lora_alpha": 16, "target_modules": "all-linear"},
    {"lora_alpha": 5, "use_rslora": True, "target_modules": "all-linear"},
    {"lora_alpha": 3, "target_modules": "all-linear"},
    {"lora_alpha": 16, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"lora_alpha": 16, "target_modules": r".*\.(up|down)_proj"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_peft_answers_the_same_with_either(
    tiny: Path, tmp_path: Path, shape: dict[str, Any], dtype: torch.dtype
) -> None:
    """As PEFT saved it and in normal form: the same answer within bf16 rounding."""
    torch.manual_seed(1)
    model: Any = get_peft_model(
        load_tiny_llama(tiny), LoraConfig(r=8, task_type="CAUSAL_LM", **shape)
    )
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    model.to(dtype).save_pretrained(tmp_path / "original")
    info = describe_base(tiny)
    validate(tmp_path / "original", info, Limits())
    normalise(tmp_path / "original", tmp_path / "served")
    validate(tmp_path / "served", info, Limits())

    plain = logits(load_tiny_llama(tiny))
    before = logits(PeftModel.from_pretrained(load_tiny_llama(tiny), str(tmp_path / "original")))
    after = logits(PeftModel.from_pretrained(load_tiny_llama(tiny), str(tmp_path / "served")))
    effect = (before - plain).abs().max()
    assert (after - before).abs().max() < 0.02 * effect
    assert effect > 1e-3
