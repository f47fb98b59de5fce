"""Many users' adapters in one process, on one base that stays in memory.

Owns who is trained, who is passed over and who has failed, and that a killed fleet goes on
where it was: a user is finished when his folder says that it was made from these pairs, on
this base, with these settings. Refuses how one adapter is trained; `run` does that. What
one user's data does wrong is that user's failure; what the machine does wrong (a full disk)
ends the fleet.

Users come in companies: their base answers are made together, in full batches, before the
first of them is trained. Their adapters are trained one after the other. Stacking several
in one forward was measured and left: a step of four users' pairs took as long as four steps.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from adapters.artifact import artifact_digest, read_manifest
from adapters.errors import AdapterError
from adapters.verdict import Verdict
from training.anchors import base_answers
from training.collector import settled
from training.config import BAPOConfig
from training.data import PreferencePair, pairs_digest
from training.encoding import EncodedPair, encode_pairs
from training.errors import DataError, Stopped, TrainingError
from training.model import ResidentBase
from training.progress import Tick, bar, silent
from training.run import train_adapter
from training.users import UserData, Users
from training.writing import recover

COMPANY = 64
"""Users whose base answers are made together."""

JOURNAL = "fleet.jsonl"

Status = Literal["trained", "kept", "failed"]


class Publish(Protocol):
    """Publishes the adapter in a folder under a name; `once` makes it once only. The version."""

    def __call__(self, name: str, folder: Path, once: str, *, activate: bool) -> int: ...


Judge = Callable[[UserData, Path], Verdict]
"""A gate's verdict on the user's adapter in a folder, signed into its manifest."""


@dataclass(frozen=True)
class Outcome:
    """What became of one user; `problem` is one sentence, and None where there is none."""

    user: str
    status: Status
    pairs: int
    seconds: float
    accuracy: float | None = None
    version: int | None = None
    problem: str | None = None
    gate: tuple[str, ...] | None = None
    """The gate's lines that did not hold, so that it is not active; None where none was asked."""


def train_fleet(
    base: ResidentBase,
    users: Users,
    out: Path,
    config: BAPOConfig,
    *,
    judge: Judge | None = None,
    publish: Publish | None = None,
    shard: tuple[int, int] = (0, 1),
    tick: Tick = silent,
) -> Iterator[Outcome]:
    """Train `out/<user>` for every user, and tell what became of each as it is known.

    `shard` (i, n) takes the i-th of n parts of the users, for several fleets on one `out`.
    What `judge` lets pass, and without one everything, is active once it is published.
    Raises Stopped after a SIGINT or SIGTERM, OSError where the disk fails; the same call
    goes on from there.
    """
    out.mkdir(parents=True, exist_ok=True)
    mine = of_shard(users, shard)
    with settled():
        while company := list(islice(mine, COMPANY)):
            for outcome in train_company(base, company, out, config, judge=judge, publish=publish):
                keep(outcome, out)
                tick(1)
                yield outcome


def of_shard(users: Iterable[UserData], shard: tuple[int, int]) -> Iterator[UserData]:
    """The users of the i-th of n parts, by a hash of their names."""
    number, parts = shard
    return (user for user in users if zlib.crc32(user.user.encode()) % parts == number)


def keep(outcome: Outcome, out: Path) -> None:
    """Write what became of a user into the fleet's journal."""
    with (out / JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(asdict(outcome)) + "\n")


def train_company(
    base: ResidentBase,
    company: Sequence[UserData],
    out: Path,
    config: BAPOConfig,
    *,
    judge: Judge | None = None,
    publish: Publish | None = None,
) -> Iterator[Outcome]:
    """Train some users one after the other, their base answers made together before."""
    recover(out, {user.user for user in company if not user.problem})
    waiting = [u for u in company if not u.problem and not _finished(base, u, out, config)]
    _answer_together(base, waiting, config)
    for user in company:
        yield _one(base, user, out, config, user in waiting, judge, publish)


def _one(
    base: ResidentBase,
    user: UserData,
    out: Path,
    config: BAPOConfig,
    to_train: bool,
    judge: Judge | None,
    publish: Publish | None,
) -> Outcome:
    began = time.perf_counter()

    def outcome(
        status: Status,
        problem: str | None = None,
        version: int | None = None,
        verdict: Verdict | None = None,
    ) -> Outcome:
        manifest = None if status == "failed" else read_manifest(out / user.user)
        accuracy = manifest.metrics.get("train/rewards/accuracies") if manifest else None
        seconds = time.perf_counter() - began
        pairs, gate = len(user.pairs), None if verdict is None else tuple(verdict.failed)
        return Outcome(user.user, status, pairs, seconds, accuracy, version, problem, gate)

    if user.problem:
        return outcome("failed", user.problem)
    folder = out / user.user
    try:
        if to_train:
            replaceable = read_manifest(folder) is not None
            train_adapter(base, user.pairs, folder, config, overwrite=replaceable, resume=True)
        verdict = judge(user, folder) if judge else None
        version = _publish(user.user, folder, verdict, publish) if publish else None
    except Stopped:
        raise
    except (TrainingError, AdapterError) as error:
        return outcome("failed", str(error))
    return outcome("trained" if to_train else "kept", version=version, verdict=verdict)


def _publish(name: str, folder: Path, verdict: Verdict | None, publish: Publish) -> int:
    """The version: one for each adapter and, where it was judged, each verdict on it."""
    once = artifact_digest(folder)
    if verdict is None:
        return publish(name, folder, once, activate=True)
    return publish(name, folder, f"{once}/{verdict.signature}", activate=verdict.passed)


def _finished(base: ResidentBase, user: UserData, out: Path, config: BAPOConfig) -> bool:
    """Whether the user's folder holds the adapter that this training would make."""
    try:
        manifest = read_manifest(out / user.user)
    except AdapterError:
        return False
    if manifest is None:
        return False
    made = (manifest.base.fingerprint, manifest.data.get("sha256"), manifest.hyperparameters)
    wanted = json.loads(json.dumps(config.hyperparameters()))
    return made == (base.info.fingerprint, _sha256(user.pairs), wanted)


def _answer_together(base: ResidentBase, users: Sequence[UserData], config: BAPOConfig) -> None:
    """Put the base answers of all these users into the cache."""
    if not config.anchored_on_base:
        return
    prompts = dict.fromkeys(pair.prompt for user in users for pair in _encoded(base, user, config))
    with bar("base answers" if prompts else None, transient=True) as show:
        base_answers(base, list(prompts), config, on_progress=show)


def _encoded(base: ResidentBase, user: UserData, config: BAPOConfig) -> list[EncodedPair]:
    """The user's pairs; none where they cannot be encoded, which his own training will say."""
    try:
        return encode_pairs(
            base.tokenizer,
            user.pairs,
            max_prompt_length=config.max_prompt_length,
            max_completion_length=config.max_completion_length,
        )
    except DataError:
        return []


def _sha256(pairs: Sequence[PreferencePair]) -> str:
    return pairs_digest(pairs).removeprefix("sha256:")
