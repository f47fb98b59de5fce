"""`/v1/feedback` and `/v1/feedback/consent`: what a user says of his answers, what may be kept.

A user's key speaks for its user, a service's or administrator's for whom `X-User-Id` names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from adapters.accounts import Caller
from adapters.errors import AnswerNotFound
from adapters.feedback import LONGEST_ID, MOST_CHOICES, AnswerRef
from adapters.names import AdapterRef
from adapters.registry import Registry
from server.api.bodies import ConsentBody, FeedbackBody
from server.dependencies import CallerDep, KeepingDep, RegistryDep, ViewDep
from server.errors import BadRequest
from server.keeping import WRITE_SECONDS, Keeping

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])

T = TypeVar("T")
MOST_TURNS = 1000


class Turn(BaseModel):
    role: str
    content: str


class AnswerName(BaseModel):
    model_config = ConfigDict(extra="forbid")

    completion_id: str = Field(max_length=LONGEST_ID, description="the `id` of the answer")
    choice: int = Field(0, ge=0, le=MOST_CHOICES, description="`index` of the choice in it")

    @property
    def ref(self) -> AnswerRef:
        return AnswerRef(self.completion_id, self.choice)


class NewFeedback(BaseModel):
    """A rating of one answer, or a preference between two."""

    model_config = ConfigDict(extra="forbid")

    completion_id: str | None = Field(
        None, max_length=LONGEST_ID, description="the `id` of the answer that is rated"
    )
    choice: int = Field(0, ge=0, le=MOST_CHOICES, description="`index` of the choice in it")
    rating: Literal["up", "down"] | None = None
    correction: str | None = Field(
        None, description="what the answer should have been; alone it counts as `down`"
    )
    chosen: AnswerName | str | None = Field(
        None, description="the better one of two answers, by name or as text"
    )
    rejected: AnswerName | str | None = Field(None, description="the other one, in the same form")
    prompt: str | list[Turn] | None = Field(
        None, description="what two texts are answers to: a user's message, or messages"
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> NewFeedback:
        compares = self.chosen is not None and self.rejected is not None
        texts = isinstance(self.chosen, str) and isinstance(self.rejected, str)
        names = isinstance(self.chosen, AnswerName) and isinstance(self.rejected, AnswerName)
        rates = self.completion_id is not None and (self.rating or self.correction is not None)
        others = {"chosen", "rejected", "prompt"} if rates else {"completion_id", "choice"}
        others |= set() if rates else {"rating", "correction"}
        stray = others & self.model_fields_set
        if bool(rates) == compares or stray or (compares and texts != (self.prompt is not None)):
            raise ValueError(
                "give completion_id with rating (up or down) or correction; or chosen and rejected,"
                " both as {completion_id, choice}, or both as texts with their prompt"
            )
        if compares and not (texts or names):
            raise ValueError("chosen and rejected must both be named, or both be texts")
        if isinstance(self.prompt, list) and len(self.prompt) > MOST_TURNS:
            raise ValueError(f"the prompt has more than {MOST_TURNS} messages")
        return self


class Consent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep: bool = Field(description="false: no more, and forget what has been kept")


@router.post("", response_model=FeedbackBody, response_model_exclude_none=True)
async def give_feedback(
    said: NewFeedback,
    caller: CallerDep,
    registry: RegistryDep,
    view: ViewDep,
    keeping: KeepingDep,
) -> dict[str, Any]:
    """Rate an answer of this user's, correct it, or prefer one to another; again, to change it."""
    user_id = _user(caller)

    def take() -> dict[str, Any]:
        return _take(registry, user_id, said)

    if view.may_rate(user_id):
        return await _when_written(keeping, take)
    return await run_in_threadpool(take)


@router.get("/consent", response_model=ConsentBody)
async def get_consent(caller: CallerDep, view: ViewDep) -> dict[str, Any]:
    """Whether the texts of this user's answers are kept for a while."""
    user_id = _user(caller)
    return {"user": user_id, "keep": view.keeps_answers(user_id)}


@router.put("/consent", response_model=ConsentBody)
async def set_consent(consent: Consent, caller: CallerDep, registry: RegistryDep) -> dict[str, Any]:
    """Agree, or withdraw: then every text of this user's is forgotten before the answer comes."""
    user_id = _user(caller)

    def change() -> None:
        registry.feedback.set_consent(user_id, consent.keep, actor=caller.key_id)

    await run_in_threadpool(change)
    return {"user": user_id, "keep": consent.keep}


def _user(caller: Caller) -> str:
    if caller.user_id is None:
        raise BadRequest("feedback is a user's: use his key, or name him with X-User-Id")
    return caller.user_id


def _take(registry: Registry, user_id: str, said: NewFeedback) -> dict[str, Any]:
    feedback = registry.feedback
    if said.completion_id is not None:
        answer, good = AnswerRef(said.completion_id, said.choice), said.rating == "up"
        rating = feedback.rate(user_id, answer, good, said.correction)
        return {
            "learnable": rating.has_texts,
            "completion_id": said.completion_id,
            "choice": said.choice,
            "rating": "up" if good else "down",
            "answered_by": str(AdapterRef(rating.adapter, rating.version)),
        }
    chosen, rejected = said.chosen, said.rejected
    if isinstance(chosen, AnswerName) and isinstance(rejected, AnswerName):
        feedback.prefer_answer(user_id, chosen.ref, rejected.ref)
    elif isinstance(chosen, str) and isinstance(rejected, str) and said.prompt is not None:
        turns = said.prompt
        prompt = turns if isinstance(turns, str) else [turn.model_dump() for turn in turns]
        feedback.prefer_text(user_id, prompt, chosen, rejected)
    return {"learnable": True}


async def _when_written(keeping: Keeping, call: Callable[[], T]) -> T:
    """What is said of an answer that has just gone out may be faster than the answer's row."""
    for wait in (keeping.flush, _others_have_written):
        try:
            return await run_in_threadpool(call)
        except AnswerNotFound:
            await wait()
    return await run_in_threadpool(call)


async def _others_have_written() -> None:
    await asyncio.sleep(2 * WRITE_SECONDS)
