"""The base model in memory, and LoRA adapters put on it and taken off again.

Owns loading, precision and wrapping. Refuses data, losses and file layouts. One base is
resident and shared by every adapter of a process: `trainable` and `adapted` leave it,
weight for weight, as they found it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from adapters.base import BaseModelInfo, describe_base
from training.config import BAPOConfig, bf16_pays
from training.errors import ModelError
from training.fused import fuse_lora
from training.quantised import in_four_bits, keep_gradients

logger = logging.getLogger(__name__)

WEIGHTS_AND_TEXT = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]

SLOW_TO_LOAD = 2**30
"""Bytes of weights from which a loading bar is shown."""


@dataclass(frozen=True)
class ResidentBase:
    """A frozen base model, its tokenizer and its identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: BaseModelInfo
    four_bit: bool = False

    @property
    def voice(self) -> str:
        """What its answers and scores depend on: the weights, and whether they are in 4 bits."""
        return self.info.fingerprint + ("+nf4" if self.four_bit else "")


def load_base(model: str | Path, *, cpu: bool = False, four_bit: bool = False) -> ResidentBase:
    """Load a model folder, or a model of the Hugging Face Hub, frozen and in eval mode.

    Weights are bf16 on a GPU and fp32 on a CPU, or NF4 where `four_bit` asks for it
    (QLoRA, 2305.14314; needs bitsandbytes). Raises ModelError (or the adapters'
    own error about the folder) where the model is missing, unreadable or no chat model.
    """
    folder = _folder_of(model)
    info = describe_base(folder, name=None if Path(model).is_dir() else str(model))
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" and bf16_pays() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with _quiet_if_small(folder):
            network = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                **(in_four_bits(dtype, device) if four_bit else {}),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The model {model} cannot be loaded: {_sentence(error)}") from error
    _refuse_unknown_heads(network)
    network.requires_grad_(False)
    if four_bit:
        keep_gradients(network)
    else:  # quantised weights are where they were loaded to
        network = network.to(device)
    return ResidentBase(network.eval(), tokenizer, info, four_bit)


@contextmanager
def trainable(base: ResidentBase, config: BAPOConfig) -> Iterator[PeftModel]:
    """The base with a fresh LoRA on it, taken off again at the end.

    The LoRA is fp32 and begins as no change at all (B is zero).
    """
    targets = config.lora_target_modules
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=_whole(config.lora_alpha),
        lora_dropout=config.lora_dropout,
        target_modules=targets if targets == "all-linear" else targets.replace(" ", "").split(","),
    )
    try:
        model = get_peft_model(base.model, lora)
    except ValueError as error:
        raise ModelError(f"No adapter can be put on this model: {_sentence(error)}") from error
    fuse_lora(model)
    with _unloading(base, model):
        _refuse_unserved(model, base.info)
        yield model


@contextmanager
def adapted(base: ResidentBase, adapter: str | Path) -> Iterator[PeftModel]:
    """The base with a saved adapter on it, in eval mode, taken off again at the end."""
    if not Path(adapter, "adapter_config.json").is_file():
        raise ModelError(f"{adapter} is no adapter folder: it has no adapter_config.json.")
    try:
        model = PeftModel.from_pretrained(base.model, str(adapter))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The adapter {adapter} does not fit: {_sentence(error)}") from error
    with _unloading(base, model):
        yield model.eval()


@contextmanager
def reference(model: torch.nn.Module) -> Iterator[None]:
    """Inside, `model` answers as the base does: its adapter, if it has one, is off."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
    else:
        yield


@contextmanager
def _unloading(base: ResidentBase, model: PeftModel) -> Iterator[None]:
    try:
        yield
    finally:
        model.base_model.unload()
        # PEFT leaves its configuration on the model, where the next wrap would find it.
        if hasattr(base.model, "peft_config"):
            del base.model.peft_config
        base.model.requires_grad_(False)
        base.model.eval()


def _folder_of(model: str | Path) -> Path:
    """The model's local folder, fetched from the Hub where only the name is known."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    # "organisation/name" is the Hub's, unless the first part is a folder right here.
    if folder.is_absolute() or len(folder.parts) != 2 or folder.parent.is_dir():
        raise ModelError(f"There is no model folder {model}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=WEIGHTS_AND_TEXT))
    except Exception as error:  # the Hub's client raises far more than it documents
        raise ModelError(
            f"There is no model folder {model}, and the Hub did not give one: {_sentence(error)}"
        ) from error


@contextmanager
def _quiet_if_small(folder: Path) -> Iterator[None]:
    """A loading bar is for models that take a while to load."""
    small = sum(file.stat().st_size for file in folder.glob("*.safetensors")) < SLOW_TO_LOAD
    if small and hf_logging.is_progress_bar_enabled():
        hf_logging.disable_progress_bar()
        yield
        hf_logging.enable_progress_bar()
    else:
        yield


def _refuse_unserved(model: PeftModel, info: BaseModelInfo) -> None:
    """Before the training and not after it: a server takes no adapter on embeddings or the head."""
    layers = (n for n, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer))
    unserved = [name for name in layers if name not in info.modules]
    if unserved:
        raise ModelError(
            f"No server takes an adapter on {unserved[0]}: leave it out of lora_target_modules."
        )


def _refuse_unknown_heads(model: PreTrainedModel) -> None:
    """Models that bend their logits after the head are not scored exactly here: say so."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1.0):
            raise ModelError(f"Models with '{name}' in their config cannot be trained yet.")


def _whole(value: float) -> float | int:
    """16.0 as 16: PEFT and others expect an integer alpha where it is one."""
    return int(value) if float(value).is_integer() else value


def _sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
