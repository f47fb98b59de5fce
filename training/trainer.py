"""BAPOTrainer: the Trainer of transformers with BAPO's loss, batches and figures.

Owns one optimisation step, what is logged of it, under TRL's names, and what a checkpoint
needs beyond the Trainer's own. Refuses files of data, base answers and evaluation of
answers: pairs come encoded and anchored. The reference is the same model with its adapter
off, computed once before the first step.
"""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.batching import PADDING, LengthBuckets, PackedRows, PairBatch, collate
from training.config import BAPOConfig
from training.encoding import EncodedPair
from training.errors import CheckpointError, DivergedError
from training.history import Line, mean_figures
from training.logprobs import sequence_logprobs, sequence_logprobs_and_kl
from training.losses import BapoLoss, anchor_loss, bapo_loss, preference_loss, sft_loss
from training.scoring import with_reference
from training.sharding import as_forward

BASE = 2
"""The first column of the base answers, behind chosen and rejected."""

BATCHES_FILE = "bapo_history.json"
"""The lines of a checkpoint's batches, written last: without it a checkpoint is not whole."""

Group = tuple[EncodedPair, ...]
"""A pair and the general prompts that are anchored beside it."""


class PairDataset(Dataset[Group]):  # type: ignore[misc]
    """Encoded pairs, each with its reference log-probabilities and its general prompts.

    Every pair has `beside` general prompts, the next ones in their order, round and round.
    """

    def __init__(
        self, pairs: Sequence[EncodedPair], general: Sequence[EncodedPair] = (), beside: int = 0
    ) -> None:
        self.pairs = list(pairs)
        self.general = list(general)
        self.beside = beside if general else 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Group:
        first = index * self.beside
        companions = (
            self.general[i % len(self.general)] for i in range(first, first + self.beside)
        )
        return (self.pairs[index], *companions)


def collate_groups(groups: Sequence[Group]) -> PackedRows:
    """One batch of packed rows, each pair with its companions behind it."""
    return collate(list(chain.from_iterable(groups)))


class BAPOTrainer(Trainer):  # type: ignore[misc]
    """Trains the adapter on `model` from encoded pairs.

    `train_pairs` carry base answers where `args.anchored`; `general` are further prompts
    that are anchored and nothing else, `args.anchor_prompts_per_pair` beside each pair.
    Logs, besides the Trainer's own: rewards/chosen, rewards/rejected, rewards/accuracies,
    rewards/margins (rewards are β times the log-ratio to the reference), logps/chosen,
    logps/rejected and, with an anchor, logps/base, anchor/loss, anchor/logratio
    (log π_θ(y_b) - log π_ref(y_b)).
    """

    args: BAPOConfig

    def __init__(
        self,
        model: nn.Module,
        args: BAPOConfig,
        train_pairs: Sequence[EncodedPair],
        *,
        eval_pairs: Sequence[EncodedPair] | None = None,
        general: Sequence[EncodedPair] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        for pairs in (train_pairs, eval_pairs or (), general):
            if any(bool(pair.bases) != args.anchored for pair in pairs):
                raise ValueError("pairs carry base answers exactly when there is an anchor")

        def referenced(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
            rows = 2 * args.per_device_train_batch_size
            return with_reference(model, pairs, batch_size=rows, bf16=bool(args.bf16))

        beside = args.anchor_prompts_per_pair
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_groups,
            train_dataset=PairDataset(referenced(train_pairs), referenced(general), beside),
            eval_dataset=PairDataset(referenced(eval_pairs)) if eval_pairs else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # The loss is a mean over pairs, so the Trainer divides it by accumulated steps.
        self.model_accepts_loss_kwargs = False
        self.history: list[Line] = []
        self.tokens = 0
        """Read in training since this process began, padding not counted."""
        self._figures: dict[str, list[dict[str, float]]] = defaultdict(list)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train, perhaps from a checkpoint; the figures of before come with it."""
        if resume_from_checkpoint:
            kept = Path(resume_from_checkpoint, BATCHES_FILE).read_text(encoding="utf-8")
            self.history = json.loads(kept)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _look(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """The policy's log-probabilities of a batch (B, K), and with a kl anchor its KL (B, A)."""
        if self.args.anchored and self.args.anchor_type == "kl":
            return sequence_logprobs_and_kl(self.model, batch, first=BASE)
        return sequence_logprobs(self.model, batch), None

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
        precision = self._precision(inputs["input_ids"].device.type)
        with as_forward(self.model, self._look), precision:
            policy, base_kl = model(inputs)  # (B, K), (B, A)
        pairs = inputs["lengths"][:, 0] > 0  # (B,), the others are general prompts
        loss = self._loss(policy, inputs["reference"], inputs["lengths"], base_kl, pairs)
        mean = loss.total.mean()
        figures = self._figures_of(policy.detach(), inputs["reference"], loss, pairs)
        tokens = (inputs["segment_ids"] != PADDING).sum()
        seen, read, figures = self._of_all_processes(mean.detach(), tokens, figures)
        self._figures["train" if model.training else "eval"].append(figures)
        if model.training:
            self.history.append(self._line(seen, read, figures))
            self.tokens += read
        if not math.isfinite(seen):
            raise self._diverged(seen, inputs["numbers"][pairs] if not mean.isfinite() else ())
        return mean, policy

    def _of_all_processes(
        self, loss: Tensor, tokens: Tensor, figures: dict[str, Tensor]
    ) -> tuple[float, int, dict[str, float]]:
        """The loss, the tokens and the figures of the batches that all processes train on now."""
        mine = torch.stack([loss, tokens.to(loss), *figures.values()])
        mean, read, *means = self.accelerator.reduce(mine, reduction="mean").tolist()
        everybody = round(read * self.accelerator.num_processes)
        return mean, everybody, dict(zip(figures, means, strict=True))

    def _line(self, loss: float, tokens: int, figures: dict[str, float]) -> Line:
        """A line of the history: where the batch stands, and how it went."""
        rate = self.lr_scheduler.get_last_lr()[0] if self.lr_scheduler else 0.0
        place = {"step": self.state.global_step + 1, "tokens": tokens, "learning_rate": rate}
        return {**place, "loss": loss, **figures}

    @contextmanager
    def _precision(self, device: str) -> Iterator[None]:
        """Autocast where it was asked for; on CPUs with the attention that is fast in bf16.

        There the flash kernel's backward took five times as long as in float32.
        """
        bf16 = bool(self.args.bf16)
        fast = sdpa_kernel(SDPBackend.MATH) if bf16 and device == "cpu" else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=bf16), fast:
            yield

    def _diverged(self, loss: float, numbers: Iterable[Tensor]) -> DivergedError:
        """The error that names the pairs, whichever process they are in."""
        kept = whole_checkpoints(Path(str(self.args.output_dir)))
        last = f" The last good checkpoint is {kept[-1]}." if kept else ""
        pairs = ", ".join(map(str, sorted(gather_object([int(number) for number in numbers]))))
        return DivergedError(
            f"The loss is {loss} at step {self.state.global_step + 1}, in the batch of the"
            f" pairs {pairs}; lower learning_rate or beta, or look at these pairs.{last}"
        )

    def prediction_step(
        self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None, None]:
        """The loss of one evaluation batch; there are no predictions to gather."""
        with torch.no_grad():
            mean = self._score(model, self._prepare_inputs(inputs))[0]
        return mean, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log line to `logs`, except to others' figures."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        prefix = "eval_" if mode == "eval" else ""
        figures = [] if all("/" in name for name in logs) else self._figures.pop(mode, [])
        for name in figures[0] if figures else ():
            logs[prefix + name] = sum(step[name] for step in figures) / len(figures)
        super().log(logs, start_time)

    def recent(self) -> dict[str, float]:
        """The figures of the last training batch; empty before the first."""
        return mean_figures(self.history[-1:])

    def last_epoch(self) -> dict[str, float]:
        """The mean figures over the last pass through the pairs."""
        batches = -(-len(self.train_dataset.pairs) // self.args.train_batch_size)
        return mean_figures(self.history[-batches:])

    def last_evaluation(self) -> dict[str, float]:
        """The figures of the last evaluation as eval/…; empty where there was none."""
        for line in reversed(self.state.log_history):
            if "eval_loss" in line:
                return {
                    f"eval/{name.removeprefix('eval_')}": float(value)
                    for name, value in line.items()
                    if name.startswith("eval_")
                }
        return {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        pairs = (train_dataset or self.train_dataset).pairs
        return LengthBuckets(
            [len(pair) for pair in pairs], self.args.train_batch_size, seed=self.args.seed
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's checkpoint and the lines of the history; whole, or not there at all.

        Raises CheckpointError; torch and safetensors tell of a full disk in errors of their own.
        """
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
            if self.is_world_process_zero():
                (folder / BATCHES_FILE).write_text(json.dumps(self.history), encoding="utf-8")
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            kept = whole_checkpoints(folder.parent)
            last = f"the last one is {kept[-1]}" if kept else "there is none before it"
            raise CheckpointError(
                f"The checkpoint of step {self.state.global_step} could not be written"
                f" ({str(error).splitlines()[0].rstrip('.')}); {last}. Is the disk full? Free some"
                " space and run again, with --resume."
            ) from error

    def _loss(
        self,
        policy: Tensor,  # (B, K)
        reference: Tensor,  # (B, K)
        lengths: Tensor,  # (B, K)
        base_kl: Tensor | None,  # (B, A)
        pairs: Tensor,  # (B,) bool, P of them set
    ) -> BapoLoss:
        """The loss of each pair, (P,): its anchor is the mean over its base answers and over the
        general prompts beside it."""
        args = self.args
        preference = preference_loss(
            policy[pairs, 0],
            policy[pairs, 1],
            reference[pairs, 0],
            reference[pairs, 1],
            beta=args.beta,
            loss_type=args.loss_type,
            label_smoothing=args.label_smoothing,
            dpop_weight=args.dpop_weight,
            answer_lengths=lengths[pairs, :2],
        )  # (P,)
        if args.sft_weight:
            chosen = sft_loss(policy[pairs, 0], lengths[pairs, 0])  # (P,)
            preference = preference + args.sft_weight * chosen
        if not args.anchored:
            return bapo_loss(preference, torch.zeros_like(preference), anchor_weight=0)
        anchor = anchor_loss(
            policy[:, BASE:],
            reference[:, BASE:],
            anchor_type=args.anchor_type,
            base_kl=base_kl,
            base_lengths=lengths[:, BASE:] if args.anchor_length_normalise else None,
        )  # (B, A)
        of_pair = anchor.reshape(len(preference), -1).mean(-1)  # (P,)
        return bapo_loss(preference, of_pair, anchor_weight=args.anchor_weight)

    def _figures_of(
        self, policy: Tensor, reference: Tensor, loss: BapoLoss, pairs: Tensor
    ) -> dict[str, Tensor]:
        """What is logged of a batch, scalars."""
        log_ratio = policy - reference  # (B, K)
        reward = self.args.beta * log_ratio[pairs]
        figures = {
            "rewards/chosen": reward[:, 0].mean(),
            "rewards/rejected": reward[:, 1].mean(),
            "rewards/accuracies": (reward[:, 0] > reward[:, 1]).float().mean(),
            "rewards/margins": (reward[:, 0] - reward[:, 1]).mean(),
            "logps/chosen": policy[pairs, 0].mean(),
            "logps/rejected": policy[pairs, 1].mean(),
        }
        if self.args.anchored:
            figures["logps/base"] = policy[:, BASE:].mean()
            figures["anchor/loss"] = loss.anchor.detach().mean()
            figures["anchor/logratio"] = log_ratio[:, BASE:].mean()
        return figures


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, the latest last."""
    found = [path for path in folder.glob("checkpoint-*") if (path / BATCHES_FILE).is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
