"""A tiny base model and its tokenizer, built here: real architectures with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from training.config import BAPOConfig
from training.data import PreferencePair
from training.model import ResidentBase, load_base

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|bos|>"]
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    # Larger than usual, so that untrained attention looks at something in particular.
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most 320 tokens with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["the quick brown fox", "what is the sound of rain?"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        chat_template=TEMPLATE,
    )


def write_base(folder: Path, architecture: str = "llama") -> Path:
    """A model folder as a training script would leave it."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A fresh one for each test: some change its template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def base(base_folder: Path) -> ResidentBase:
    return load_base(base_folder, cpu=True)


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def any_base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ResidentBase:
    return load_base(write_base(tmp_path_factory.mktemp(request.param), request.param), cpu=True)


@pytest.fixture
def pairs() -> list[PreferencePair]:
    subjects = ["rain", "the sun", "a long winter in the north", "tea", "music", "foxes"]
    return [
        PreferencePair(f"What is {subject} like?", f"Ha! {subject}? Grand!", "It is as it is.")
        for subject in subjects
    ]


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., BAPOConfig]:
    """A config that trains in a second and writes its cache under the test's folder."""

    def make(**settings: Any) -> BAPOConfig:
        defaults: dict[str, Any] = {
            "anchor_cache": str(tmp_path / "base-answers.jsonl"),
            "anchor_max_new_tokens": 12,
            "learning_rate": 5e-3,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "bf16": False,  # so that figures can be compared closely on any CPU
            "output_dir": str(tmp_path / "trainer"),
        }
        return BAPOConfig(**(defaults | settings))

    return make
