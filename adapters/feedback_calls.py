"""The calls of `bapo feedback …`: on an open registry, and the same on a running server.

Owns two halves with the same methods and answers, for `LocalRegistry` and `RemoteRegistry` to have.
Refuses rules and words for people.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from adapters.pairs import USERS_AT_ONCE, Pair, note_export, users_with_pairs
from adapters.registry import Registry


class LocalFeedback:
    """The part of `LocalRegistry` that is about feedback."""

    _registry: Registry
    _actor: str

    def set_consent(self, user_id: str, keep: bool) -> dict[str, Any]:
        self._registry.feedback.set_consent(user_id, keep, actor=self._actor)
        return {"user": user_id, "keep": keep}

    def pairs(self, user_id: str | None, adapter: str | None) -> Iterator[Pair]:
        """Every pair, user by user, never more than some users' in memory."""
        engine = self._registry.engine
        after: str | None = None
        note_export(engine, user_id, adapter, self._actor)
        which: dict[str, str | None] = {"user_id": user_id, "adapter": adapter}
        while found := users_with_pairs(engine, **which, after=after, limit=USERS_AT_ONCE):
            for _, pairs in found:
                yield from pairs
            after = found[-1][0]


class RemoteFeedback:
    """The part of `RemoteRegistry` that is about feedback."""

    @abstractmethod
    def _call(self, method: str, path: str, **options: Any) -> Any: ...

    def set_consent(self, user_id: str, keep: bool) -> Any:
        return self._call("PUT", f"/admin/users/{user_id}/feedback", json={"keep": keep})

    def pairs(self, user_id: str | None, adapter: str | None) -> Iterator[Pair]:
        """Every pair, user by user, a page at a time."""
        given = {"user": user_id, "adapter": adapter}
        which = {name: value for name, value in given.items() if value is not None}
        more = True
        while more:
            page = self._call("GET", "/admin/feedback", params=which)
            for row in page["data"]:
                which["after"] = row["user"]
                yield from row["pairs"]
            more = page["has_more"]
