"""BAPOTrainer: the Trainer of transformers with BAPO's loss, batches and figures.

Owns one optimisation step and what is logged of it, under TRL's names. Refuses files,
base answers and evaluation of answers: pairs come encoded and anchored. The reference is
the same model with its adapter off, computed once before the first step.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.batching import LengthBuckets, PairBatch, collate
from training.config import BAPOConfig
from training.encoding import EncodedPair
from training.errors import DivergedError
from training.logprobs import sequence_logprobs, sequence_logprobs_and_kl
from training.losses import BapoLoss, anchor_loss, bapo_loss, preference_loss
from training.scoring import with_reference

BASE = 2
"""The column of the base answer, behind chosen and rejected."""


class PairDataset(Dataset[EncodedPair]):  # type: ignore[misc]
    """Encoded pairs, each with its reference log-probabilities."""

    def __init__(self, pairs: Sequence[EncodedPair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> EncodedPair:
        return self.pairs[index]


class BAPOTrainer(Trainer):  # type: ignore[misc]
    """Trains the adapter on `model` from encoded pairs.

    `train_pairs` carry base answers where `args.anchored`. Logs, besides the Trainer's
    own: rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins (rewards
    are β times the log-ratio to the reference), logps/chosen, logps/rejected and, with an
    anchor, logps/base, anchor/loss, anchor/logratio (log π_θ(y_b) - log π_ref(y_b)).
    """

    args: BAPOConfig

    def __init__(
        self,
        model: nn.Module,
        args: BAPOConfig,
        train_pairs: Sequence[EncodedPair],
        *,
        eval_pairs: Sequence[EncodedPair] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        for pairs in (train_pairs, eval_pairs or ()):
            if any((pair.base is not None) != args.anchored for pair in pairs):
                raise ValueError("pairs carry a base answer exactly when there is an anchor")
        rows = 2 * args.per_device_train_batch_size
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=PairDataset(with_reference(model, train_pairs, batch_size=rows)),
            eval_dataset=PairDataset(with_reference(model, eval_pairs, batch_size=rows))
            if eval_pairs
            else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # The loss is a mean over pairs, so the Trainer divides it by accumulated steps.
        self.model_accepts_loss_kwargs = False
        self.history: list[dict[str, float]] = []
        self._figures: dict[str, list[dict[str, float]]] = defaultdict(list)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PairBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the pairs of a packed batch, a scalar."""
        mean, policy = self._score(model, inputs)
        return (mean, {"logps": policy}) if return_outputs else mean

    def _score(self, model: nn.Module, inputs: PairBatch) -> tuple[Tensor, Tensor]:
        """The mean loss and the log-probabilities (B, K) behind it; figures are kept."""
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16)):
            policy, base_kl = self._logprobs(model, inputs)  # (B, K), (B,)
        reference = inputs["reference"]  # (B, K)
        loss = self._loss(policy, reference, inputs["lengths"], base_kl)
        mean = loss.total.mean()
        figures = self._figures_of(policy.detach(), reference, loss)
        self._figures["train" if model.training else "eval"].append(figures)
        if model.training:
            self.history.append({"loss": mean.item(), **figures})
        return mean, policy

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; raises DivergedError where the loss is not a finite number."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1};"
                " lower learning_rate or beta."
            )
        return loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None, None]:
        """The loss of one evaluation batch; there are no predictions to gather."""
        with torch.no_grad():
            mean = self._score(model, self._prepare_inputs(inputs))[0]
        return mean, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log line to `logs`."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        prefix = "eval_" if mode == "eval" else ""
        figures = self._figures.pop(mode, [])
        for name in figures[0] if figures else ():
            logs[prefix + name] = sum(step[name] for step in figures) / len(figures)
        super().log(logs, start_time)

    def recent(self) -> dict[str, float]:
        """The figures of the last training batch; empty before the first."""
        return self.history[-1] if self.history else {}

    def last_epoch(self) -> dict[str, float]:
        """The mean figures over the last pass through the pairs."""
        batches = -(-len(self.train_dataset.pairs) // self.args.train_batch_size)
        steps = self.history[-batches:]
        return {name: sum(step[name] for step in steps) / len(steps) for name in self.recent()}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        pairs = (train_dataset or self.train_dataset).pairs
        return LengthBuckets(
            [len(pair) for pair in pairs], self.args.train_batch_size, seed=self.args.seed
        )

    def _loss(
        self, policy: Tensor, reference: Tensor, lengths: Tensor, base_kl: Tensor | None
    ) -> BapoLoss:
        args = self.args
        preference = preference_loss(
            policy[:, 0],
            policy[:, 1],
            reference[:, 0],
            reference[:, 1],
            beta=args.beta,
            loss_type=args.loss_type,
            label_smoothing=args.label_smoothing,
            dpop_weight=args.dpop_weight,
            answer_lengths=lengths[:, :2],
        )
        if not args.anchored:
            return bapo_loss(preference, torch.zeros_like(preference), anchor_weight=0)
        anchor = anchor_loss(
            policy[:, BASE],
            reference[:, BASE],
            anchor_type=args.anchor_type,
            base_kl=base_kl,
            base_lengths=lengths[:, BASE] if args.anchor_length_normalise else None,
        )
        return bapo_loss(preference, anchor, anchor_weight=args.anchor_weight)

    def _logprobs(self, model: nn.Module, inputs: PairBatch) -> tuple[Tensor, Tensor | None]:
        if self.args.anchored and self.args.anchor_type == "kl":
            return sequence_logprobs_and_kl(model, inputs, branch=BASE)
        return sequence_logprobs(model, inputs), None

    def _figures_of(self, policy: Tensor, reference: Tensor, loss: BapoLoss) -> dict[str, float]:
        log_ratio = policy - reference  # (B, K)
        reward = self.args.beta * log_ratio
        figures = {
            "rewards/chosen": reward[:, 0].mean(),
            "rewards/rejected": reward[:, 1].mean(),
            "rewards/accuracies": (reward[:, 0] > reward[:, 1]).float().mean(),
            "rewards/margins": (reward[:, 0] - reward[:, 1]).mean(),
            "logps/chosen": policy[:, 0].mean(),
            "logps/rejected": policy[:, 1].mean(),
        }
        if self.args.anchored:
            figures["logps/base"] = policy[:, BASE].mean()
            figures["anchor/loss"] = loss.anchor.detach().mean()
            figures["anchor/logratio"] = log_ratio[:, BASE].mean()
        return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
