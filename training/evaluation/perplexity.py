"""How surprised is the model by a text that has nothing to do with the user?

Owns perplexity with a sliding window: the text is read in windows of `context` tokens that move on
by `stride`; of each only the tokens are scored that no window before it scored, so every token but
the first is scored once, with at least `context - stride` tokens before it (from the second window
on). The text is plain: no chat template, the tokenizer's own beginning if it writes one. The
smaller the stride, the lower and the dearer the figure; compare only at equal settings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from training.errors import DataError
from training.evaluation.asked import Asked
from training.evaluation.items import TextItem, TextScore
from training.logprobs import causal_lm, evaluating, token_logprobs
from training.progress import Tick, silent

CONTEXT = 1024
"""Longest window; a model that can read less gets what it can read."""


@dataclass(frozen=True)
class Text:
    """A text by the name of its file."""

    name: str
    content: str


class Window(NamedTuple):
    """Tokens of the text from `begin` to `end`; scored are those from `scored` on."""

    begin: int
    scored: int
    end: int


def load_text(path: str | Path) -> Text:
    """A text file. Raises DataError."""
    file = Path(path)
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not content.strip():
        raise DataError(f"{path} is empty; give a text.")
    return Text(file.name, content)


class Perplexity:
    """The measure; its windows become `items` when the base is asked, whose tokenizer cuts them."""

    def __init__(
        self, texts: Sequence[Text], items: list[TextItem], *, stride: int | None = None
    ) -> None:
        self.texts = texts
        self.items = items
        self.stride = stride
        self._windows: list[tuple[list[int], Window]] = []

    def __call__(self, asked: Asked, tick: Tick = silent) -> None:
        """Write each window's negative log-likelihood. Raises DataError for too short a text."""
        if asked.is_base:
            self._cut(asked)
        for item, (tokens, window) in zip(self.items, self._windows, strict=True):
            nll = window_nll(asked.model, tokens, window)
            item.scores[asked.name] = TextScore(nll=nll)
        tick(len(self.texts))

    def _cut(self, asked: Asked) -> None:
        longest = getattr(causal_lm(asked.model).config, "max_position_embeddings", CONTEXT)
        context = min(CONTEXT, longest)
        stride = self.stride or context // 2
        if not 0 < stride < context:
            raise DataError(f"--stride must be between 1 and {context - 1} for this model.")
        for text in self.texts:
            tokens = asked.tokenizer(text.content, verbose=False)["input_ids"]
            if len(tokens) < 2:
                raise DataError(f"{text.name} has a single token; give a longer text.")
            for window in windows(len(tokens), context, stride):
                scored = window.end - window.scored
                self._windows.append((tokens, window))
                self.items.append(TextItem(source=text.name, start=window.scored, tokens=scored))


def windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """Windows over a text of `length` tokens, which together score each but the first once."""
    scored = 1
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        yield Window(begin, scored, end)
        if end == length:
            return
        scored = end


def window_nll(model: torch.nn.Module, tokens: Sequence[int], window: Window) -> float:
    """Negative log-likelihood of the window's scored tokens, summed, in nats."""
    network = causal_lm(model)
    ids = torch.tensor([tokens[window.begin : window.end]], device=network.device)  # (1, T)
    first = window.scored - window.begin
    with evaluating(network):
        hidden = network.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[
            0
        ]  # (T, H)
        head = network.get_output_embeddings()
        return -float(token_logprobs(hidden[first - 1 : -1], ids[0, first:], head).double().sum())
