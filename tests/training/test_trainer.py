"""BAPOTrainer: what it logs, what it learns, and that a seed decides everything."""

import math
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import training.config as config_module
from training.config import BAPOConfig
from training.data import PreferencePair
from training.encoding import EncodedPair, encode_pairs
from training.errors import CheckpointError, DivergedError
from training.model import ResidentBase, reference, trainable
from training.scoring import score_pairs, with_reference
from training.trainer import BAPOTrainer, whole_checkpoints

Quick = Callable[..., BAPOConfig]

OF_DPO = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}
OF_THE_ANCHOR = {"logps/base", "anchor/loss", "anchor/logratio"}


@pytest.fixture
def anchored(base: ResidentBase, pairs: list[PreferencePair]) -> list[EncodedPair]:
    encoded = encode_pairs(base.tokenizer, pairs)
    return [pair.anchored_on([(70, 71, 72, 1)]) for pair in encoded]


def fit(
    base: ResidentBase, config: BAPOConfig, pairs: list[EncodedPair]
) -> tuple[BAPOTrainer, dict[str, torch.Tensor]]:
    torch.manual_seed(config.seed)
    with trainable(base, config) as policy:
        trainer = BAPOTrainer(policy, config, pairs)
        trainer.train()
        return trainer, get_peft_model_state_dict(policy)


def test_the_first_step_is_the_reference(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    trainer, _ = fit(base, quick(), anchored)
    first = trainer.history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert first["anchor/logratio"] == pytest.approx(0, abs=1e-3)


def test_it_learns_the_preference_and_logs_under_trls_names(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    trainer, _ = fit(base, quick(num_train_epochs=6, logging_steps=3), anchored)
    assert trainer.last_epoch()["rewards/accuracies"] == 1
    assert trainer.last_epoch()["loss"] < 0.6
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert len(steps) == 6
    assert steps[0].keys() >= OF_DPO | OF_THE_ANCHOR


def test_a_tracker_is_told_the_same_figures(
    base: ResidentBase,
    quick: Quick,
    anchored: list[EncodedPair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, float]] = []

    class Tracker(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            told.append(dict(logs))

    # The trackers' packages are not here; how transformers finds them is not ours.
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    for module in (integration_utils, config_module):
        monkeypatch.setattr(module, "get_available_reporting_integrations", lambda: ["tensorboard"])
    trainer, _ = fit(base, quick(report_to="tensorboard", logging_steps=1), anchored)
    steps = [line for line in told if "loss" in line]
    assert len(steps) == trainer.state.global_step > 0
    assert all(line.keys() >= OF_DPO | OF_THE_ANCHOR for line in steps)


def test_dpo_is_the_same_without_the_anchor(
    base: ResidentBase, quick: Quick, pairs: list[PreferencePair]
) -> None:
    config = quick(anchor_weight=0.0)
    assert config.method == "dpo"
    trainer, _ = fit(base, config, encode_pairs(base.tokenizer, pairs))
    assert trainer.recent().keys() == OF_DPO | {"loss"}


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "dpop", "sft"])
def test_every_preference_term_learns(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair], loss_type: str
) -> None:
    trainer, _ = fit(base, quick(loss_type=loss_type, num_train_epochs=6), anchored)
    assert trainer.last_epoch()["rewards/accuracies"] == 1
    assert trainer.last_epoch()["loss"] < trainer.history[0]["loss"]


def test_sft_beside_dpo_adds_what_it_is_worth(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    free, _ = fit(base, quick(num_train_epochs=6), anchored)
    both, _ = fit(base, quick(num_train_epochs=6, sft_weight=0.5), anchored)
    per_token = [
        -p.reference[0] / len(p.chosen or ())
        for p in with_reference(base.model, anchored)
        if p.reference
    ]
    # The first batch of two has seen no step yet.
    added = both.history[0]["loss"] - free.history[0]["loss"]
    assert min(per_token) / 2 - 1e-3 < added < max(per_token) / 2 + 1e-3
    assert both.last_epoch()["logps/chosen"] > free.last_epoch()["logps/chosen"]


def test_a_kl_anchor_starts_at_nothing_and_holds_the_base_answer(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    settings = {"anchor_type": "kl", "num_train_epochs": 6}
    free, _ = fit(base, quick(anchor_weight=1e-6, **settings), anchored)
    held, _ = fit(base, quick(anchor_weight=1.0, **settings), anchored)
    assert free.history[0]["anchor/loss"] == pytest.approx(0, abs=1e-5)
    assert 0 < held.last_epoch()["anchor/loss"] < free.last_epoch()["anchor/loss"] / 2


def test_a_strong_anchor_holds_the_base_answer(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    free, _ = fit(base, quick(anchor_weight=1e-6, num_train_epochs=6), anchored)
    held, _ = fit(base, quick(anchor_weight=1.0, num_train_epochs=6), anchored)
    assert held.last_epoch()["anchor/loss"] < free.last_epoch()["anchor/loss"]


def test_the_same_seed_gives_the_same_bits(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    _, first = fit(base, quick(), anchored)
    _, second = fit(base, quick(), anchored)
    _, other = fit(base, quick(seed=1), anchored)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_accumulated_steps_have_the_gradient_of_one_large_step(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    settings = {"num_train_epochs": 1, "optim": "sgd", "max_grad_norm": 0, "warmup_steps": 0}
    # Every other anchor has a kink where training begins, and rounding chooses its side.
    settings["anchor_type"] = "squared"
    _, large = fit(base, quick(per_device_train_batch_size=6, **settings), anchored)
    _, small = fit(base, quick(gradient_accumulation_steps=3, **settings), anchored)
    for name in large:
        torch.testing.assert_close(small[name], large[name], atol=1e-6, rtol=1e-3)


def test_the_reference_is_the_base_whatever_the_adapter_says(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    alone = score_pairs(base.model, anchored)
    with trainable(base, quick()) as policy:
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        changed = score_pairs(policy, anchored)
        referenced = with_reference(policy, anchored)
    assert not torch.allclose(changed, alone, atol=1)
    assert torch.equal(torch.tensor([pair.reference for pair in referenced]), alone)


def test_evaluation_pairs_are_scored_during_training(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    config = quick(eval_strategy="epoch", num_train_epochs=1)
    with trainable(base, config) as policy:
        trainer = BAPOTrainer(policy, config, anchored[:4], eval_pairs=anchored[4:])
        trainer.train()
    found = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert len(found) == 1
    assert found[0].keys() >= {f"eval_{name}" for name in OF_DPO | OF_THE_ANCHOR}


def test_a_loss_that_is_no_number_stops_the_run(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    config = quick(
        learning_rate=1e30,
        warmup_steps=0,
        max_grad_norm=0,
        save_strategy="steps",
        save_steps=1,
        gradient_checkpointing=True,
    )
    with pytest.raises(DivergedError) as caught:
        fit(base, config, anchored)
    said = str(caught.value)
    assert re.match(
        r"The loss is (nan|inf) at step 2, in the batch of the pairs \d, \d; lower", said
    )
    assert said.endswith("checkpoint-1.")
    assert whole_checkpoints(Path(str(config.output_dir)))[-1].name == "checkpoint-1"


class FullDisk(TrainerCallback):  # type: ignore[misc]
    """From the second step on, no file may grow beyond 4 kB: checkpoints fail half-way."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def test_a_disk_that_is_full_at_a_checkpoint_keeps_the_one_before(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    config = quick(save_strategy="steps", save_steps=1)
    try:
        with trainable(base, config) as policy, pytest.raises(CheckpointError) as caught:
            BAPOTrainer(policy, config, anchored, callbacks=[FullDisk()]).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(caught.value).startswith("The checkpoint of step 2 could not be written (")
    assert "checkpoint-1. Is the disk full?" in str(caught.value)
    folder = Path(str(config.output_dir))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    with trainable(base, config) as policy:
        trainer = BAPOTrainer(policy, config, anchored)
        trainer.train(str(whole_checkpoints(folder)[-1]))
    assert trainer.state.global_step == trainer.state.max_steps


def test_general_prompts_and_several_answers_are_averaged_into_the_anchor(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    answers = [(70, 71, 72, 1), (80, 81, 1)]
    pairs = [pair.anchored_on(answers) for pair in anchored[:2]]
    general = [EncodedPair(p.prompt, None, None).anchored_on(answers[::-1]) for p in anchored[2:5]]
    config = quick(anchor_answers=2, anchor_prompts_per_pair=2, anchor_type="absolute")
    with trainable(base, config) as policy:
        trainer = BAPOTrainer(policy, config, pairs, general=general)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
        loss = trainer.compute_loss(trainer.model.train(), batch)
        rows = [*pairs, *general]
        drop = (score_pairs(policy, rows) - score_pairs_of_base(policy, rows))[:, 2:].abs()
    # Pair 1 goes with general prompts 1 and 2, pair 2 with 3 and 1 again.
    first = drop[[0, 2, 3]].mean()
    second = drop[[1, 4, 2]].mean()
    seen = trainer.recent()
    assert seen["anchor/loss"] == pytest.approx(float((first + second) / 2), rel=1e-4)
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(seen["loss"])


def score_pairs_of_base(policy: PeftModel, rows: list[EncodedPair]) -> torch.Tensor:
    with reference(policy):
        return score_pairs(policy, rows)


def test_checkpointed_activations_change_no_bit(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    _, plain = fit(base, quick(), anchored)
    _, again = fit(base, quick(gradient_checkpointing=True), anchored)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_model_is_callable_as_before_once_it_is_trained(
    base: ResidentBase, quick: Quick, anchored: list[EncodedPair]
) -> None:
    config = quick(num_train_epochs=1)
    with trainable(base, config) as policy:
        BAPOTrainer(policy, config, anchored).train()
        assert policy(input_ids=torch.tensor([anchored[0].prompt])).logits.shape[-1] == 320


def test_pairs_without_base_answers_are_refused_where_there_is_an_anchor(
    base: ResidentBase, quick: Quick, pairs: list[PreferencePair]
) -> None:
    with trainable(base, quick()) as policy, pytest.raises(ValueError, match="base answer"):
        BAPOTrainer(policy, quick(), encode_pairs(base.tokenizer, pairs))
