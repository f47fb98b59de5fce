"""The registry for the hot path: a request finds its caller and its adapter in memory.

Owns freshness: a thread asks the registry for its revision and reads again what has changed since,
and nothing else. Refuses changes and the meaning of names; it answers what `Registry` and
`Accounts` would have answered at the moment of its last look.

Bounded staleness: while the database answers, a change made anywhere is seen `poll_seconds` plus
one look later. While it does not, the view goes on with what it knows, however long that takes, and
`stale_seconds` says how old that is. A key's expiry is told by the clock, not by a look.
"""

import hmac
import logging
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from adapters.accounts import Caller, key_digest, key_id_of
from adapters.allowances import Allowance
from adapters.arms import Arm
from adapters.db import now, reading
from adapters.errors import AdapterNotFound, StoreError
from adapters.loading import Revision, read_all, read_changes, read_patch, read_revision
from adapters.registry import AdapterVersion, Registry
from adapters.snapshot import Snapshot, Trial
from adapters.versions import Choice

POLL_SECONDS = 0.25
KEPT_VERSIONS = 4096
"""How many versions that were asked for by number are kept; who asks for more waits for queries."""
CLOSE_SECONDS = 5

log = logging.getLogger(__name__)


class NotInMemory(Exception):
    """Only the database can tell, and the caller did not want to wait for it."""


class RegistryView:
    """`Registry`'s questions answered from memory; any thread may ask, and none waits for another.

    A change of several entries is seen entry by entry, within microseconds. Raises StoreError where
    the registry cannot be read at the beginning.
    """

    def __init__(self, registry: Registry, poll_seconds: float = POLL_SECONDS) -> None:
        self._registry = registry
        self._poll_seconds = poll_seconds
        self._looking = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="registry-view", daemon=True)
        self._seen = time.monotonic()
        self._snapshot, self._revision = self._look_at_all()
        self._numbered: dict[tuple[str, int], AdapterVersion] = {}  # asked for, not active
        self._keeping = threading.Lock()

    # Freshness

    def start(self) -> None:
        """Begin to follow the registry."""
        self._thread.start()

    def close(self) -> None:
        """Follow it no longer; a look that the database does not answer is left behind."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def refresh(self) -> None:
        """Look now: what was changed before this call is seen after it. Raises StoreError."""
        with self._looking:
            began = time.monotonic()
            if not self._follow():
                self._snapshot, self._revision = self._look_at_all()
                self._numbered = {}  # they may be of another history
            self._seen = began

    @property
    def stale_seconds(self) -> float:
        """How old the last successful look is; at most a poll and a look while all is well."""
        return time.monotonic() - self._seen

    @property
    def revision(self) -> int:
        """The id of the newest line of the audit log that has been seen."""
        return self._revision.id

    def _follow(self) -> bool:
        """Read again what has changed; False where everything has to be."""
        with reading(self._registry.engine) as session:
            found = read_changes(session, self._revision)
            if found is None:
                return False
            revision, changed = found
            if changed:
                patch = read_patch(session, self._snapshot, changed)
                if patch is None:
                    return False
                patch.apply(self._snapshot)
        self._revision = revision
        return True

    def _look_at_all(self) -> tuple[Snapshot, Revision]:
        with reading(self._registry.engine) as session:
            return read_all(session), read_revision(session)

    def _poll(self) -> None:
        blind = False
        while not self._stopping.wait(self._poll_seconds):
            try:
                self.refresh()
            except Exception as error:  # the thread must outlive whatever the database does
                if not blind:
                    trace = None if isinstance(error, StoreError) else error
                    log.warning("going on with what is known: %s", error, exc_info=trace)
                blind = True
            else:
                if blind:
                    log.warning("the registry's database answers again")
                blind = False

    # Answers

    def knows(self, adapter_id: str) -> bool:
        """Whether there is an adapter of this name that is not retired."""
        return adapter_id in self._snapshot.adapters

    def resolve(
        self,
        adapter_id: str,
        version: int | None = None,
        *,
        user_id: str | None = None,
        is_admin: bool = False,
        blocking: bool = True,
    ) -> AdapterVersion:
        """The version that this caller gets for this name; without `version` the active one.

        A version that is not active is looked up in the registry once and kept. Raises
        AdapterNotFound, the same whether it is unknown, retired, inactive or forbidden; for that
        one look-up StoreError, or NotInMemory instead of the look-up where not `blocking`.
        """
        snapshot = self._snapshot
        adapter = snapshot.adapters.get(adapter_id)
        if adapter is None or not (is_admin or snapshot.may_use(adapter_id, adapter, user_id)):
            raise AdapterNotFound(adapter_id)
        active = adapter.active
        if active is not None and version in (None, active.version):
            return active
        # The numbers of an adapter's versions have an end, so a made-up one costs nothing.
        if version is None or not 0 < version <= adapter.latest:
            raise AdapterNotFound(adapter_id)
        return self._version(adapter_id, version, blocking)

    def assigned(self, user_id: str) -> Choice:
        """What the user gets when he names nothing; the base where he is unknown.

        An arm's adapter needs no grant, and gives none. Raises AdapterNotFound when what is
        assigned, or his arm, can no longer be used: never the base, or another arm, instead.
        """
        snapshot = self._snapshot
        user = snapshot.users.get(user_id)
        if user is None:
            return Choice(None)
        trial = snapshot.trials.get(user.experiment) if user.experiment is not None else None
        if trial is not None and (arm := trial.experiment.arm_of(user_id)):
            return Choice(_served(snapshot, trial, arm), trial.experiment.label(arm))
        if user.assigned is None:
            return Choice(None)
        return Choice(self.resolve(user.assigned, user_id=user_id))

    def allowance(self, user_id: str) -> Allowance | None:
        """The limits made for this user; None where he has what everybody has."""
        user = self._snapshot.users.get(user_id)
        return user.allowance if user else None

    def keeps_answers(self, user_id: str) -> bool:
        """Whether the user has agreed that the texts of his answers are kept for a while."""
        user = self._snapshot.users.get(user_id)
        return user is not None and user.feedback

    def may_rate(self, user_id: str) -> bool:
        """Whether the user's answers may be kept at all: he has agreed, or is in an experiment."""
        user = self._snapshot.users.get(user_id)
        return user is not None and (user.feedback or user.experiment is not None)

    def usable(self, *, user_id: str | None, is_admin: bool = False) -> Sequence[AdapterVersion]:
        """The active version of every adapter this caller may use, by name."""
        return self._snapshot.usable(user_id, is_admin)

    def verify_key(self, text: str) -> Caller | None:
        """Who the key speaks for; None when it is unknown, wrong, revoked or expired."""
        if (key_id := key_id_of(text)) is None:
            return None
        key = self._snapshot.keys.get(key_id)
        if key is None or not hmac.compare_digest(key.digest, key_digest(text)):
            return None
        if key.expires is not None and key.expires <= now():
            return None
        return Caller(key.role, key.user_id, key_id)

    def _version(self, adapter_id: str, version: int, blocking: bool) -> AdapterVersion:
        kept = self._numbered
        found = kept.get((adapter_id, version))
        if found is not None:
            return found
        if not blocking:
            raise NotInMemory(f"{adapter_id}@{version}")
        found = self._registry.resolve(adapter_id, version, is_admin=True)
        with self._keeping:
            while len(kept) >= KEPT_VERSIONS:
                del kept[next(iter(kept))]
            kept[adapter_id, version] = found
        return found


def _served(snapshot: Snapshot, trial: Trial, arm: Arm) -> AdapterVersion | None:
    """What the arm serves now. Raises AdapterNotFound."""
    if arm.adapter_id is None:
        return None
    adapter = snapshot.adapters.get(arm.adapter_id)
    if adapter is None:
        raise AdapterNotFound(arm.adapter_id)
    version = adapter.active if arm.version is None else trial.numbered.get(arm.name)
    if version is None:
        raise AdapterNotFound(arm.adapter_id)
    return version
