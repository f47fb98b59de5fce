"""Adapters made elsewhere: taken without a manifest, and served as PEFT itself would.

PEFT's and TRL's own are made here, by them. Unsloth, LLaMA-Factory and Axolotl save through PEFT
too; what their folders have besides is laid over such a one.
"""

import json
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from adapters.artifact import Manifest, read_manifest, write_manifest
from adapters.base import BaseModelInfo, describe_base
from adapters.errors import InvalidAdapter
from adapters.normalise import normalise
from adapters.provenance import derive_manifest
from adapters.validation import Limits, ValidationReport, validate

from tiny_llama import load_tiny_llama, logits, save_tiny_llama

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model, saved."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def info(tiny: Path) -> BaseModelInfo:
    return describe_base(tiny)


def trained(tiny: Path, **settings: Any) -> Any:
    """A PEFT model whose adapter does something, as after a training."""
    return stir(untrained(tiny, **settings))


def untrained(tiny: Path, **settings: Any) -> Any:
    torch.manual_seed(1)
    wanted = {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    return get_peft_model(load_tiny_llama(tiny), LoraConfig(**(wanted | settings)))


def stir(model: Any, size: float = 0.05) -> Any:
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights.add_(torch.randn_like(weights) * size)
    return model


def rewrite(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def taken(folder: Path, info: BaseModelInfo) -> tuple[Path, ValidationReport, Manifest]:
    """What publishing does with it."""
    report = validate(folder, info, Limits())
    served = folder.with_name(f"{folder.name}-served")
    normalise(folder, served)
    validate(served, info, Limits())
    return served, report, derive_manifest(folder, info, report, "theirs")


def answers(tiny: Path, folder: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(load_tiny_llama(tiny), str(folder)))


def assert_same(tiny: Path, served: Path, wanted: torch.Tensor) -> None:
    """Within a fiftieth of what the adapter changes at all: bf16 keeps 8 bits."""
    effect = (wanted - logits(load_tiny_llama(tiny))).abs().max()
    assert effect > 1e-3
    assert (answers(tiny, served) - wanted).abs().max() < 0.02 * effect


def test_as_peft_saves_it(tiny: Path, info: BaseModelInfo, tmp_path: Path) -> None:
    model = trained(tiny)
    model.save_pretrained(tmp_path / "theirs")
    served, report, manifest = taken(tmp_path / "theirs", info)
    assert_same(tiny, served, logits(model))
    assert len(report.modules) == 14
    (warning,) = report.warnings
    assert "only the name" in warning
    assert manifest.base.assumed
    assert (manifest.base.name, manifest.base.fingerprint) == ("tiny", info.fingerprint)
    assert (manifest.method, manifest.producer) == ("lora", "peft")
    assert manifest.versions.keys() == {"peft"}
    assert manifest.hyperparameters["lora_rank"] == 8
    assert manifest.hyperparameters["lora_alpha"] == 16
    assert manifest.hyperparameters["base_model_name_or_path"] == str(tiny)[:128]


def test_a_derived_manifest_can_be_written_and_read(
    tiny: Path, info: BaseModelInfo, tmp_path: Path
) -> None:
    trained(tiny).save_pretrained(tmp_path / "theirs")
    _, _, manifest = taken(tmp_path / "theirs", info)
    write_manifest(tmp_path / "theirs", manifest)
    assert read_manifest(tmp_path / "theirs") == manifest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_in_any_precision(
    tiny: Path, info: BaseModelInfo, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = trained(tiny)
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    save_file({name: t.to(dtype) for name, t in tensors.items()}, tmp_path / "theirs" / WEIGHTS)
    served, _, _ = taken(tmp_path / "theirs", info)
    assert_same(tiny, served, logits(model))


@pytest.mark.parametrize("adapter", ["default", "witty"])
def test_with_the_adapters_name_left_in_its_keys(
    tiny: Path, info: BaseModelInfo, tmp_path: Path, adapter: str
) -> None:
    """As a state dict saved by hand has them. PEFT would load nothing of it, and say so softly."""
    model = trained(tiny)
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    named = {name.replace(".weight", f".{adapter}.weight"): t for name, t in tensors.items()}
    save_file(named, tmp_path / "theirs" / WEIGHTS)
    served, _, _ = taken(tmp_path / "theirs", info)
    assert_same(tiny, served, logits(model))


PATTERNS = [
    r".*\.(up|down)_proj",
    # Unsloth's, for models that see and read
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|down_proj)))",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_with_a_pattern_for_its_layers(
    tiny: Path, info: BaseModelInfo, tmp_path: Path, pattern: str
) -> None:
    model = trained(tiny, target_modules=pattern)
    model.save_pretrained(tmp_path / "theirs")
    served, report, _ = taken(tmp_path / "theirs", info)
    assert_same(tiny, served, logits(model))
    assert len(report.warnings) == 1  # on the base, not on layers


# PEFT says so when its own conversion loads the adapter a second time.
@pytest.mark.filterwarnings("ignore:.* changes the base weights:UserWarning")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_pissa_and_olora_only_when_converted(
    tiny: Path, info: BaseModelInfo, tmp_path: Path, init: str, rslora: bool
) -> None:
    model = untrained(tiny, init_lora_weights=init, use_rslora=rslora)
    # The conversion wants the adapter as it was before training, saved as if it were a plain one.
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "before")
    model.peft_config["default"].init_lora_weights = init
    wanted = logits(stir(model, 0.02))

    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(InvalidAdapter, match="path_initial_model_for_weight_conversion"):
        validate(tmp_path / "raw", info, Limits())

    model.save_pretrained(
        tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "before")
    )
    served, report, _ = taken(tmp_path / "theirs", info)
    assert report.rank == 16
    assert_same(tiny, served, wanted)


@pytest.mark.filterwarnings("ignore:.* changes the base weights:UserWarning")
def test_what_rounding_would_blur_is_told_beforehand(
    tiny: Path, info: BaseModelInfo, tmp_path: Path
) -> None:
    """A converted PiSSA of little training: its halves nearly cancel, and bf16 keeps 8 bits."""
    model = untrained(tiny, init_lora_weights="pissa")
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "before")
    model.peft_config["default"].init_lora_weights = "pissa"
    wanted = logits(stir(model, 0.001))
    model.save_pretrained(
        tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "before")
    )
    served, report, _ = taken(tmp_path / "theirs", info)
    effect = (wanted - logits(load_tiny_llama(tiny))).abs().max()
    blur = float((answers(tiny, served) - wanted).abs().max() / effect)
    (told,) = [warning for warning in report.warnings if "blurs" in warning]
    (percent,) = re.findall(r"some (\d+)%", told)
    assert blur / 2 < int(percent) / 100 < 2 * blur


def unsloth(folder: Path) -> None:
    rewrite(
        folder,
        base_model_name_or_path="unsloth/tiny-unsloth-bnb-4bit",
        auto_mapping={
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
        unsloth_training_args={"use_gradient_checkpointing": "unsloth", "random_state": 3407},
        task_type=None,
    )


def llama_factory(folder: Path) -> None:
    rewrite(folder, base_model_name_or_path="/data/models/tiny", revision=None)
    card = (
        "---\nlibrary_name: peft\nlicense: other\nbase_model: tiny\ntags:\n- base_model:adapter:x"
    )
    (folder / "README.md").write_text(f"{card}\n- llama-factory\n- lora\n- dpo\n---\n# DPO\n")


def axolotl(folder: Path) -> None:
    rewrite(folder, base_model_name_or_path="someone/tiny", peft_version="0.17.1")
    card = "---\r\nlibrary_name: peft\r\ntags:\r\n- axolotl\r\n- generated_from_trainer\r\n---\r\n"
    (folder / "README.md").write_bytes(card.encode())


def old_peft(folder: Path) -> None:
    """What PEFT 0.4 wrote: ten fields, no version."""
    keep = "base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights"
    keep += " layers_pattern layers_to_transform lora_alpha lora_dropout modules_to_save"
    keep += " peft_type r revision target_modules task_type"
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({name: config[name] for name in keep.split()}))


@pytest.mark.parametrize(
    ("dress", "producer", "method"),
    [
        (unsloth, "unsloth", "lora"),
        (llama_factory, "llama-factory", "dpo"),
        (axolotl, "axolotl", "lora"),
        (old_peft, None, "lora"),
    ],
)
def test_what_other_tools_add(
    tiny: Path,
    info: BaseModelInfo,
    tmp_path: Path,
    dress: Callable[[Path], None],
    producer: str | None,
    method: str,
) -> None:
    model = trained(tiny)
    model.save_pretrained(tmp_path / "theirs")
    dress(tmp_path / "theirs")
    served, report, manifest = taken(tmp_path / "theirs", info)
    assert_same(tiny, served, logits(model))
    assert (manifest.producer, manifest.method) == (producer, method)
    assert "only the name" in report.warnings[0]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    adapter=st.sampled_from(["", ".default", ".b"]),
    prefix=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "use_rslora": st.booleans(),
            "lora_alpha": st.floats(1, 12),
            "target_modules": st.sampled_from(["all-linear", ".*", [], ["q_proj"], None]),
            "exclude_modules": st.sampled_from([["q_proj"], "(a+)+b", None]),
            "layers_to_transform": st.sampled_from([0, [0], [], None, 7]),
            "rank_pattern": st.sampled_from([{}, {"q_proj": 8}, None]),
            "lora_dropout": st.sampled_from([0.5, "x", None]),
        },
    ),
)
def test_whatever_is_accepted_loads_in_peft(
    tiny: Path,
    info: BaseModelInfo,
    tmp_path: Path,
    adapter: str,
    prefix: bool,
    dtype: torch.dtype,
    fields: dict[str, Any],
) -> None:
    """Every tensor finds its layer (PEFT warns otherwise, which is an error here), and counts."""
    folder = tmp_path / uuid.uuid4().hex
    trained(tiny).save_pretrained(folder)
    tensors = {}
    for name, values in load_file(folder / WEIGHTS).items():
        bare = name.removeprefix("" if prefix else "base_model.model.")
        tensors[bare.replace(".weight", f"{adapter}.weight")] = values.to(dtype)
    save_file(tensors, folder / WEIGHTS)
    served, report, _ = taken(rewrite(folder, **fields), info)
    model: Any = PeftModel.from_pretrained(load_tiny_llama(tiny), str(served))
    loaded = {name: weights for name, weights in model.named_parameters() if "lora_" in name}
    assert len(loaded) == 2 * len(report.modules) == 28
    for name, values in load_file(served / WEIGHTS).items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], values.float())


def test_another_models_name_is_a_warning(tiny: Path, info: BaseModelInfo, tmp_path: Path) -> None:
    trained(tiny).save_pretrained(tmp_path / "theirs")
    rewrite(tmp_path / "theirs", base_model_name_or_path="meta-llama/Llama-3.1-8B")
    _, report, manifest = taken(tmp_path / "theirs", info)
    assert "names another base model: 'meta-llama/Llama-3.1-8B'" in report.warnings[0]
    assert manifest.hyperparameters["base_model_name_or_path"] == "meta-llama/Llama-3.1-8B"


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "card",
    [
        b"", b"---", b"---\n- dpo", b"\xff\xfe---\n- dpo\n---", b"---\n" + b"\n" * 10**5 + b"---\n",
        b"---\n" + b"- " * 10**5 + b"---\n", b"# dpo\n---\n- dpo\n---\n", b"x" * 2**20,
    ],
    ids=lambda card: repr(card[:12]),
)  # fmt: skip
def test_a_strange_card_tells_nothing(
    tiny: Path, info: BaseModelInfo, tmp_path: Path, card: bytes
) -> None:
    trained(tiny, target_modules=["q_proj"]).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "README.md").write_bytes(card)
    assert taken(tmp_path / "theirs", info)[2].method == "lora"


def test_a_config_full_of_oddities_still_has_a_manifest(
    tiny: Path, info: BaseModelInfo, tmp_path: Path
) -> None:
    trained(tiny, target_modules=["q_proj"]).save_pretrained(tmp_path / "theirs")
    rewrite(
        tmp_path / "theirs", peft_version=["x"], auto_mapping="x", base_model_name_or_path={"a": 1}
    )
    manifest = taken(tmp_path / "theirs", info)[2]
    assert manifest.versions == {}
    assert manifest.hyperparameters["base_model_name_or_path"] is None


@pytest.fixture
def by_trl(tiny: Path, tmp_path: Path) -> Path:
    """A folder as TRL's trainer leaves it after two real steps."""
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w2")
    trainer = SFTTrainer(
        model=load_tiny_llama(tiny),
        args=SFTConfig(
            output_dir=str(tmp_path / "trainer"),
            max_steps=2,
            learning_rate=0.05,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"text": ["w3 w4 w5 w6", "w7 w8 w9 w10"] * 4}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.create_model_card()
    return tmp_path / "saved"


def test_as_trl_saves_it(tiny: Path, info: BaseModelInfo, tmp_path: Path, by_trl: Path) -> None:
    """Its folder has more than an adapter; the two files of it are one."""
    with pytest.raises(InvalidAdapter, match=r"'training_args\.bin' may hold a pickle"):
        validate(by_trl, info, Limits())
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(by_trl / name, folder / name)
    served, _, manifest = taken(folder, info)
    assert_same(tiny, served, answers(tiny, folder))
    assert manifest.producer == "peft"  # the config alone does not tell
    shutil.copy(by_trl / "README.md", folder / "README.md")
    told = derive_manifest(folder, info, validate(folder, info, Limits()), "theirs")
    assert (told.producer, told.method) == ("trl", "sft")
