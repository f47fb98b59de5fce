"""The other side of `training.py`: TRL's DPOTrainer, and BAPO as a researcher would add it there.

TRL has no hook for a third completion, so `AnchoredDPOTrainer` brings it in as a column of tokens
and as a second forward pass. Its references are TRL's: computed in every step by default, before
training with `precompute_ref_log_probs`. Both trainers see the pairs as words of a made-up
vocabulary, so that an answer has exactly as many tokens as on our side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from training.config import BAPOConfig
from training.encoding import EncodedPair, Tokens

EOS = 1
BASE_KEYS = ("input_ids", "attention_mask", "completion_mask", "reference")


class AnchoredCollator(DataCollatorForPreference):
    """TRL's batch, and the rows of prompt and base answer under names that begin with base_."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        of_base = [{**row, "chosen_ids": row["base_ids"]} for row in examples]
        rows = super().torch_call(of_base)
        for name in BASE_KEYS[:-1]:
            batch[f"base_{name}"] = rows[name].chunk(2)[0]
        if "base_reference" in examples[0]:
            batch["base_reference"] = torch.tensor([row["base_reference"] for row in examples])
        return batch


class AnchoredDPOTrainer(DPOTrainer):
    """DPO and λ · max(0, log π_ref(y_b) - log π_θ(y_b)); the dataset brings `base_ids`."""

    def __init__(self, model: Any, *, anchor_weight: float, **kwargs: Any) -> None:
        super().__init__(model, data_collator=AnchoredCollator(pad_token_id=EOS), **kwargs)
        self.anchor_weight = anchor_weight
        if self.args.precompute_ref_log_probs:
            size = self.args.per_device_train_batch_size
            found: list[float] = []
            for start in range(0, len(self.train_dataset), size):
                rows = [dict(row) for row in self.train_dataset.select(range(start, start + size))]
                inputs = self._prepare_inputs(self.data_collator(rows))
                found += self._base_reference(self.model, _base_rows(inputs)).tolist()
            self.train_dataset = self.train_dataset.add_column("base_reference", found)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: Any = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        base = _base_rows(inputs)
        loss = super().compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        reference = base.get("reference")
        if reference is None:
            reference = self._base_reference(model, base)
        drop = reference - _summed_logprobs(model, base)
        return loss + self.anchor_weight * torch.relu(drop).mean()

    def _base_reference(self, model: Any, base: dict[str, Any]) -> Tensor:
        without = self.accelerator.unwrap_model(self.model).disable_adapter()
        with torch.no_grad(), without, self.accelerator.autocast():
            return _summed_logprobs(model, base)


def trl_trainer(
    model: Any,
    config: BAPOConfig,
    pairs: Sequence[EncodedPair],
    callbacks: list[TrainerCallback],
    *,
    precompute: bool,
) -> DPOTrainer:
    """TRL's trainer on `model` (no adapter yet) with the settings of `config`."""
    disable_progress_bars()
    anchored = config.anchored
    settings = DPOConfig(
        output_dir=config.output_dir,
        beta=config.beta,
        precompute_ref_log_probs=precompute,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        max_steps=config.max_steps,
        bf16=config.bf16,
        use_cpu=config.use_cpu,
        # TRL's default computes activations twice to save memory; here it would only cost time.
        gradient_checkpointing=False,
        remove_unused_columns=not anchored,
        dataloader_pin_memory=config.dataloader_pin_memory,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=int(config.lora_alpha),
        target_modules=config.lora_target_modules,
    )
    known = {
        "args": settings,
        "train_dataset": _dataset(pairs),
        "processing_class": word_tokenizer(model.config.vocab_size),
        "peft_config": lora,
        "callbacks": callbacks,
    }
    if anchored:
        trainer = AnchoredDPOTrainer(model, anchor_weight=config.anchor_weight, **known)
    else:
        trainer = DPOTrainer(model, **known)
    trainer.remove_callback(PrinterCallback)
    _check_lengths(trainer.train_dataset, pairs)
    return trainer


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a word: `w7` is token 7."""
    words = Tokenizer(models.WordLevel({_word(t): t for t in range(size)}, unk_token=_word(0)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=_word(EOS), pad_token=_word(EOS)
    )


def _dataset(pairs: Sequence[EncodedPair]) -> Dataset:
    rows = []
    for pair in pairs:
        chosen, rejected, *bases = pair.branches
        row: dict[str, Any] = {"prompt": _words(pair.prompt) + " "}
        # TRL writes the end of an answer itself, unless it is there.
        row |= {"chosen": _words(chosen), "rejected": _words(rejected)}
        if bases:
            row["base_ids"] = list(bases[0] or ())
        rows.append(row)
    return Dataset.from_list(rows)


def _words(tokens: Tokens | None) -> str:
    return " ".join(map(_word, tokens or ()))


def _word(token: int) -> str:
    return "<end>" if token == EOS else f"w{token}"


def _check_lengths(dataset: Dataset, pairs: Sequence[EncodedPair]) -> None:
    """Both sides must have the same work."""
    for row, pair in zip(dataset, pairs, strict=True):
        theirs = (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        if tuple(map(tuple, theirs)) != (pair.prompt, pair.chosen, pair.rejected):
            raise RuntimeError("TRL reads the pairs as other tokens")


def _base_rows(inputs: dict[str, Any]) -> dict[str, Any]:
    """Take what belongs to the base answer out of a batch, for TRL would hand it to the model."""
    return {name: inputs.pop(f"base_{name}") for name in BASE_KEYS if f"base_{name}" in inputs}


def _summed_logprobs(model: Any, rows: dict[str, Any]) -> Tensor:
    labels = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, -100)
    outputs = model(
        input_ids=rows["input_ids"],
        attention_mask=rows["attention_mask"],
        labels=labels,
        use_cache=False,
        fused_lm_head=True,
    )
    scores: Tensor = outputs.log_probs.sum(dim=1)  # (B,)
    return scores
