"""A gate for many adapters on one base: `bapo fleet --gate`.

Owns what a fleet asks of each of them (the user's held-out pairs, drift on their prompts, the same
questions of everybody) and that nobody is judged twice by the same thresholds. Refuses measuring
(`evaluate.py`), the judgement (`gate.py`) and the signature (`gated.py`). The base answers the
questions once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.artifact import read_manifest
from adapters.gate import public_key
from adapters.verdict import Verdict
from training.data import PreferencePair
from training.errors import ConfigError
from training.evaluation.evaluate import Candidate, Evaluation
from training.evaluation.gate import DROP, SHORT
from training.evaluation.gated import evaluate_gated, open_gate
from training.evaluation.items import BASE, DriftItem, Items, QuestionItem
from training.evaluation.preference import item_of
from training.evaluation.retention import item_of as question_of
from training.evaluation.retention import load_questions
from training.model import ResidentBase
from training.users import UserData

OF_PAIRS = ("preference.accuracy", "preference.likelihood", "preference.reward_margin")
OF_FACTS = "retention.facts"
ASKED = "adapter"
"""Its name among the models of one evaluation; a user's could be `base`."""


@dataclass(frozen=True)
class GateFiles:
    """What was asked for; it can be pickled, for each of a fleet's processes to read."""

    gate: Path
    facts: Path | None = None
    key: Path | None = None

    def __call__(self, base: ResidentBase) -> "Gatekeeper":
        return Gatekeeper(base, self)

    def refuse_unmeasurable(self, *, held_out: bool) -> None:
        """Raises ConfigError for what cannot be read, and for a line that everybody would fail."""
        thresholds = open_gate(self.gate, self.key).thresholds
        if self.facts is not None:
            load_questions(self.facts)
        for name in thresholds:
            figure = SHORT.get(name, name).removesuffix(DROP)
            if figure in OF_PAIRS or (figure.startswith("drift.") and "general" not in figure):
                missing = None if held_out else "--held-out, pairs that were not trained on"
            elif figure == OF_FACTS:
                missing = None if self.facts else "--facts, questions with answers"
            else:
                missing = "another file of thresholds, for a fleet does not measure this"
            if missing:
                raise ConfigError(f"{self.gate} asks for {name}: give {missing}.")


class Gatekeeper:
    """Judges one user's adapter after the other, and signs each verdict into its manifest."""

    def __init__(self, base: ResidentBase, files: GateFiles) -> None:
        self._base = base
        self._gate = open_gate(files.gate, files.key)
        questions = load_questions(files.facts) if files.facts else []
        self._questions = [question_of(question) for question in questions]

    def __call__(self, user: UserData, folder: Path) -> Verdict:
        """The verdict on the adapter in `folder`, the one of before where the same gate gave it.

        Raises TrainingError and the adapters' errors for what cannot be asked.
        """
        return self._said_before(folder) or self._judge(user.held_out, folder)

    def _said_before(self, folder: Path) -> Verdict | None:
        manifest = read_manifest(folder)
        verdict = manifest.verdict if manifest else None
        if verdict is None or verdict.gate != self._gate.digest:
            return None
        return verdict if verdict.key == public_key(self._gate.key) else None

    def _judge(self, held_out: Sequence[PreferencePair], folder: Path) -> Verdict:
        prompts = {repr(pair.prompt): pair.prompt for pair in held_out}
        items = Items(
            pairs=[item_of(pair) for pair in held_out],
            questions=list(map(_unsaid_by_adapters, self._questions)),
            drift=[DriftItem(of="user", prompt=prompt) for prompt in prompts.values()],
        )
        wanted = Evaluation(items, candidates=[Candidate(ASKED, folder, folder)])
        verdict = evaluate_gated(self._base, wanted, self._gate).model(ASKED).verdict
        if verdict is None:
            raise RuntimeError("an adapter under test was not judged")
        self._questions = items.questions  # with what the base said
        return verdict


def _unsaid_by_adapters(item: QuestionItem) -> QuestionItem:
    said = {name: answer for name, answer in item.said.items() if name == BASE}
    return item.model_copy(update={"said": said})
