"""What can go wrong with adapters, in words for the person who asked.

    AdapterError
    ├── InvalidAdapter           an upload or folder is no acceptable LoRA; see .problems
    │   └── IncompatibleBase     it is one, for another base model
    ├── BaseModelError           the base model's folder cannot be described
    ├── InvalidName              an adapter, user or key field is badly formed or reserved
    ├── InvalidFeedback          a text, or what is said of an answer, makes no sense
    ├── NotFound
    │   ├── AdapterNotFound
    │   ├── VersionNotFound
    │   ├── UserNotFound
    │   ├── GroupNotFound
    │   ├── ExperimentNotFound
    │   ├── AnswerNotFound       no answer of this user's, or it is no longer kept
    │   └── KeyNotFound
    ├── Forbidden                the caller may not; shown to strangers as AdapterNotFound
    ├── Conflict
    │   ├── VersionConflict      the active version is not the expected one
    │   ├── AlreadyExists
    │   ├── QuotaExceeded        the owner keeps as much as he may
    │   ├── TextsNotKept         the user has not agreed to it, or there is no text
    │   └── GateRefused          the version has not passed the gate that is required
    └── StoreError               bytes or rows cannot be kept or read back
        ├── StoreFull
        ├── CorruptArtifact
        └── InvalidExport        a folder or an archive is no whole export of a registry

Owns the tree and the wording of lists. Refuses HTTP: the server has the table from meaning
to status. `str(error)` is always fit for the caller's eyes and says what to do.
"""

from collections.abc import Sequence

SHOWN_PROBLEMS = 12


class AdapterError(Exception):
    """Anything in this room that the caller can mend."""


class InvalidAdapter(AdapterError):
    """A folder is not an adapter that can be served; `problems` has one clause each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__(f"{self.opening}: {_joined(self.problems)}.")

    opening = "This adapter cannot be served"


class IncompatibleBase(InvalidAdapter):
    """The adapter is sound but was made for another base model."""

    opening = "This adapter does not fit the base model"


class BaseModelError(AdapterError):
    """A base model's folder is missing, unreadable or not in safetensors."""


class InvalidName(AdapterError):
    """A name or field given by the caller is badly formed or reserved."""


class InvalidFeedback(AdapterError):
    """What is said of an answer, or one of its texts, cannot be taken."""


class NotFound(AdapterError):
    """What was named does not exist, as far as this caller may know."""


class AdapterNotFound(NotFound):
    """No such adapter for this caller."""

    def __init__(self, adapter_id: str, reason: str = "does not exist") -> None:
        self.adapter_id = adapter_id
        super().__init__(f"The adapter '{adapter_id}' {reason}.")


class VersionNotFound(NotFound):
    """The adapter exists, this version of it does not."""


class UserNotFound(NotFound):
    """No such user."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        super().__init__(f"The user '{user_id}' does not exist.")


class GroupNotFound(NotFound):
    """No such group."""

    def __init__(self, group_id: str) -> None:
        self.group_id = group_id
        super().__init__(f"The group '{group_id}' does not exist.")


class ExperimentNotFound(NotFound):
    """No such experiment."""

    def __init__(self, experiment_id: str) -> None:
        self.experiment_id = experiment_id
        super().__init__(f"The experiment '{experiment_id}' does not exist.")


class AnswerNotFound(NotFound):
    """No answer of this user's that can be rated; another user's looks the same."""

    def __init__(self, completion_id: str) -> None:
        self.completion_id = completion_id
        super().__init__(
            f"There is no answer {completion_id[:80]!r} that can be rated: answers are kept for a"
            " while, and only for users who agreed to that or take part in an experiment."
        )


class KeyNotFound(NotFound):
    """No such API key."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(f"The API key '{key_id}' does not exist.")


class Forbidden(AdapterError):
    """The caller may not do this."""


class Conflict(AdapterError):
    """The request does not fit the present state."""


class VersionConflict(Conflict):
    """The active version is another one than the caller expected."""


class AlreadyExists(Conflict):
    """What was to be created is there already."""


class QuotaExceeded(Conflict):
    """The owner already keeps as many versions, or bytes, as he may."""


class TextsNotKept(Conflict):
    """Nothing can be learned from it: the user has not agreed to it, or there is no text."""


class GateRefused(Conflict):
    """The version may not be activated: no trusted verdict says that it passed the gate."""


class StoreError(AdapterError):
    """Bytes or rows could not be kept or read back."""


class StoreFull(StoreError):
    """No space is left where adapters are kept."""


class CorruptArtifact(StoreError):
    """Stored bytes are not the bytes that were stored."""


class InvalidExport(StoreError):
    """What should be the export of a registry is not one, or not all of one."""


def _joined(problems: Sequence[str]) -> str:
    shown = "; ".join(problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    return f"{shown}; and {more} more" if more > 0 else shown
