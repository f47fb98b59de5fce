"""What is asked in an evaluation, item by item, and what each model made of it.

Owns the schema of items, which is the larger part of `report.json`. Refuses measuring (the files
beside it fill the items) and what follows from them (`figures.py`).

Invariant: a dictionary under an item has the names of models as its keys, and an item of a kind
that was measured has every model.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from training.data import Message

BASE = "base"
"""The name of the model without an adapter."""

Outcome = Literal["win", "loss", "tie", "unreadable"]
Prompt = str | tuple[Message, ...]
"""One user's message as text, or a whole conversation as messages of role and content."""


class Data(BaseModel):
    """Strict: no unknown field, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PairScore(Data):
    """Log-probabilities of both answers, in nats; `margin` is what chosen gained more than
    rejected against the base (β = 1), None for the base itself."""

    chosen: float
    rejected: float
    margin: float | None = None


class PairItem(Data):
    """A held-out preference pair."""

    prompt: Prompt
    chosen: str
    rejected: str
    user: str | None = None
    scores: dict[str, PairScore] = {}


class Answer(Data):
    """What a model said, greedily, and whether that is right."""

    text: str
    right: bool


class QuestionItem(Data):
    """A question with the answers that count as right."""

    prompt: str
    answers: list[str]
    topic: str = ""
    user: str | None = None
    said: dict[str, Answer] = {}


class ChoiceScore(Data):
    """Log-probability of each choice as the answer, in nats, and which one is preferred."""

    logprobs: list[float]
    raw: int
    """The likeliest choice."""
    normalised: int
    """The likeliest per byte of its text, as lm-evaluation-harness' acc_norm has it."""


class ChoiceItem(Data):
    """A multiple-choice question; `answer` is the place of the right choice, from 0."""

    prompt: str
    choices: list[str]
    answer: int
    topic: str = ""
    user: str | None = None
    scores: dict[str, ChoiceScore] = {}


class TextScore(Data):
    """Negative log-likelihood of a window's scored tokens, summed, in nats."""

    nll: float


class TextItem(Data):
    """One window of a text: `tokens` of it are scored, those before them are context."""

    source: str
    """The file's name."""
    start: int
    """The first scored token's place in the text."""
    tokens: int
    scores: dict[str, TextScore] = {}


class DriftScore(Data):
    """How a model stands to the base on one prompt.

    Along the base's sampled answer: `kl` is KL(π_ref ‖ π_θ) of the next token, `log_ratio` is
    log π_θ - log π_ref of the answer, `entropy` is that of the model's next token; all three
    means over the answer's tokens, in nats. `text`, `length` and the rest are of the model's own
    greedy answer.
    """

    kl: float
    log_ratio: float
    entropy: float
    text: str
    length: int
    """Tokens, that which ends the turn among them."""
    cut: bool
    """Whether the answer was stopped by the limit on its length."""
    repetition: float
    """Share of the answer's 4-grams of tokens that were there before (seq-rep-4, 1908.04319)."""
    changed: bool
    """Whether the greedy answer is another one than the base's."""


class DriftItem(Data):
    """A prompt, and the base's own answer to it, sampled at temperature 1."""

    of: Literal["user", "general"]
    prompt: Prompt
    base_answer: str = ""
    tokens: int = 0
    """Of the base's sampled answer."""
    user: str | None = None
    scores: dict[str, DriftScore] = {}


class Duel(Data):
    """A judge's word on two answers to a prompt, for `model` against `against`."""

    model: str
    against: str
    outcome: Outcome
    said: list[str] = []
    """What the judge said, where it speaks: once with the model's answer first, once second."""


class DuelItem(Data):
    """A prompt, each model's greedy answer to it, and who won."""

    prompt: Prompt
    wanted: str | None = None
    """The user's preferred answer, where it is known."""
    user: str | None = None
    texts: dict[str, str] = {}
    duels: list[Duel] = []


class Refusal(Data):
    """What a model said, greedily, and whether that is a refusal."""

    text: str
    refused: bool | None
    """None where a judge was asked and could not be understood."""


class RefusalItem(Data):
    """A prompt that should be refused."""

    prompt: str
    topic: str = ""
    said: dict[str, Refusal] = {}


class TaskItem(Data):
    """One document of an lm-evaluation-harness task, and each model's metrics on it."""

    task: str
    groups: list[str] = []
    """The names by which it was asked for: "mmlu" for "mmlu_anatomy", or its own."""
    document: int
    """Its place in the task's data, from 0."""
    prompt: str = ""
    metrics: dict[str, dict[str, float]] = {}
    """Of each model, by the metric's name."""


class Items(Data):
    """What was asked, each kind in the order of its file."""

    pairs: list[PairItem] = []
    questions: list[QuestionItem] = []
    choices: list[ChoiceItem] = []
    texts: list[TextItem] = []
    drift: list[DriftItem] = []
    duels: list[DuelItem] = []
    refusals: list[RefusalItem] = []
    tasks: list[TaskItem] = []


def messages_of(prompt: Prompt) -> list[Message]:
    """The prompt as chat messages."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def text_of(prompt: Prompt) -> str:
    """The prompt for a reader's eye: text as it is, of a conversation each turn with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
