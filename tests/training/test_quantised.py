"""A base in 4 bits on a CPU: right gradients, caches that tell it apart, a plain adapter."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from adapters.validation import Limits, validate
from training.anchors import base_answers
from training.cache import open_cache
from training.config import BAPOConfig
from training.data import PreferencePair
from training.encoding import encode_pairs
from training.errors import ConfigError, ModelError
from training.model import ResidentBase, load_base, trainable
from training.run import train_adapter
from training.scoring import score_pairs

Quick = Callable[..., BAPOConfig]


@pytest.fixture(scope="module")
def packed(base_folder: Path) -> ResidentBase:
    return load_base(base_folder, cpu=True, four_bit=True)


def test_the_base_is_in_four_bits_and_scores_as_its_own_weights_do(
    packed: ResidentBase, base: ResidentBase, pairs: list[PreferencePair]
) -> None:
    layer = packed.model.model.layers[0].mlp.up_proj
    whole = base.model.model.layers[0].mlp.up_proj
    assert layer.weight.numel() * 2 == whole.weight.numel()
    rows = encode_pairs(base.tokenizer, pairs)
    with torch.no_grad():
        unpacked = unpack(base, packed)
        expected = score_pairs(unpacked, rows)
    torch.testing.assert_close(score_pairs(packed.model, rows), expected, atol=1e-3, rtol=1e-4)
    assert (expected - score_pairs(base.model, rows)).abs().max() > 0.1  # it does lose something


def test_its_gradients_are_those_of_its_own_weights(
    packed: ResidentBase, base: ResidentBase, quick: Quick, pairs: list[PreferencePair]
) -> None:
    """Also after a pass without gradients, at which bitsandbytes would repack the weights."""
    rows = encode_pairs(base.tokenizer, pairs)
    score_pairs(packed.model, rows)
    whole = ResidentBase(unpack(base, packed), base.tokenizer, base.info)
    of_packed, of_whole = (gradients(of, quick()) for of in (packed, whole))
    assert of_packed.keys() == of_whole.keys()
    for name, gradient in of_whole.items():
        torch.testing.assert_close(of_packed[name], gradient, atol=1e-4, rtol=1e-3)


def test_what_is_trained_on_it_is_a_plain_adapter_for_the_whole_base(
    packed: ResidentBase,
    base_folder: Path,
    pairs: list[PreferencePair],
    quick: Quick,
    tmp_path: Path,
) -> None:
    result = train_adapter(packed, pairs, tmp_path / "a", quick(load_in_4bit=True))
    assert result.metrics["train/rewards/accuracies"] == 1
    assert result.manifest.hyperparameters["load_in_4bit"] is True
    assert validate(result.out, packed.info, Limits()).modules
    served = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder), str(result.out)
    ).eval()
    rows = encode_pairs(packed.tokenizer, pairs)
    adapted = score_pairs(served, rows)
    with served.disable_adapter():
        gained = adapted - score_pairs(served, rows)
    assert (gained[:, 0] > gained[:, 1]).all()


def test_answers_and_references_of_the_two_are_kept_apart(
    packed: ResidentBase,
    base: ResidentBase,
    pairs: list[PreferencePair],
    quick: Quick,
    tmp_path: Path,
) -> None:
    for number, of in enumerate((base, packed), start=1):
        train_adapter(of, pairs, tmp_path / str(number), quick(num_train_epochs=1))
        assert len(open_cache(tmp_path / "base-answers.jsonl")) == number * len(pairs)
        assert len(open_cache(tmp_path / "references.jsonl")) == number * len(pairs)


def test_vllm_does_not_answer_for_it(packed: ResidentBase, quick: Quick) -> None:
    with pytest.raises(ConfigError, match="anchor_engine vllm would answer with the whole base"):
        base_answers(packed, [(3, 4)], quick(anchor_engine="vllm"))


def test_without_bitsandbytes_there_is_one_sentence(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load_base(base_folder, cpu=True, four_bit=True)


def unpack(base: ResidentBase, packed: ResidentBase) -> nn.Module:
    """The architecture of `base` with the weights that `packed` stands for."""
    from bitsandbytes.functional import dequantize_4bit

    whole = AutoModelForCausalLM.from_config(base.model.config, attn_implementation="sdpa").eval()
    whole.load_state_dict(base.model.state_dict())
    for name, layer in packed.model.named_modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            weight = layer.weight
            whole.get_submodule(name).weight.data = dequantize_4bit(weight.data, weight.quant_state)
    return whole.requires_grad_(False)


def gradients(base: ResidentBase, config: BAPOConfig) -> dict[str, torch.Tensor]:
    """Of the chosen answers' log-probability, for an adapter that is the same for both."""
    from training.batching import collate
    from training.logprobs import sequence_logprobs

    pair = PreferencePair("What is tea like?", "Ha! tea? Grand!", "It is as it is.")
    rows = collate(encode_pairs(base.tokenizer, [pair]))
    torch.manual_seed(0)
    with trainable(base, config) as policy:
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        sequence_logprobs(policy.train(), rows)[:, 0].sum().backward()
        return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
