"""How far the policy has gone from the base while it is still training, and when that is too far.

Owns the watch on a run: a fixed sample of prompts with the base's own answers, looked at every few
steps, a warning at one bound and the end of the run at another. Refuses to judge a finished
adapter, which is `evaluation/`'s. The figure is KL(π_ref ‖ π_θ) of the next token along the base's
answers, in nats a token: 0 for the base itself, the same for every method, with an anchor or
without. Invariant: a look changes nothing; a watched run has the bits of an unwatched one.
"""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from training.anchors import base_answers
from training.batching import PackedRows, by_length, collate, on_device
from training.config import BAPOConfig
from training.encoding import EncodedPair, Tokens
from training.errors import DriftedError
from training.logprobs import causal_lm, evaluating, predictor_states, token_divergence
from training.model import ResidentBase, reference
from training.sharding import as_forward
from training.trainer import step_of, whole_checkpoints

logger = logging.getLogger(__name__)

DRIFT = "drift/kl"
"""The figure's name in logs, in the training's history and in the manifest."""

ANSWERS_AT_ONCE = 32


def watched_answers(
    base: ResidentBase, pairs: Sequence[EncodedPair], config: BAPOConfig
) -> list[EncodedPair]:
    """Up to `drift_prompts` of the pairs' prompts, each with one base answer and nothing else.

    The same ones for a seed. Pairs that are anchored on the base have their answers already; for
    others they come from the cache of base answers, or are made now, by a `base` without adapter.
    """
    prompts = watched_prompts(pairs, config)
    if config.anchored_on_base:
        of_prompt = {pair.prompt: pair for pair in pairs}
        answers = [of_prompt[prompt].bases[0] for prompt in prompts]
    else:
        answers = [of[0].tokens for of in base_answers(base, prompts, config)]
    return [EncodedPair(p, None, None, (a,)) for p, a in zip(prompts, answers, strict=True)]


def watched_prompts(pairs: Sequence[EncodedPair], config: BAPOConfig) -> list[Tokens]:
    """The prompts that are looked at, the same ones for a seed; none where nobody looks."""
    if not config.watches_drift:
        return []
    prompts = sorted({pair.prompt for pair in pairs})
    size = min(config.drift_prompts, len(prompts))
    return random.Random(config.seed).sample(prompts, size)


def drift(model: nn.Module, answers: Sequence[EncodedPair], *, bf16: bool = False) -> float:
    """KL(π_ref ‖ π_θ) along the base answers, the mean over their tokens in nats.

    The reference is `model` without its adapter. `bf16` computes as a training step does.
    """
    network = causal_lm(model)
    head = network.get_output_embeddings()

    def look(rows: PackedRows) -> Tensor:  # (N,)
        with reference(model):
            theirs = predictor_states(model, rows)  # (N, H)
        return token_divergence(predictor_states(model, rows), theirs, head)

    nats, tokens = 0.0, 0
    precision = torch.autocast(network.device.type, torch.bfloat16, enabled=bf16)
    with as_forward(model, look), evaluating(network), precision:
        for indices in by_length([len(answer) for answer in answers], ANSWERS_AT_ONCE):
            rows = on_device(collate([answers[index] for index in indices]), network.device)
            of_each = model(rows)
            nats += of_each.sum().item()
            tokens += len(of_each)
    return nats / tokens


class DriftWatch(TrainerCallback):  # type: ignore[misc]
    """Looks every `drift_steps` steps and after the last, logs, warns once, and ends a run.

    `name` is whose run a warning is about. Raises DriftedError past `drift_limit`, before the
    step's checkpoint is written, so that what is kept was within the limit when last seen.
    """

    def __init__(self, answers: Sequence[EncodedPair], name: str) -> None:
        self.answers = answers
        self.name = name
        self.log: Callable[[dict[str, float]], None] = lambda figures: None
        self.last: float | None = None
        self._seen_good = 0
        self._warned = False

    def on_step_end(
        self, args: BAPOConfig, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Called by the Trainer after each optimiser step."""
        step = state.global_step
        if not self.answers or (step % args.drift_steps and step != state.max_steps):
            return
        self.last = drift(model, self.answers, bf16=bool(args.bf16))
        self.log({DRIFT: self.last})
        if args.drift_limit is not None and not self.last <= args.drift_limit:
            raise self._drifted(args, state, self.last)
        self._seen_good = step
        too_far = args.drift_warn is not None and self.last > args.drift_warn
        if too_far and not self._warned and state.is_world_process_zero:
            self._warned = True
            logger.warning(
                "%s: at step %d the drift from the base is %.3g nats a token, above drift_warn"
                " (%g): it is likely to be forgetting; raise anchor_weight or train less.",
                *(self.name, step, self.last, args.drift_warn),
            )

    def _drifted(self, args: BAPOConfig, state: Any, found: float) -> DriftedError:
        kept = whole_checkpoints(Path(str(args.output_dir)))
        good = [path for path in kept if step_of(path) <= self._seen_good]
        advice = (
            f"the last checkpoint within the limit is {good[-1]}"
            if good
            else "no checkpoint within the limit was kept, which save_strategy steps would do"
        )
        return DriftedError(
            f"Stopped at step {state.global_step} of {state.max_steps}: the drift from the base is"
            f" {found:.3g} nats a token, drift_limit is {args.drift_limit:g}; raise anchor_weight,"
            f" lower learning_rate or train less; {advice}."
        )
