"""The registry in memory: all that resolving needs, as dictionaries of small unchanging entries.

Owns the entries, the indexes over them, and who may use what. Refuses the database (`loading.py`)
and threads (`view.py`). One thread writes and any number read without a lock: an entry is replaced
as a whole, and readers only look names up or copy a set, each a single step of the interpreter.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from adapters.accounts import Role
from adapters.allowances import Allowance
from adapters.arms import Experiment
from adapters.versions import AdapterVersion

T = TypeVar("T")
Index = dict[str, tuple[str, ...] | set[str]]

FEW = 8
"""Up to here a tuple is searched as fast as a set, in a third of its memory."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that is not retired; `latest` is the largest version number it has."""

    active: AdapterVersion | None
    latest: int
    owner: str | None
    public: bool
    users: Collection[str]
    groups: Collection[str]

    def named_users(self) -> set[str]:
        """Who may use it by his own name."""
        return {*self.users, self.owner} if self.owner is not None else set(self.users)


@dataclass(frozen=True, slots=True)
class User:
    assigned: str | None
    groups: Collection[str]
    allowance: Allowance | None = None
    experiment: str | None = None
    feedback: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """An experiment, and the versions of those of its arms that serve one by its number."""

    experiment: Experiment
    numbered: Mapping[str, AdapterVersion]


@dataclass(frozen=True, slots=True)
class Key:
    role: Role
    user_id: str | None
    digest: str
    expires: datetime | None


class Snapshot:
    """What the registry said when it was last looked at. `put_…` with None takes the entry out."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.users: dict[str, User] = {}
        self.keys: dict[str, Key] = {}
        self.trials: dict[str, Trial] = {}
        # Which adapters are open to all, to a user by his name, to a group; and who is in it.
        self._public: set[str] = set()
        self._of_user: Index = {}
        self._of_group: Index = {}
        self._members: Index = {}

    # Reading

    def may_use(self, adapter_id: str, adapter: Adapter, user_id: str | None) -> bool:
        """Whether this user, or nobody in particular, may use the adapter."""
        if adapter.public or user_id is None:
            return adapter.public
        if adapter.owner == user_id or user_id in adapter.users:
            return True
        user = self.users.get(user_id)
        if user is None:
            return False
        # An administrator who assigns an adapter to a user means him to use it.
        return user.assigned == adapter_id or any(g in adapter.groups for g in user.groups)

    def usable(self, user_id: str | None, is_admin: bool) -> list[AdapterVersion]:
        """The active versions of the adapters that he may use, by name."""
        found = []
        for adapter_id in sorted(self._candidates(user_id, is_admin)):
            adapter = self.adapters.get(adapter_id)
            if adapter is None or adapter.active is None:
                continue
            if is_admin or self.may_use(adapter_id, adapter, user_id):
                found.append(adapter.active)
        return found

    def _candidates(self, user_id: str | None, is_admin: bool) -> Iterable[str]:
        if is_admin:
            return self.adapters.copy()
        found = self._public.copy()
        if user_id is None:
            return found
        found.update(self._of_user.get(user_id, ()))
        if user := self.users.get(user_id):
            found.update(*(self._of_group.get(group, ()) for group in user.groups))
            found |= {user.assigned} if user.assigned is not None else set()
        return found

    def members(self, group_id: str) -> set[str]:
        """Who is in the group."""
        return set(self._members.get(group_id, ()))

    # Writing

    def put_adapter(self, adapter_id: str, new: Adapter | None) -> None:
        old = self.adapters.get(adapter_id)
        _place(self.adapters, adapter_id, new)
        if new is not None and new.public:
            self._public.add(adapter_id)
        else:
            self._public.discard(adapter_id)
        before, after = (a.named_users() if a else set() for a in (old, new))
        _reindex(self._of_user, adapter_id, before, after)
        before, after = (set(a.groups) if a else set() for a in (old, new))
        _reindex(self._of_group, adapter_id, before, after)

    def put_user(self, user_id: str, new: User | None) -> None:
        old = self.users.get(user_id)
        _place(self.users, user_id, new)
        before, after = (set(u.groups) if u else set() for u in (old, new))
        _reindex(self._members, user_id, before, after)

    def put_key(self, key_id: str, new: Key | None) -> None:
        _place(self.keys, key_id, new)

    def put_trial(self, experiment_id: str, new: Trial | None) -> None:
        _place(self.trials, experiment_id, new)


def compact(names: Iterable[str]) -> Collection[str]:
    """The names in what takes little memory for few of them and little time for many."""
    few = tuple(names)
    return few if len(few) <= FEW else frozenset(few)


def _place(entries: dict[str, T], name: str, entry: T | None) -> None:
    if entry is None:
        entries.pop(name, None)
    else:
        entries[name] = entry


def _reindex(index: Index, name: str, before: set[str], after: set[str]) -> None:
    """Move `name` from under what it had before to under what it has now."""
    for holder in before - after:
        names = index[holder]
        if isinstance(names, set):
            names.discard(name)
        else:
            names = index[holder] = tuple(n for n in names if n != name)
        if not names:
            del index[holder]
    for holder in after - before:
        names = index.get(holder, ())
        if isinstance(names, set):
            names.add(name)
        else:
            index[holder] = (*names, name) if len(names) < FEW else {*names, name}
