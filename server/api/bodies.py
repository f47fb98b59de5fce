"""The shapes of the admin API's answers, for its OpenAPI document and the clients made from it.

Owns the server's side of `adapters/shapes.py`, which fills them; a route names one as its
`response_model`. What a request may say stands beside the route that reads it.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from adapters.accounts import Role
from adapters.arms import State

T = TypeVar("T")

MADE = Field(description="when it was made, ISO 8601, UTC")


class _Answer(BaseModel):
    """Later versions may say more: clients must not stumble over a field that they do not know."""

    model_config = ConfigDict(extra="allow")


class Page(_Answer, Generic[T]):
    """Some or all of a list; `after` the last one's name (or id) begins the next page."""

    data: list[T]
    has_more: bool = False


class VersionBody(_Answer):
    """A version: what it is made of and what requests call it."""

    adapter: str
    version: int
    ref: str = Field(description="`<adapter>@<version>`")
    digest: str
    rank: int
    bytes: int
    created: str = MADE


class ListedVersion(_Answer):
    version: int
    digest: str
    rank: int
    bytes: int
    created: str = MADE
    manifest: dict[str, Any] | None = Field(description="`manifest.json`, as it was published")


class AdapterBody(_Answer):
    adapter: str
    active_version: int | None
    owner: str | None
    public: bool
    created: str = MADE


class AdapterDetails(AdapterBody):
    granted_to: list[str]
    granted_to_groups: list[str]
    versions: list[ListedVersion]


class UserName(_Answer):
    id: str


class UserBody(_Answer):
    id: str
    assigned: str | None
    feedback: bool = Field(description="whether he agreed that texts of his answers are kept")
    created: str = MADE


class KeyBody(_Answer):
    """The only answer that has the key itself."""

    id: str
    key: str
    role: Role
    expires: str | None = Field(description="ISO 8601, UTC; null: never")


class AssignmentBody(_Answer):
    user: str
    adapter: str | None = None


class ConsentBody(_Answer):
    user: str
    keep: bool = Field(description="whether the texts of his answers are kept for a while")


class FeedbackBody(_Answer):
    object: Literal["feedback"] = "feedback"
    learnable: bool = Field(description="whether its texts are kept, for training to read")
    completion_id: str | None = None
    choice: int | None = None
    rating: Literal["up", "down"] | None = None
    answered_by: str | None = Field(None, description="`<adapter>@<version>`, or `base`")


class TurnBody(_Answer):
    role: str
    content: str


class PairBody(_Answer):
    """A preference pair as TRL and `bapo train` read it."""

    prompt: list[TurnBody]
    chosen: list[TurnBody]
    rejected: list[TurnBody]
    user_id: str


class UserPairs(_Answer):
    user: str
    pairs: list[PairBody]


class FigureBody(_Answer):
    """With its interval; null where there is no case."""

    value: float | None
    low: float
    high: float


class ArmResults(_Answer):
    name: str
    adapter: str
    users: int = Field(description="who would get it now")
    raters: int = Field(description="users who have rated an answer of it")
    rated: int
    liked: int
    win_rate: FigureBody = Field(description="liked / rated, Wilson's interval")
    by_user: FigureBody = Field(description="mean over raters of each one's own win rate")


class ComparisonBody(_Answer):
    """Two arms by their raters' own win rates."""

    arm: str
    against: str
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float = Field(description="as it counts when all of these were looked at")
    raters: int = Field(description="of both arms")


class ResultsBody(_Answer):
    experiment: str
    state: str
    confidence: float
    moved: int = Field(
        description="users with ratings in several arms, after weights were changed: they count in"
        " the first"
    )
    arms: list[ArmResults]
    comparisons: list[ComparisonBody] = Field(description="each arm against the first")


class GroupBody(_Answer):
    id: str
    members: list[str]
    created: str = MADE


class QuotaBody(_Answer):
    owner: str
    max_versions: int | None
    max_bytes: int | None


class UsageBody(_Answer):
    versions: int
    bytes: int


class QuotaAndUsage(QuotaBody):
    usage: UsageBody


class BoundsBody(_Answer):
    """A user's own limits; null is as for everybody."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    streams: int | None
    tokens_per_month: int | None


class SpentBody(_Answer):
    month: str = Field(description="`2026-11`, UTC")
    prompt_tokens: int
    completion_tokens: int


class LimitsBody(_Answer):
    user: str
    limits: BoundsBody
    used: SpentBody


class ArmBody(_Answer):
    name: str
    adapter: str = Field(description="`base`, an adapter, or `<adapter>@<version>`")
    weight: int


class ExperimentBody(_Answer):
    id: str
    state: State
    arms: list[ArmBody]
    winner: str | None
    created: str = MADE
    started: str | None
    ended: str | None


class ExperimentDetails(ExperimentBody):
    users: int = Field(description="how many take part")


class EnrolledBody(_Answer):
    experiment: str
    added: int = Field(description="users who did not take part before")


class AuditBody(_Answer):
    """A line of the audit log."""

    id: int
    at: str
    actor: str
    action: str
    subject: str
    details: dict[str, Any]


class CollectedBody(_Answer):
    removed: int
    bytes: int
    in_use: int


class VerifiedBody(_Answer):
    stored: int
    damaged: dict[str, str] = Field(description="digest → what is wrong with it")


class TransferBody(_Answer):
    """What an import brought."""

    rows: dict[str, int] = Field(description="by table")
    blobs: int
    bytes: int


class SlotsBody(_Answer):
    total: int
    running: int
    waiting: int


class MemoryBody(_Answer):
    bytes: int
    limit: int


class EngineBody(_Answer):
    model: str
    restarts: int
    slots: SlotsBody
    memory: MemoryBody
    resident: list[str]
    quarantined: list[str]
    in_host_memory: int
    in_slots: int


class HealthBody(_Answer):
    status: Literal["live", "ready"]
    model: str | None = None


class ErrorDetail(_Answer):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(_Answer):
    """OpenAI's shape of an error, all four keys."""

    error: ErrorDetail


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Refused: what is wrong, in one sentence"},
    "5XX": {"model": ErrorBody, "description": "Not possible now; 503 says when to come back"},
}
"""What every route may answer besides."""


def answers(whole: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What an inference route answers: a whole body or, with `stream`, server-sent events."""
    label = {"description": "`<adapter>@<version>`, or `base`", "schema": {"type": "string"}}
    return {
        200: {
            "model": whole,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "headers": {"X-Adapter-Id": label},
        }
    }
