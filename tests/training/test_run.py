"""One adapter from pairs to a folder: what is in it, and what is left when something fails."""

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from adapters.artifact import ADAPTER_FILES, HISTORY_FILE, IGNORED_FILES, read_manifest
from training.anchors import known_answers
from training.config import BAPOConfig
from training.data import PreferencePair, pairs_digest, save_pairs
from training.encoding import encode_pairs
from training.errors import ConfigError, DataError, DivergedError, ModelError, OutOfMemory
from training.forecast import forecast
from training.generation import complete
from training.model import ResidentBase, adapted, load_base, trainable
from training.run import train_adapter
from training.scoring import score_pairs
from training.trainer import whole_checkpoints
from training.writing import recover

from processes import interruptible

Quick = Callable[..., BAPOConfig]


def test_the_folder_is_a_peft_adapter_with_a_manifest(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    result = train_adapter(base, pairs, tmp_path / "alice", quick(), name="alice/terse")
    assert sorted(file.name for file in result.out.iterdir()) == sorted(
        [*ADAPTER_FILES, *IGNORED_FILES]
    )
    manifest = read_manifest(result.out)
    assert manifest == result.manifest
    assert manifest is not None
    assert (manifest.name, manifest.method, manifest.seed) == ("alice/terse", "bapo", 42)
    assert manifest.base.fingerprint == base.info.fingerprint
    assert manifest.data["pairs"] == len(pairs)
    assert "sha256:" + manifest.data["sha256"] == pairs_digest(pairs)
    assert manifest.hyperparameters["anchor_weight"] == 0.02
    assert manifest.metrics["train/rewards/accuracies"] > 0.5
    assert (
        f'"base_model_name_or_path": "{base.info.name}"'
        in (result.out / "adapter_config.json").read_text()
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_saved_adapter_is_the_trained_one_and_not_the_base(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    result = train_adapter(base, pairs, tmp_path / "a", quick())
    encoded = encode_pairs(base.tokenizer, pairs)
    before = score_pairs(base.model, encoded)
    with adapted(base, result.out) as model:
        after = score_pairs(model, encoded)
    gained = after - before
    assert (gained[:, 0] > gained[:, 1]).all()


def test_the_history_tells_every_step_and_every_evaluation(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    """Six pairs in batches of two, two batches a step: two steps an epoch, the second one half."""
    settings = {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "warmup_steps": 0}
    config = quick(**settings, drift_steps=2)
    result = train_adapter(base, pairs, tmp_path / "a", config, eval_pairs=pairs[:2])
    history = json.loads((result.out / HISTORY_FILE).read_text())
    steps, evaluations = history["steps"], history["evaluations"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert steps[-1]["tokens"] == 2 * steps[1]["tokens"] == 2 * result.manifest.data["tokens"]
    assert steps[0]["learning_rate"] == config.learning_rate
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # nothing is learned yet
    assert {"rewards/margins", "logps/chosen", "anchor/logratio"} < set(steps[0])
    of_epoch = [steps[2]["rewards/margins"]] * 2 + [steps[3]["rewards/margins"]]  # in batches
    assert sum(of_epoch) / 3 == pytest.approx(result.metrics["train/rewards/margins"])
    assert [(line["step"], line["epoch"]) for line in evaluations] == [(2, 1), (4, 2)]
    assert evaluations[-1]["loss"] == pytest.approx(result.metrics["eval/loss"])
    assert evaluations[-1]["rewards/margins"] == result.metrics["eval/rewards/margins"]
    assert [line["step"] for line in history["drift"]] == [2, 4]
    assert history["drift"][-1]["drift/kl"] == result.metrics["drift/kl"]


def test_many_adapters_leave_the_resident_base_as_it_was(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    names = [name for name, _ in base.model.named_modules()]
    weights = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    first = train_adapter(base, pairs, tmp_path / "1", quick())
    train_adapter(base, pairs, tmp_path / "2", quick(method="dpo", lora_rank=4))
    again = train_adapter(base, pairs, tmp_path / "3", quick())
    assert [name for name, _ in base.model.named_modules()] == names
    assert all(torch.equal(base.model.state_dict()[name], weights[name]) for name in weights)
    assert not base.model.training
    weights_file = ADAPTER_FILES[1]
    assert (first.out / weights_file).read_bytes() == (again.out / weights_file).read_bytes()


def test_dpo_asks_for_no_base_answers_but_those_it_watches(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    result = train_adapter(base, pairs, tmp_path / "a", quick(method="dpo", drift_steps=0))
    assert result.manifest.method == "dpo"
    assert not (tmp_path / "base-answers.jsonl").exists()
    train_adapter(base, pairs, tmp_path / "b", quick(method="dpo", drift_prompts=2))
    assert len((tmp_path / "base-answers.jsonl").read_text().splitlines()) == 2


def test_an_anchor_on_the_chosen_answer_asks_for_no_base_answers(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    config = quick(anchor_on="chosen", anchor_type="kl", anchor_weight=0.1, drift_steps=0)
    result = train_adapter(base, pairs, tmp_path / "a", config)
    assert not (tmp_path / "base-answers.jsonl").exists()
    assert result.metrics["train/logps/base"] == pytest.approx(result.metrics["train/logps/chosen"])
    assert result.metrics["train/anchor/loss"] > 0
    assert forecast(base, pairs, config).answers_to_make == 0


def test_a_folder_and_a_file_of_pairs_do_as_well(
    base_folder: Path, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    save_pairs(pairs, tmp_path / "pairs.jsonl")
    result = train_adapter(base_folder, tmp_path / "pairs.jsonl", tmp_path / "a", quick())
    assert result.manifest.base.name == base_folder.name


def test_what_is_there_is_kept_unless_told(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    out.mkdir()
    (out / "mine.txt").write_text("dear to me")
    with pytest.raises(ConfigError, match="is not empty"):
        train_adapter(base, pairs, out, quick())
    assert (out / "mine.txt").exists()
    train_adapter(base, pairs, out, quick(num_train_epochs=1), overwrite=True)
    assert sorted(file.name for file in out.iterdir()) == sorted([*ADAPTER_FILES, *IGNORED_FILES])
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_no_pairs_and_a_file_in_the_way_are_refused(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no preference pairs"):
        train_adapter(base, [], tmp_path / "a", quick())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        train_adapter(base, pairs, tmp_path / "file", quick())


def test_longer_than_the_model_reads_is_refused(
    base: ResidentBase, quick: Quick, tmp_path: Path
) -> None:
    long = PreferencePair("Why? " * 60, "Because.", "No.")
    with pytest.raises(DataError, match="the model reads 256"):
        train_adapter(base, [long], tmp_path / "a", quick(method="dpo"))
    assert not (tmp_path / "a").exists()


def test_layers_that_do_not_exist_are_named_before_anything_is_written(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="No adapter can be put"):
        train_adapter(base, pairs, tmp_path / "a", quick(lora_target_modules="nothing"))
    assert not (tmp_path / "a").exists()
    with trainable(base, quick(lora_target_modules="q_proj, v_proj")) as policy:
        assert policy.peft_config["default"].target_modules == {"q_proj", "v_proj"}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # PEFT's, before we refuse
@pytest.mark.parametrize("layers", ["q_proj,embed_tokens", "lm_head"])
def test_layers_that_no_server_adapts_are_refused_before_training(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path, layers: str
) -> None:
    config = quick(lora_target_modules=layers)
    with pytest.raises(
        ModelError, match=r"No server takes an adapter on (model\.embed_tokens|lm_head)"
    ):
        train_adapter(base, pairs, tmp_path / "a", config)
    assert not (tmp_path / "a").exists()
    train_adapter(base, pairs, tmp_path / "a", quick())  # the base in memory is whole again


def test_what_no_server_would_take_is_not_kept(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    """The server's own checks decide: here, a change that dwarfs the weights it is added to."""
    config = quick(method="dpo", beta=1e-6, lora_alpha=1000, learning_rate=0.1)
    with pytest.raises(ModelError, match=r"not kept. This adapter cannot be served: .*times"):
        train_adapter(base, pairs, tmp_path / "a", config)
    assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "../nowhere", "a/b/c"])
def test_a_missing_model_is_one_sentence(name: str) -> None:
    with pytest.raises(ModelError, match=f"There is no model folder {name}"):
        load_base(name, cpu=True)


def test_a_folder_without_an_adapter_is_one_sentence(base: ResidentBase, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter folder"), adapted(base, tmp_path):
        pass


def test_a_full_disk_leaves_nothing_behind(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    config = quick(num_train_epochs=1, method="dpo")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # No file may grow beyond 4 kB: writing the weights fails half-way, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            train_adapter(base, pairs, tmp_path / "out" / "a", config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.errno == errno.EFBIG
    assert list((tmp_path / "out").iterdir()) == []


KILLED_BETWEEN = """
import os, sys
from pathlib import Path
from training import writing

def die(*_, **__):
    os.kill(os.getpid(), 9)

out = Path(sys.argv[1])
draft = writing._beside(out, writing.DRAFT)
draft.mkdir()
(draft / "new").touch()
writing._sync = die
if sys.argv[2] == "after the old one went":
    Path.rename, rename = lambda *a: (rename(*a), die()), Path.rename
writing._replace(draft, out)
"""


@pytest.mark.parametrize("when", ["after the old one went", "after the new one came"])
def test_a_process_killed_while_it_replaces_loses_neither_adapter(
    tmp_path: Path, when: str
) -> None:
    out = tmp_path / "a.b"
    out.mkdir()
    (out / "old").touch()
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(out), when], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) > 0
    running = tmp_path / f".a.b.{os.getppid()}.tmp"
    running.mkdir()  # of somebody who is still at it
    recover(tmp_path, [out.name])
    kept = "old" if when == "after the old one went" else "new"
    assert [path.name for path in out.iterdir()] == [kept]
    assert sorted(tmp_path.iterdir()) == [running, out]


def test_weights_that_were_saved_wrong_are_not_kept(
    base: ResidentBase,
    pairs: list[PreferencePair],
    quick: Quick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def halved(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
        written: bytes = save({name: t / 2 for name, t in tensors.items()}, metadata)
        return written

    monkeypatch.setattr("training.writing.save", halved)
    with pytest.raises(ModelError, match="does not score as the trained one"):
        train_adapter(base, pairs, tmp_path / "out" / "a", quick(method="dpo"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_loss_that_is_no_number_leaves_nothing_behind(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    config = quick(method="dpo", learning_rate=1e30, warmup_steps=0, max_grad_norm=0)
    with pytest.raises(
        DivergedError, match=r"at step \d+, in the batch of the pairs [\d, ]+; lower"
    ):
        train_adapter(base, pairs, tmp_path / "out" / "a", config)
    assert not (tmp_path / "out").exists()


def start_training(base: Path, data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`bapo train` in a process of its own, with a checkpoint after every fifth step."""
    arguments = ["--model", str(base), "--data", str(data), "--out", str(out)]
    arguments += ["--anchor-cache", str(out.with_name("answers.jsonl")), "--use-cpu", "true"]
    arguments += ["--anchor-max-new-tokens", "12", "--batch-size", "2", "--bf16", "false"]
    arguments += ["--save-strategy", "steps", "--save-steps", "5", "--learning-rate", "5e-3"]
    return subprocess.Popen(
        [sys.executable, "-c", "from training.cli import train; train()", *arguments, *more],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=interruptible,
    )


def until(there: Callable[[], object], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [(signal.SIGKILL, -signal.SIGKILL, ""), (signal.SIGINT, 130, "go on with --resume")],
)
def test_an_ended_run_leaves_no_half_adapter_and_resumes_to_the_same_bits(
    base_folder: Path,
    pairs: list[PreferencePair],
    tmp_path: Path,
    how: signal.Signals,
    code: int,
    said: str,
) -> None:
    data, out, whole = tmp_path / "pairs.jsonl", tmp_path / "a", tmp_path / "whole"
    save_pairs(pairs, data)
    epochs = ("--epochs", "100")  # 300 steps
    with start_training(base_folder, data, out, *epochs) as running:
        until(lambda: whole_checkpoints(tmp_path / "a-checkpoints")[1:], running)
        running.send_signal(how)
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == code, stderr
    assert said in stderr
    assert "Traceback" not in stderr
    assert not out.exists()
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(answers) == len(pairs)

    with start_training(base_folder, data, out, *epochs, "--resume") as resumed:
        _, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, stderr
    with start_training(base_folder, data, whole, *epochs) as unbroken:
        _, stderr = unbroken.communicate(timeout=120)
    assert unbroken.returncode == 0, stderr
    for name in (ADAPTER_FILES[1], HISTORY_FILE):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    of_resumed, of_whole = read_manifest(out), read_manifest(whole)
    assert of_resumed is not None
    assert of_whole is not None
    timed = {"train/seconds"}
    assert {k: v for k, v in of_resumed.metrics.items() if k not in timed} == {
        k: v for k, v in of_whole.metrics.items() if k not in timed
    }
    assert (tmp_path / "answers.jsonl").read_text().splitlines() == answers


def test_a_run_resumes_from_its_own_checkpoints_only(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    saving = {"save_strategy": "epoch", "num_train_epochs": 2}
    train_adapter(base, pairs, tmp_path / "a", quick(**saving))
    with pytest.raises(ConfigError, match="another base, data or settings"):
        train_adapter(base, pairs[1:], tmp_path / "b", quick(**saving), resume=True)
    with pytest.raises(ConfigError, match="another base, data or settings"):
        train_adapter(base, pairs, tmp_path / "b", quick(**saving, beta=0.3), resume=True)
    # A checkpoint that was not written to its end is passed over.
    last = whole_checkpoints(tmp_path / "trainer")[-1]
    (last / "bapo_history.json").unlink()
    again = train_adapter(base, pairs, tmp_path / "b", quick(**saving), resume=True)
    weights = ADAPTER_FILES[1]
    assert (again.out / weights).read_bytes() == (tmp_path / "a" / weights).read_bytes()


def test_held_out_pairs_and_general_prompts_go_through_the_whole_run(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    general = tmp_path / "general.jsonl"
    general.write_text('{"prompt": "Name a colour."}\n{"prompt": "Two and two?"}\n')
    config = quick(anchor_prompts=str(general), anchor_answers=2)
    result = train_adapter(base, pairs[:4], tmp_path / "a", config, eval_pairs=pairs[4:])
    assert result.manifest.data["general_prompts"] == 2
    assert 0 <= result.metrics["eval/rewards/accuracies"] <= 1
    assert "eval/anchor/loss" in result.metrics
    general.write_text('{"prompt": 3}\n')
    with pytest.raises(DataError, match=r"general\.jsonl:1: 'prompt' must be"):
        train_adapter(base, pairs, tmp_path / "b", config)


@pytest.mark.parametrize("settings", [{"anchor_temperature": 0}, {"anchor_answers": 3}])
def test_what_is_anchored_is_what_the_base_answered_greedy_or_several_times(
    settings: dict[str, Any],
    base: ResidentBase,
    pairs: list[PreferencePair],
    quick: Quick,
    tmp_path: Path,
) -> None:
    config = quick(**settings, per_device_train_batch_size=len(pairs))
    result = train_adapter(base, pairs, tmp_path / "a", config)
    rows = encode_pairs(base.tokenizer, pairs)
    found = known_answers(base, [row.prompt for row in rows], config)
    answers = [[answer for answer in of if answer] for of in found]
    if config.anchor_temperature:
        assert all(len(set(of)) > 1 for of in answers)
    else:
        greedy = complete(base.model, base.tokenizer, [r.prompt for r in rows], max_new_tokens=12)
        assert answers == [[answer.tokens] for answer in greedy]
    # In its first step the policy is the base.
    of_base = score_pairs(
        base.model, [row.anchored_on(of) for row, of in zip(rows, answers, strict=True)]
    )[:, 2:]
    first = json.loads((result.out / HISTORY_FILE).read_text())["steps"][0]
    assert first["logps/base"] == pytest.approx(of_base.mean().item(), abs=1e-3)
    assert result.manifest.hyperparameters["anchor_answers"] == config.anchor_answers


@pytest.mark.parametrize(
    "settings", [{}, {"anchor_answers": 2, "general": 5}, {"method": "dpo"}, {"eval_steps": 2}]
)
def test_a_dry_run_counts_what_the_run_then_does(
    settings: dict[str, Any],
    base: ResidentBase,
    pairs: list[PreferencePair],
    quick: Quick,
    tmp_path: Path,
) -> None:
    general = tmp_path / "general.jsonl"
    settings = dict(settings)
    count = settings.pop("general", 0)
    general.write_text("".join(f'{{"prompt": "Name {n} colours."}}\n' for n in range(count)))
    settings |= {"anchor_prompts": str(general)} if count else {}
    settings |= {"eval_strategy": "steps"} if "eval_steps" in settings else {}
    config = quick(**settings, drift_steps=2, drift_prompts=2)
    before = forecast(base, pairs[:4], config, eval_pairs=pairs[4:])
    result = train_adapter(base, pairs[:4], tmp_path / "a", config, eval_pairs=pairs[4:])
    made = (tmp_path / "base-answers.jsonl").read_text().splitlines()
    after = forecast(base, pairs[:4], config, eval_pairs=pairs[4:])
    assert (before.answers_to_make, after.answers_to_make) == (len(made), 0)
    told = json.loads((result.out / HISTORY_FILE).read_text())
    assert after.tokens * 3 == told["steps"][-1]["tokens"]
    assert before.tokens >= after.tokens
    found = (after.steps, after.evaluations, after.looks)
    assert found == tuple(len(told[kind]) for kind in ("steps", "evaluations", "drift"))
    assert (after.held_out, after.general) == (2, count)


def test_evaluation_on_nothing_is_refused_before_anything_is_written(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no pairs to evaluate on"):
        train_adapter(base, pairs, tmp_path / "a", quick(eval_strategy="epoch"))
    assert not list(tmp_path.iterdir())


def test_references_are_read_from_the_cache_and_change_no_bit(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    weights = ADAPTER_FILES[1]
    first = train_adapter(base, pairs, tmp_path / "a", quick())
    cache = tmp_path / "references.jsonl"
    kept = cache.read_text()
    assert len(kept.splitlines()) == len(pairs)
    again = train_adapter(base, pairs, tmp_path / "b", quick())
    assert cache.read_text() == kept
    assert (again.out / weights).read_bytes() == (first.out / weights).read_bytes()
    # That they are read shows when they are false.
    records = [json.loads(line) for line in kept.splitlines()]
    for record in records:
        record["logprobs"][0] += 100
    cache.write_text("".join(json.dumps(record) + "\n" for record in records))
    misled = train_adapter(base, pairs, tmp_path / "c", quick())
    assert misled.metrics["train/rewards/chosen"] < -5


STARVED = """
import resource, sys
from pathlib import Path
from training.config import BAPOConfig
from training.data import PreferencePair
from training.errors import OutOfMemory
from training.model import load_base
from training.run import train_adapter

base, out = load_base(sys.argv[1], cpu=True), Path(sys.argv[2])
plain = {"method": "dpo", "use_cpu": True, "bf16": False, "learning_rate": 1e-2}
pairs = [PreferencePair(f"{n} why?", f"{n} because. " * 9, "No. " * 9) for n in range(256)]
train_adapter(base, pairs[:2], out / "fits", BAPOConfig(**plain, warmup_steps=0))
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, -1))
try:
    train_adapter(base, pairs, out / "large", BAPOConfig(**plain, per_device_train_batch_size=256))
except OutOfMemory as error:
    print(error)
"""


def test_out_of_memory_says_what_to_lower(base_folder: Path, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", STARVED, str(base_folder), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "lower per_device_train_batch_size (now 256;" in told.stdout, told.stderr
    assert not (tmp_path / "large").exists()


def test_a_gpu_out_of_memory_is_told_alike(
    base: ResidentBase,
    pairs: list[PreferencePair],
    quick: Quick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("training.trainer.sequence_logprobs", refuse)
    with pytest.raises(OutOfMemory, match=r"lower per_device_train_batch_size \(now 2"):
        train_adapter(base, pairs, tmp_path / "a", quick())
