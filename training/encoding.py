"""From chat messages to token ids, as the base model was taught to read them.

Owns the chat template: a prompt is rendered with its generation prompt, an answer is what
the template writes after it, up to and with the token that ends the turn (what follows
that token is never generated, so it is not trained on either). Nothing is ever cut: what
does not fit is an error. Refuses files and tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.data import Message, PreferencePair
from training.errors import DataError, ModelError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EncodedPair:
    """A preference pair as token ids, or a general prompt that is anchored and nothing else.

    `chosen` and `rejected` are None together: then nobody prefers anything, and only the
    base answers count. `bases` are the base model's own answers. `reference` holds the
    base model's log-probability of every branch, 0 where there is none. `number` is the
    pair's place in its data, from 1.
    """

    prompt: Tokens
    chosen: Tokens | None
    rejected: Tokens | None
    bases: tuple[Tokens, ...] = ()
    reference: tuple[float, ...] | None = None
    number: int = 0

    @property
    def branches(self) -> tuple[Tokens | None, ...]:
        """The answers that continue the prompt: chosen, rejected and the base's own."""
        return (self.chosen, self.rejected, *self.bases)

    def anchored_on(self, bases: Sequence[Sequence[int]]) -> "EncodedPair":
        return replace(self, bases=tuple(map(tuple, bases)))

    def anchored_on_chosen(self) -> "EncodedPair":
        """The pair with its chosen answer in the base answer's place."""
        return self.anchored_on([self.chosen or ()])

    def __len__(self) -> int:
        """Tokens of the packed row: the prompt once and every answer."""
        return len(self.prompt) + sum(len(answer or ()) for answer in self.branches)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Tokens:
    """Token ids of a conversation up to where the answer begins.

    Raises ModelError without a chat template, DataError for a doubled BOS.
    """
    ids = _tokens(tokenizer, _render(tokenizer, messages, open_turn=True))
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == (bos, bos):
        raise DataError(
            f"the prompt begins with {tokenizer.bos_token} twice; take it out of the text,"
            " the chat template writes it"
        )
    return ids


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    pair: PreferencePair,
    *,
    max_prompt_length: int = 1024,
    max_completion_length: int = 1024,
) -> EncodedPair:
    """Token ids of one pair. Raises DataError where a part is too long or empty."""
    prompt = encode_prompt(tokenizer, pair.messages)
    if len(prompt) > max_prompt_length:
        raise DataError(
            f"the prompt has {len(prompt)} tokens, max_prompt_length is {max_prompt_length}"
        )
    chosen = encode_answer(tokenizer, pair.messages, prompt, pair.chosen)
    rejected = encode_answer(tokenizer, pair.messages, prompt, pair.rejected)
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) > max_completion_length:
            raise DataError(
                f"'{side}' has {len(answer)} tokens,"
                f" max_completion_length is {max_completion_length}"
            )
    if chosen == rejected:
        raise DataError("'chosen' and 'rejected' are the same tokens")
    return EncodedPair(prompt, chosen, rejected)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[PreferencePair], **limits: int
) -> list[EncodedPair]:
    """Every pair as token ids; an error names the pair, counted from 1."""
    encoded = []
    for number, pair in enumerate(pairs, start=1):
        try:
            encoded.append(replace(encode_pair(tokenizer, pair, **limits), number=number))
        except DataError as error:
            raise DataError(f"Pair {number}: {error}.") from error
    return encoded


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> list[int]:
    """Token ids that end an answer: the tokenizer's and, if given, the model's own."""
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if own is not None:
        ids.update([own] if isinstance(own, int) else own)
    return sorted(ids)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: Tokens, answer: str
) -> Tokens:
    """Token ids of an answer to a prompt that is encoded, with the token that ends the turn."""
    turns = [*messages, {"role": "assistant", "content": answer}]
    text = _render(tokenizer, turns, open_turn=False)
    ids = _tokens(tokenizer, text)
    if ids[: len(prompt)] == prompt:
        completion = ids[len(prompt) :]
    else:
        # Tokens merged across the border: the model will have read the prompt unmerged.
        opening = _render(tokenizer, messages, open_turn=True)
        if not text.startswith(opening):
            raise ModelError(
                "The chat template rewrites the prompt once there is an answer, so answers"
                " cannot be told from prompts; use a template without that."
            )
        completion = _tokens(tokenizer, text[len(opening) :])
    return _ended(tokenizer, completion)


def _ended(tokenizer: PreTrainedTokenizerBase, completion: Tokens) -> Tokens:
    """The answer up to its end-of-turn token, which is added where there is none."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError("The tokenizer has no end-of-sequence token, so answers cannot end.")
    if eos not in completion:
        return (*completion, int(eos))
    last = len(completion) - 1 - completion[::-1].index(eos)
    return completion[: last + 1]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, open_turn: bool) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            "The tokenizer has no chat template; use a chat model, or add a"
            " chat_template.jinja to the model's folder."
        )
    try:
        text: Any = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_turn
        )
    except Exception as error:  # templates raise what they like, jinja2's errors among them
        raise DataError(f"the chat template refuses the conversation ({error})") from error
    return str(text)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    # The template has written every special token already.
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
