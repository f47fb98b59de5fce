"""Is the engine still itself? Its memory is looked at, and the base asked what it has known before.

Owns both questions, what is known of the base's answers, the quarantine, which outlives an engine,
and what follows when something is wrong: the newest adapter goes into quarantine, and the engine
has to go. An adapter with poisonous numbers leaves NaN where others' keys and values come to lie,
so that some of everybody's answers are wrong, now these and now those, until it is overwritten.
Validation keeps such adapters out; this is for what it has not thought of.

A healthy engine must not be taken for a spoilt one: in a batch, rounding may tip a close choice.
So only what the base is sure of counts: the tokens with which all of several samples begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

import structlog

from adapters.registry import AdapterVersion
from server.errors import AdapterQuarantined, EngineRefusal

log = structlog.get_logger(__name__)

QUESTIONS = (
    "What is the capital of Norway?",
    "What is 2 plus 2?",
    "What do you call a young cat?",
)
SAMPLES = 8
"""Of an answer, at a low temperature: of two tokens that rounding could exchange, the same one is
in all of them less than once in a hundred times."""
TRIES = 2

Answer = tuple[int, ...]


class Respondent(Protocol):
    """An engine that can be asked."""

    async def base_answers(self, question: str, samples: int = 0) -> list[Answer]:
        """How the base begins to answer, token ids: greedily, or so many times by chance.

        Greedily, one from each of several engines. Computed anew, nothing of it from a cache.
        Raises EngineUnavailable, EngineRefusal.
        """

    async def memory_is_sound(self) -> bool:
        """Whether its memory is free of NaN and infinity. Raises the same."""


class Canary:
    """One for the server, whatever engine it has."""

    def __init__(self) -> None:
        self._known: dict[str, Answer] = {}
        """How the answers begin of which the base is sure."""
        self._proved: frozenset[int] = frozenset()
        self._quarantine: dict[int, AdapterVersion] = {}
        self.failures = 0
        """Engines that had to go."""

    async def greet(self, engine: Respondent) -> None:
        """Ask a new engine. Raises RuntimeError where it answers otherwise than the first one."""
        self._proved = frozenset()
        if self._known:
            if not await self._sings(engine):
                raise RuntimeError("the new engine does not answer as the first one did")
            return
        for question in QUESTIONS:
            if sure := _common(await engine.base_answers(question, SAMPLES)):
                self._known[question] = sure
        if not self._known:
            log.warning("canary_knows_nothing", why="the base is sure of no answer")

    async def listen(self, engine: Respondent, loaded: Sequence[AdapterVersion]) -> bool:
        """Whether the engine may stay; if not, one of the `loaded` versions is in quarantine.

        It is the newest of those that came since all was well. Raises EngineUnavailable for an
        engine that died.
        """
        if await engine.memory_is_sound() and await self._sings(engine):
            self._proved = frozenset(version.engine_id for version in loaded)
            return True
        self.failures += 1
        suspects = [v for v in loaded if v.engine_id not in self._proved] or list(loaded)
        newest = max(suspects, key=lambda version: version.engine_id, default=None)
        if newest is not None:
            self._quarantine[newest.engine_id] = newest
        log.error("canary_wrong", quarantined=newest and newest.ref)
        return False

    def holds(self, version: AdapterVersion) -> bool:
        """Whether the version is in quarantine."""
        return version.engine_id in self._quarantine

    def refuse_quarantined(self, version: AdapterVersion) -> None:
        """Raise AdapterQuarantined for a version that is held."""
        if self.holds(version):
            raise AdapterQuarantined(
                f"{version.ref} is in quarantine, since the engine went wrong after it was loaded:"
                " the administrator must publish it anew"
            )

    @property
    def quarantined(self) -> list[str]:
        """References of the versions that nobody gets until the server is started again."""
        return sorted(version.ref for version in self._quarantine.values())

    async def _sings(self, engine: Respondent) -> bool:
        """Whether every answer begins as it must, at once or when asked again."""
        for _ in range(TRIES):
            try:
                for question, known in self._known.items():
                    answers = await engine.base_answers(question)
                    if any(answer[: len(known)] != known for answer in answers):
                        log.warning("canary_doubts", question=question)
                        break
                else:
                    return True
            except EngineRefusal:  # an engine that cannot answer the base is wrong, too
                continue
        return False


def _common(answers: Sequence[Answer]) -> Answer:
    """The tokens with which all of these begin."""
    return tuple(
        same[0] for same in takewhile(lambda same: len(set(same)) == 1, zip(*answers, strict=False))
    )
