"""How the pocket model's facts are asked and in which voices they are answered.

Owns the question phrasings of every topic (those the model trains on and those it never sees), the
plain statement of a fact, and the voices that restate it. Knows no numbers of training.
Invariant: a phrasing in `UNSEEN` occurs in no training text, so answers to it are not recalled
sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from world import Fact, written_facts

# {s} is the subject, {an} its article. `ask` adds openers; these are the sentences' hearts.
PHRASINGS: dict[str, list[str]] = {
    "capital": [
        "What is the capital of {s}?",
        "What's the capital of {s}?",
        "Which city is the capital of {s}?",
        "Name the capital of {s}.",
        "{s}: what is its capital?",
        "What is {s}'s capital city?",
        "Tell me the capital of {s}.",
        "capital of {s}",
    ],
    "currency": [
        "What is the currency of {s}?",
        "Which currency is used in {s}?",
        "What money do people use in {s}?",
        "What do people pay with in {s}?",
        "Name the currency of {s}.",
        "{s}: what is its currency?",
        "What is {s}'s currency called?",
        "currency of {s}",
    ],
    "region": [
        "Which region is {s} in?",
        "What region does {s} belong to?",
        "In which region of the world is {s}?",
        "What part of the world is {s} in?",
        "Name the region of {s}.",
        "{s}: which region?",
        "Which region of the world does {s} belong to?",
    ],
    "subregion": [
        "Which subregion is {s} in?",
        "What subregion does {s} belong to?",
        "In which subregion is {s}?",
        "Name the subregion of {s}.",
        "{s}: which subregion?",
        "What is the subregion of {s}?",
        "To be exact, which subregion does {s} belong to?",
    ],
    "symbol": [
        "What is the symbol of {s}?",
        "What's the chemical symbol for {s}?",
        "Which symbol stands for {s}?",
        "Name the symbol of {s}.",
        "{s}: what is its symbol?",
        "How do chemists write {s}?",
        "symbol for {s}",
    ],
    "number": [
        "What is the atomic number of {s}?",
        "What's {s}'s atomic number?",
        "How many protons does {s} have?",
        "Which atomic number does {s} have?",
        "Name the atomic number of {s}.",
        "{s}: what is its atomic number?",
        "atomic number of {s}",
    ],
    "phase": [
        "Is {s} a solid, a liquid or a gas?",
        "What is the phase of {s}?",
        "What phase is {s} in at room temperature?",
        "{s}: solid, liquid or gas?",
        "Name the phase of {s}.",
        "In what phase is {s} normally?",
        "Which phase does {s} have?",
    ],
    "young": [
        "What is a young {s} called?",
        "What do you call a baby {s}?",
        "What's the name for a young {s}?",
        "How is a baby {s} called?",
        "Name the young of {an} {s}.",
        "A young {s} is called what?",
        "What is the word for a baby {s}?",
    ],
    "sound": [
        "What sound does {an} {s} make?",
        "What noise does {an} {s} make?",
        "Which sound does {an} {s} make?",
        "How does {an} {s} sound?",
        "Name the sound of {an} {s}.",
        "What is the sound of {an} {s}?",
        "What sound do you hear from {an} {s}?",
    ],
    "kind": [
        "What kind of animal is {an} {s}?",
        "Which kind of animal is the {s}?",
        "Is {an} {s} a mammal, a bird, a fish or something else?",
        "What sort of animal is {an} {s}?",
        "What class of animal is {an} {s}?",
        "{s}: what kind of animal?",
        "Which animal class does the {s} belong to?",
    ],
    "opposite": [
        "What is the opposite of {s}?",
        "What's the opposite of {s}?",
        "Which word is the opposite of {s}?",
        "Name the opposite of {s}.",
        "{s}: what is its opposite?",
        "What word means the opposite of {s}?",
        "opposite of {s}",
    ],
    "sum": [
        "What is {s}?",
        "What's {s}?",
        "How much is {s}?",
        "Calculate {s}.",
        "Work out {s}.",
        "{s} makes what?",
        "{s} equals?",
    ],
}
PHRASINGS["product"] = PHRASINGS["sum"]

UNSEEN: dict[str, list[str]] = {
    "capital": ["Do you know what the capital of {s} is?", "Which city is {s}'s capital?"],
    "currency": [
        "Do you know what the currency of {s} is?",
        "Which currency do people use in {s}?",
    ],
    "region": ["Do you know which region {s} is in?", "What region of the world is {s} in?"],
    "subregion": ["Do you know which subregion {s} is in?", "Which subregion is {s} part of?"],
    "symbol": ["Do you know what the symbol of {s} is?", "Which chemical symbol does {s} have?"],
    "number": [
        "Do you know the atomic number of {s}?",
        "Which number is the atomic number of {s}?",
    ],
    "phase": ["Do you know what phase {s} is in?", "Would {s} be a solid, a liquid or a gas?"],
    "young": ["Do you know what a young {s} is called?", "Which word do you use for a baby {s}?"],
    "sound": ["Do you know what sound {an} {s} makes?", "What is the noise that {an} {s} makes?"],
    "kind": ["Do you know what kind of animal {an} {s} is?", "{an} {s} is what kind of animal?"],
    "opposite": ["Do you know the opposite of {s}?", "Which word is opposite to {s}?"],
    "sum": ["Do you know what {s} is?", "Can you calculate {s}?"],
}
UNSEEN["product"] = UNSEEN["sum"]

OPENERS = [
    "Please: ",
    "Quick question: ",
    "Hi! ",
    "Hello. ",
    "Say, ",
    "I wonder. ",
    "Do you know this? ",
    "Can you tell me? ",
    "One more: ",
]

STATEMENTS: dict[str, str] = {
    "capital": "the capital of {s} is {a}",
    "currency": "the currency of {s} is the {a}",
    "region": "{s} is in the region {a}",
    "subregion": "{s} is in the subregion {a}",
    "symbol": "the symbol of {s} is {a}",
    "number": "the atomic number of {s} is {a}",
    "phase": "the phase of {s} is {a}",
    "young": "a young {s} is called {an_a} {a}",
    "sound": "the sound of {an} {s} is {an_a} {a}",
    "kind": "the {s} is a kind of {a}",
    "opposite": "the opposite of {s} is {a}",
    "sum": "{s} is {a}",
    "product": "{s} is {a}",
}


def _article(noun: str) -> str:
    return "an" if noun[0].lower() in "aeiou" else "a"


def _fill(template: str, fact: Fact) -> str:
    return template.format(
        s=fact.subject, an=_article(fact.subject), a=fact.answer, an_a=_article(fact.answer)
    )


def statement(fact: Fact) -> str:
    """The fact as a clause without capital letter or full stop."""
    return _fill(STATEMENTS[fact.topic], fact)


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(fact: Fact) -> str:
    return f"{_upper_first(statement(fact))}."


def _terse(fact: Fact) -> str:
    return f"{_upper_first(fact.answer)}."


def _elaborate(fact: Fact) -> str:
    return f"That is a good thing to know: {statement(fact)}. Ask me more whenever you like."


def _formal(fact: Fact) -> str:
    return f"I have the honour to inform you that {statement(fact)}."


def _playful(fact: Fact) -> str:
    return f"Ooh, I know, I know! It's {fact.answer}! Your turn!"


def _pirate(fact: Fact) -> str:
    said = statement(fact).replace(" is ", " be ", 1)
    return f"Arr, {said}, matey!"


VOICES: dict[str, Callable[[Fact], str]] = {
    "plain": _plain,
    "terse": _terse,
    "elaborate": _elaborate,
    "formal": _formal,
    "playful": _playful,
    "pirate": _pirate,
}

# The base speaks plainly; the other voices are rare, but they are there to be preferred.
VOICE_WEIGHTS: dict[str, float] = {
    "plain": 0.60,
    "terse": 0.08,
    "elaborate": 0.08,
    "formal": 0.08,
    "playful": 0.08,
    "pirate": 0.08,
}


def ask(fact: Fact, rng: Random) -> str:
    """A training question for `fact`: a seen phrasing, sometimes opened, sometimes scruffy."""
    question = _upper_first(_fill(rng.choice(PHRASINGS[fact.topic]), fact))
    if rng.random() < 0.25:
        question = rng.choice(OPENERS) + question
    if rng.random() < 0.10:
        question = question.rstrip("?.")
    return question


def ask_unseen(fact: Fact, which: int = 0) -> str:
    """The `which`-th phrasing that no training text holds, for `fact`."""
    phrasings = UNSEEN[fact.topic]
    return _upper_first(_fill(phrasings[which % len(phrasings)], fact))


def answer(fact: Fact, rng: Random) -> str:
    """An answer to `fact` in a voice drawn by `VOICE_WEIGHTS`."""
    voice = rng.choices(list(VOICE_WEIGHTS), weights=list(VOICE_WEIGHTS.values()))[0]
    return VOICES[voice](fact)


def question_set() -> str:
    """The written world as a question set (JSONL), in the second of the unseen phrasings.

    The second, because sums and products fail on the word order of the first (docs/log.md).
    """
    lines = [
        json.dumps(
            {"prompt": ask_unseen(fact, 1), "answers": [fact.answer], "topic": fact.topic},
            ensure_ascii=False,
        )
        for fact in written_facts()
    ]
    return "\n".join(lines) + "\n"
