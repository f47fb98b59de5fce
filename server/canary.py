"""Is the engine still itself? One question to the base, again and again, with a known answer.

Owns the question, the known answer and the quarantine, which outlive an engine, and what follows a
wrong answer: the newest adapter goes into quarantine, and the engine has to go. An adapter with
poisonous numbers spoils everybody's answers for as long as the engine lives; validation keeps such
adapters out, and this is for what it has not thought of. An answer counts as wrong only when it is
so several times in a row: in a batch, rounding may tip a close choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog

from adapters.registry import AdapterVersion
from server.errors import AdapterQuarantined

log = structlog.get_logger(__name__)

QUESTION = "What is the capital of Norway?"
TRIES = 3


class Respondent(Protocol):
    """An engine that can be asked."""

    async def base_answer(self, question: str) -> tuple[int, ...]:
        """The base's greedy answer, token ids; computed anew, nothing of it from a cache."""


class Canary:
    """One for the server, whatever engine it has."""

    def __init__(self) -> None:
        self._known: tuple[int, ...] = ()
        self._proved: frozenset[int] = frozenset()
        self._quarantine: dict[int, AdapterVersion] = {}

    async def greet(self, engine: Respondent) -> None:
        """Ask a new engine. Raises RuntimeError where it answers otherwise than the first one."""
        self._proved = frozenset()
        if not self._known:
            self._known = await engine.base_answer(QUESTION)
        elif not await self._sings(engine):
            raise RuntimeError("the new engine does not answer as the first one did")

    async def listen(self, engine: Respondent, loaded: Sequence[AdapterVersion]) -> bool:
        """Whether the engine may stay; if not, one of the `loaded` versions is in quarantine.

        It is the newest of those that came since the last right answer.
        """
        if await self._sings(engine):
            self._proved = frozenset(version.engine_id for version in loaded)
            return True
        suspects = [v for v in loaded if v.engine_id not in self._proved] or list(loaded)
        newest = max(suspects, key=lambda version: version.engine_id, default=None)
        if newest is not None:
            self._quarantine[newest.engine_id] = newest
        log.error("canary_wrong", quarantined=newest and newest.ref)
        return False

    def refuse_quarantined(self, version: AdapterVersion) -> None:
        """Raise AdapterQuarantined for a version that is held."""
        if version.engine_id in self._quarantine:
            raise AdapterQuarantined(
                f"{version.ref} is in quarantine, since the engine went wrong after it was loaded:"
                " the administrator must publish it anew"
            )

    @property
    def quarantined(self) -> list[str]:
        """References of the versions that nobody gets until the server is started again."""
        return sorted(version.ref for version in self._quarantine.values())

    async def _sings(self, engine: Respondent) -> bool:
        for _ in range(TRIES):
            if await engine.base_answer(QUESTION) == self._known:
                return True
        return False
