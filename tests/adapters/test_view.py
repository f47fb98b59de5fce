"""The view says what the registry says, from memory, and soon after every change."""

import logging
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from adapters import loading, view
from adapters.accounts import Role
from adapters.arms import Arm
from adapters.base import BaseModelInfo
from adapters.db import now, writing
from adapters.errors import AdapterError, AdapterNotFound, AlreadyExists, StoreError
from adapters.registry import AdapterVersion, Registry, open_registry
from adapters.view import NotInMemory, RegistryView

from postgres import Postgres

Publish = Callable[..., AdapterVersion]

ROOT = Path(__file__).resolve().parents[2]
USERS = ("ann", "bob", "cem", "dee")
GROUPS = ("red", "blue")
TRIALS = ("tone", "size")
ADAPTERS = ("one", "two", "ann/three", "four", "five")


class Walk:
    """Random changes to a registry, and random questions to it and to views of it."""

    def __init__(self, registry: Registry, folder: Path, base: BaseModelInfo, seed: int) -> None:
        self.registry = registry
        self.folder = folder
        self.base = base
        self.random = random.Random(seed)
        self.keys: list[tuple[str, str]] = []
        self.done: list[str] = []

    def change(self) -> None:
        """One change; many are refused, which is none."""
        r, pick = self.registry, self.random.choice
        users = self.random.sample(USERS, self.random.randint(0, 3))
        groups = self.random.sample(GROUPS, self.random.randint(0, 2))
        user, group, adapter = pick(USERS), pick(GROUPS), pick(ADAPTERS)
        trial = pick(TRIALS)
        rarely = self.random.random() < 0.2  # or nothing is left to walk among
        changes: list[tuple[int, str, Callable[[], object]]] = [
            (3, f"create {user}", lambda: r.accounts.create_user(user)),
            (1, f"delete {user}", lambda: r.accounts.delete_user(user)),
            (2, f"key for {user}", lambda: self._key(user)),
            (1, "a key less", lambda: r.accounts.revoke_key(pick(self.keys)[0])),
            (3, f"create {group}", lambda: r.groups.create(group)),
            (1, f"delete {group}", lambda: r.groups.delete(group)),
            (4, f"{group} with {users}", lambda: r.groups.add(group, users)),
            (2, f"{group} without {users}", lambda: r.groups.remove(group, users)),
            (2, f"publish {adapter}", lambda: self._publish(adapter, user)),
            (2, f"activate {adapter}", lambda: r.activate(adapter, self.random.randint(1, 4))),
            (1, f"roll back {adapter}", lambda: r.rollback(adapter)),
            (1, f"retire {adapter}", lambda: self._retire(adapter, rarely)),
            (3, f"assign {user}", lambda: r.assign(user, pick((adapter, adapter, None)))),
            (2, f"experiment {trial}", lambda: self._experiment(trial, adapter)),
            (3, f"enrol {users} in {trial}", lambda: r.experiments.enrol(trial, users=users)),
            (3, f"start {trial}", lambda: r.experiments.start(trial)),
            (1, f"stop {trial}", lambda: r.experiments.stop(trial)),
            (1, f"conclude {trial}", lambda: r.experiments.conclude(trial, pick((None, "a", "b")))),
            (1, f"delete {trial}", lambda: r.experiments.delete(trial)),
            (
                4,
                f"grant {adapter} to {users} {groups} {rarely}",
                lambda: r.set_grants(adapter, everyone=rarely, users=users, groups=groups),
            ),
        ]
        weights = [weight for weight, *_ in changes]
        ((_, name, change),) = self.random.choices(changes, weights)
        with suppress(AdapterError, IndexError):
            change()
            self.done.append(name)

    def _key(self, user: str) -> None:
        hours = self.random.choice((None, None, -1, 1))
        expires = None if hours is None else now() + timedelta(hours=hours)
        role, who = self.random.choice(
            ((Role.USER, user), (Role.SERVICE, user), (Role.SERVICE, None), (Role.ADMIN, None))
        )
        made = self.registry.accounts.create_key(role, who, expires)
        self.keys.append(made)

    def _experiment(self, trial: str, adapter: str) -> None:
        """Made, or, where it is there, with other weights or (a draft) other arms."""
        other = self.random.choice(("base", f"{adapter}@{self.random.randint(1, 4)}"))
        arms = [
            Arm.of("a", adapter, self.random.randint(0, 3)),
            Arm.of("b", other, self.random.randint(1, 3)),
        ]
        try:
            self.registry.experiments.create(trial, arms)
        except AlreadyExists:
            self.registry.experiments.set_arms(trial, arms)

    def _retire(self, adapter: str, rarely: bool) -> None:
        if rarely:
            self.registry.retire(adapter)

    def _publish(self, adapter: str, user: str) -> None:
        owner, activate = self.random.choice((user, None)), self.random.random() < 0.6
        self.registry.publish(adapter, self.folder, base=self.base, owner=owner, activate=activate)

    def compare(self, seen: RegistryView) -> None:
        """For every caller what he may use, is assigned and has as keys; and some single names."""
        for user in (*USERS, "nobody", None):
            for is_admin in (False, True):
                rights = {"user_id": user, "is_admin": is_admin}
                self._same(self.registry.usable, seen.usable, **rights)
                adapter = self.random.choice((*ADAPTERS, "six", "no name!"))
                version = self.random.choice((None, None, 0, 1, 2, 3, 9, 10**30))
                self._same(self.registry.resolve, seen.resolve, adapter, version, **rights)
            if user is not None:
                self._same(self.registry.assigned, seen.assigned, user)
        for _, secret in (*self.keys[-8:], ("", "bapo_x_y"), ("", "bapo_x"), ("", "")):
            for presented in (secret, secret + "x", secret.upper()):
                self._same(self.registry.accounts.verify_key, seen.verify_key, presented)

    def _same(
        self, truth: Callable[..., object], seen: Callable[..., object], *words: Any, **rights: Any
    ) -> None:
        expected, found = outcome(truth, *words, **rights), outcome(seen, *words, **rights)
        assert found == expected, (truth.__name__, words, rights, self.done[-10:])


def outcome(ask: Callable[..., object], *words: Any, **rights: Any) -> object:
    """The answer, or which error and in what words."""
    try:
        return ask(*words, **rights)
    except AdapterNotFound as error:
        return type(error), str(error)


@contextmanager
def queries(registry: Registry) -> Iterator[list[str]]:
    """The statements that the database is asked meanwhile."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    event.listen(registry.engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(registry.engine, "before_cursor_execute", note)


def test_after_every_change_the_view_is_the_registry(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo, database_url: str | None
) -> None:
    """One view follows each change, one several at a time, and neither ever begins anew."""
    walk = Walk(registry, craft(), base, seed=1)
    close, far = RegistryView(registry), RegistryView(registry)
    snapshots = close._snapshot, far._snapshot
    steps = 400 if database_url is None else 120  # slower there, and the queries are the same
    for step in range(steps):
        walk.change()
        close.refresh()
        if step % 5 == 0:
            walk.compare(close)
        if step % 20 == 19:
            far.refresh()
            walk.compare(far)
    assert (close._snapshot, far._snapshot) == snapshots
    begun_late = RegistryView(registry)
    walk.compare(begun_late)
    # The indexes hold what the entries say, and nothing that is gone.
    assert vars(close._snapshot).keys() == vars(begun_late._snapshot).keys()
    for name, value in vars(begun_late._snapshot).items():
        assert unordered(getattr(close._snapshot, name)) == unordered(value), name
    assert len(walk.done) > steps / 5


def unordered(entries: Any) -> Any:
    """An index or a dictionary of entries without the order of what they list."""
    if not isinstance(entries, dict):
        return entries
    return {k: sorted(v) if isinstance(v, tuple | set) else repr(v) for k, v in entries.items()}


def test_too_many_changes_are_read_as_a_whole(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo, monkeypatch: Any
) -> None:
    monkeypatch.setattr(loading, "MOST_CHANGES", 3)
    walk = Walk(registry, craft(), base, seed=3)
    seen = RegistryView(registry)
    before = seen._snapshot
    for _ in range(40):
        walk.change()
    seen.refresh()
    assert seen._snapshot is not before
    walk.compare(seen)


def test_without_a_change_a_look_is_one_query(registry: Registry) -> None:
    registry.accounts.create_user("ann")
    seen = RegistryView(registry)
    with queries(registry) as asked:
        seen.refresh()
    assert len([statement for statement in asked if statement.startswith("SELECT")]) == 1


def test_answers_need_no_query(registry: Registry, publish: Publish) -> None:
    registry.accounts.create_user("ann")
    _, secret = registry.accounts.create_key(Role.USER, "ann")
    made = publish("concise", owner="ann", activate=True)
    registry.assign("ann", "concise")
    seen = RegistryView(registry)
    with queries(registry) as asked:
        caller = seen.verify_key(secret)
        assert caller is not None
        assert seen.resolve("concise", user_id=caller.user_id) == made
        assert seen.resolve("concise", 1, user_id="ann") == made
        assert seen.assigned("ann") == (made, None)
        assert seen.usable(user_id="ann") == [made]
        for name in ("nothing", "concise"):
            with pytest.raises(AdapterNotFound):
                seen.resolve(name, user_id="bob")
    assert asked == []


def test_every_way_to_an_adapter(registry: Registry, publish: Publish) -> None:
    registry.accounts.create_user("ann")
    registry.groups.create("red")
    registry.groups.add("red", ["ann"])
    made = [
        publish(name, seed=1, owner="ann" if name == "owned" else None, activate=True)
        for name in ("assigned", "granted", "of-group", "owned", "public", "secret")
    ]
    registry.set_grants("granted", everyone=False, users=["ann"])
    registry.set_grants("of-group", everyone=False, users=[], groups=["red"])
    registry.set_grants("public", everyone=True, users=[])
    registry.assign("ann", "assigned")
    seen = RegistryView(registry)
    assert seen.usable(user_id="ann") == made[:5]
    assert seen.usable(user_id="bob") == seen.usable(user_id=None) == made[4:5]
    assert seen.usable(user_id=None, is_admin=True) == made
    for version in made[:5]:
        assert seen.resolve(version.adapter_id, user_id="ann") == version


def test_an_older_version_is_looked_up_once(registry: Registry, publish: Publish) -> None:
    made = [publish(activate=True) for _ in range(3)]
    seen = RegistryView(registry)
    with pytest.raises(NotInMemory):
        seen.resolve("concise", 1, is_admin=True, blocking=False)
    with queries(registry) as asked:
        assert seen.resolve("concise", 1, is_admin=True) == made[0]
        assert seen.resolve("concise", 1, is_admin=True, blocking=False) == made[0]
    assert len([statement for statement in asked if statement.startswith("SELECT")]) == 1
    with pytest.raises(AdapterNotFound):  # kept, but not for everyone
        seen.resolve("concise", 1, user_id="bob", blocking=False)
    registry.retire("concise")
    seen.refresh()
    with pytest.raises(AdapterNotFound):
        seen.resolve("concise", 1, is_admin=True, blocking=False)


def test_made_up_numbers_cost_no_query_and_no_memory(registry: Registry, publish: Publish) -> None:
    publish(activate=True)
    seen = RegistryView(registry)
    with queries(registry) as asked:
        for number in (-1, 0, *range(2, 500), 10**30):
            with pytest.raises(AdapterNotFound):
                seen.resolve("concise", number, is_admin=True)
    assert asked == []
    assert seen._numbered == {}


def test_kept_versions_are_bounded(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "KEPT_VERSIONS", 2)
    for _ in range(5):
        publish(seed=1, activate=True)
    seen = RegistryView(registry)
    for number in (1, 2, 3, 4, 1):
        assert seen.resolve("concise", number, is_admin=True).version == number
    assert list(seen._numbered) == [("concise", 4), ("concise", 1)]


def test_a_key_expires_without_a_look(registry: Registry) -> None:
    _, secret = registry.accounts.create_key(Role.ADMIN, expires=now() + timedelta(seconds=0.5))
    seen = RegistryView(registry)
    assert seen.verify_key(secret) is not None
    time.sleep(0.6)
    assert seen.verify_key(secret) is None


# Revokes keys as another server would: opens the registry, then one key for each line it reads.
REVOKER = """
import sys, time
from pathlib import Path
from adapters.registry import open_registry

registry = open_registry(Path(sys.argv[1]), sys.argv[2] or None)
print("ready", flush=True)
for line in sys.stdin:
    registry.accounts.revoke_key(line.strip())
    print(time.time(), flush=True)
"""


def test_a_key_revoked_elsewhere_is_refused_within_a_second(
    registry: Registry, tmp_path: Path, database_url: str | None
) -> None:
    command = [sys.executable, "-W", "error", "-c", REVOKER, str(tmp_path / "data")]
    keys = [registry.accounts.create_key(Role.ADMIN) for _ in range(5)]
    delays = []
    with (
        subprocess.Popen(
            [*command, database_url or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as other,
        RegistryView(registry) as seen,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for key_id, secret in keys:
            assert seen.verify_key(secret) is not None
            other.stdin.write(f"{key_id}\n")
            other.stdin.flush()
            revoked = float(other.stdout.readline())
            while seen.verify_key(secret) is not None:
                assert time.time() < revoked + 5
                time.sleep(0.002)
            delays.append(time.time() - revoked)
        other.stdin.close()
    assert max(delays) < 1, delays


def test_readers_see_whole_entries_while_the_view_follows(
    registry: Registry, publish: Publish
) -> None:
    """Every answer is a version that was active, and rights never appear that were never given."""
    registry.accounts.create_user("ann")
    made = [publish(seed=seed, activate=True) for seed in (1, 2)]
    registry.set_grants("concise", everyone=False, users=["ann"])
    wrong: list[object] = []
    over = threading.Event()
    with RegistryView(registry, poll_seconds=0.001) as seen:

        def read() -> None:
            while not over.is_set():
                found = seen.resolve("concise", user_id="ann"), *seen.usable(user_id="ann")
                wrong.extend(answer for answer in found if answer not in made)
                if seen.usable(user_id="bob"):
                    wrong.append("bob")
                time.sleep(0.0002)  # or they keep the interpreter from the one that follows

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(30):
            registry.activate("concise", 1 + number % 2)
            registry.set_grants("concise", everyone=False, users=["ann"])
        over.set()
        for reader in readers:
            reader.join()
    assert wrong == []


def test_a_database_that_is_away_and_back(
    registry: Registry, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    """A table under another name stands for every failure of a query."""
    _, secret = registry.accounts.create_key(Role.ADMIN)
    made = publish(activate=True)
    with RegistryView(registry, poll_seconds=0.02) as seen:
        alter(registry, "audit", "audit_away")
        wait_until(lambda: seen.stale_seconds > 0.2)
        assert seen.verify_key(secret) is not None
        assert seen.resolve("concise", is_admin=True) == made
        with pytest.raises(StoreError, match="does not answer"):
            seen.refresh()
        alter(registry, "audit_away", "audit")
        wait_until(lambda: seen.stale_seconds < 0.1)
        newer = publish(activate=True)
        wait_until(lambda: seen.resolve("concise", is_admin=True) == newer)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "does not answer" in caplog.records[0].message
    assert secret not in caplog.text


def test_a_server_that_is_stopped_and_started(
    postgres_server: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    registry = open_registry(tmp_path / "data", postgres_url)
    keys = [registry.accounts.create_key(Role.ADMIN) for _ in range(2)]
    with RegistryView(registry, poll_seconds=0.02) as seen:
        postgres_server.stop()
        try:
            wait_until(lambda: seen.stale_seconds > 0.3)
            assert all(seen.verify_key(secret) is not None for _, secret in keys)
        finally:
            postgres_server.start()
        registry.accounts.revoke_key(keys[0][0])
        wait_until(lambda: seen.verify_key(keys[0][1]) is None)
        assert seen.verify_key(keys[1][1]) is not None
        wait_until(lambda: seen.stale_seconds < 0.2)
    registry.close()


def alter(registry: Registry, table: str, name: str) -> None:
    with writing(registry.engine) as session:
        session.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_backup_put_back_is_read_as_a_whole(tmp_path: Path) -> None:
    """Also where the log has grown again beyond the line that was read last."""
    registry = open_registry(tmp_path / "data")
    file = tmp_path / "data" / "registry.sqlite3"
    registry.accounts.create_user("ann")
    copy(file, tmp_path / "saved")
    _, of_the_lost_past = registry.accounts.create_key(Role.USER, "ann")
    seen = RegistryView(registry)
    assert seen.verify_key(of_the_lost_past) is not None
    copy(tmp_path / "saved", file)
    _, secret = registry.accounts.create_key(Role.USER, "ann")
    registry.accounts.create_user("bob")
    seen.refresh()
    assert seen.verify_key(of_the_lost_past) is None
    assert seen.verify_key(secret) is not None
    registry.close()


def copy(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()


def test_there_is_no_view_of_nothing(registry: Registry) -> None:
    alter(registry, "audit", "audit_away")
    with pytest.raises(StoreError):
        RegistryView(registry)


def test_closing_ends_the_looking(registry: Registry) -> None:
    with RegistryView(registry, poll_seconds=0.01) as seen:
        wait_until(lambda: seen.stale_seconds < 0.02)
    assert not [t for t in threading.enumerate() if t.name == "registry-view"]
