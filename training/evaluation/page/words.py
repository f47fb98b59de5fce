"""Which words of two texts differ.

Owns the comparison, by words with the space before them, so that the parts of a side put
together are its text again. Refuses markup.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

MOST_WORDS = 400
"""Beyond, two texts are shown without a comparison: it takes time that grows with their product."""


class Part(NamedTuple):
    """A stretch of a text, and whether the other text lacks it."""

    text: str
    changed: bool


def compare_words(before: str, after: str) -> tuple[list[Part], list[Part]]:
    """Both texts in parts, what they share and what they do not."""
    was, now = (_words(text) for text in (before, after))
    if max(len(was), len(now)) > MOST_WORDS:
        return [Part(before, False)], [Part(after, False)]
    bare = [[word.strip() for word in words] for words in (was, now)]
    blocks = SequenceMatcher(a=bare[0], b=bare[1], autojunk=False).get_matching_blocks()
    return (
        list(_parts(was, [(block.a, block.size) for block in blocks])),
        list(_parts(now, [(block.b, block.size) for block in blocks])),
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _parts(words: Sequence[str], shared: Sequence[tuple[int, int]]) -> Iterator[Part]:
    done = 0
    for start, size in shared:
        if start > done:
            yield Part("".join(words[done:start]), True)
        if size:
            yield Part("".join(words[start : start + size]), False)
        done = start + size
