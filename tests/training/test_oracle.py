"""TRL as the oracle: without the anchor, ours and its DPOTrainer are the same numbers.

Both trainers hold one and the same PEFT model and see the same six pairs of unlike length
in one batch; TRL pads them row by row, ours packs them behind a shared prompt. TRL is a
dependency of this file and of no other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from training.config import BAPOConfig
from training.data import PreferencePair
from training.encoding import EncodedPair, encode_pairs
from training.model import load_base
from training.trainer import BAPOTrainer

EXACT = {"atol": 1e-4, "rtol": 1e-4}


class Step(NamedTuple):
    """What one batch gave: the loss, the logged figures, the gradient of each LoRA weight."""

    loss: Tensor
    figures: dict[str, float]
    gradients: dict[str, Tensor]


def gradients_of(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    lora = {name: p for name, p in model.named_parameters() if "lora_" in name}
    return dict(zip(lora, torch.autograd.grad(loss, list(lora.values())), strict=True))


Oracle = Callable[[list[PreferencePair], dict[str, float]], DPOTrainer]
"""TRL's trainer of these pairs, each loss type with its weight."""


@pytest.fixture
def oracle(
    base_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> Oracle:
    def make(pairs: list[PreferencePair], loss_weights: dict[str, float]) -> DPOTrainer:
        rows = [
            {
                "prompt": pair.messages,
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            for pair in pairs
        ]
        # TRL trains on what a template writes behind the end of the turn, ours does not.
        tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>\n", "<|end|>")
        trainer = DPOTrainer(
            model=load_base(base_folder, cpu=True).model,
            args=DPOConfig(
                output_dir=str(tmp_path / "trl"),
                beta=0.3,
                loss_type=list(loss_weights),
                loss_weights=list(loss_weights.values()),
                bf16=False,
                use_cpu=True,
                report_to="none",
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"
            ),
        )
        torch.manual_seed(3)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return trainer

    return make


def step_of_trl(trainer: DPOTrainer) -> Step:
    trainer.model.train()
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.compute_loss(trainer.model, batch)  # type: ignore[no-untyped-call]
    figures = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return Step(loss.detach(), figures, gradients_of(trainer.model, loss))


def step_of_ours(model: torch.nn.Module, config: BAPOConfig, pairs: list[EncodedPair]) -> Step:
    trainer = BAPOTrainer(model, config, pairs)
    trainer.model.train()
    loss = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset)))
    assert isinstance(loss, Tensor)
    return Step(loss.detach(), trainer.recent(), gradients_of(model, loss))


@pytest.mark.parametrize(
    ("settings", "weights", "count"),
    [
        ({"loss_type": "sigmoid"}, {"sigmoid": 1}, 6),
        ({"loss_type": "ipo"}, {"ipo": 1}, 6),
        ({"loss_type": "hinge"}, {"hinge": 1}, 6),
        # One pair: TRL's sft is the mean over the tokens of a batch, ours over those of an answer.
        ({"method": "sft"}, {"sft": 1}, 1),
        ({"loss_type": "sigmoid", "sft_weight": 0.3}, {"sigmoid": 1, "sft": 0.3}, 1),
    ],
)
def test_without_the_anchor_loss_rewards_and_gradients_are_those_of_trl(
    oracle: Oracle,
    pairs: list[PreferencePair],
    quick: Callable[..., BAPOConfig],
    settings: dict[str, Any],
    weights: dict[str, float],
    count: int,
) -> None:
    pairs = pairs[:count]
    trl = oracle(pairs, weights)
    encoded = encode_pairs(trl.processing_class, pairs)
    for pair, row in zip(encoded, trl.train_dataset, strict=True):
        assert list(pair.prompt) == row["prompt_ids"]
        assert list(pair.chosen or ()) == row["chosen_ids"]
        assert list(pair.rejected or ()) == row["rejected_ids"]

    theirs = step_of_trl(trl)
    config = quick(anchor_weight=0, beta=0.3, bf16=False, **settings)
    ours = step_of_ours(trl.model, config, encoded)

    torch.testing.assert_close(ours.loss, theirs.loss, **EXACT)
    shared = [name for name in ours.figures if name != "loss"]
    assert {"rewards/chosen", "rewards/margins", "logps/rejected"} <= set(shared)
    for name in shared:
        assert ours.figures[name] == pytest.approx(theirs.figures[name], abs=1e-4, rel=1e-4)
    assert ours.gradients.keys() == theirs.gradients.keys()
    assert all(gradient.abs().max() > 1e-3 for gradient in theirs.gradients.values())
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, **EXACT)
