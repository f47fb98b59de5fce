"""The contract of selection, every combination: key × header × model × assignment × grant × state.

What is expected comes from `expected`, which says in its own words what DESIGN's contract says and
knows nothing of the code; what is found comes from the server's own authentication and selection
over a real registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from adapters.accounts import Role
from adapters.base import POCKET, BaseModelInfo, describe_base
from adapters.db import now
from adapters.errors import AdapterError
from adapters.registry import Registry, open_registry
from adapters.view import RegistryView
from server.auth import Authentication
from server.errors import ServerError, error_response
from server.routing import select

from plain_adapter import plain_adapter

BASE = "pocket"
STATES = ("second", "rolled-back", "never-activated", "retired", "unknown")
GRANTS = ("nobody", "owner", "user", "group", "everyone")
ASSIGNMENTS = ("none", "it", "other")
BAD_KEYS = ("no key", "no such key", "expired", "revoked")
KEYS = (
    *BAD_KEYS,
    "user",
    "user for himself",
    "user for another",
    "service",
    "service for the user",
    "service for a stranger",
    "admin",
    "admin for the user",
    "configured admin",
)
# What a header or `model` may say, with X for the adapter in question.
HEADERS = (None, "base", "X", "X@1", "X@2", "X@9", "X@", "Not A Name", "other", "other@1")
MODELS = (None, BASE, "base", "X", "X@1", "X@2", "X@9", f"{BASE}:X", f"{BASE}:X@1", "../X", "other")


@dataclass(frozen=True)
class Case:
    key: str
    header: str | None
    model: str | None
    state: str
    grant: str
    assignment: str

    @property
    def adapter(self) -> str:
        return f"{self.state}/{self.grant}"

    @property
    def user(self) -> str:
        return f"{self.state}.{self.grant}.{self.assignment}"


def expected(case: Case) -> str:
    """The label of the answer, or the status of the refusal."""
    if case.key in BAD_KEYS:
        return "401"
    if case.key == "user for another":
        return "403"
    wishes = [wish for wish in (wished(case.header), wished(case.model)) if wish]
    if "?" in wishes:
        return "404"
    names = {wish.partition("@")[0] for wish in wishes}
    versions = {wish.partition("@")[2] for wish in wishes} - {""}
    if len(names) > 1 or len(versions) > 1:
        return "400"
    if names:
        name, version = names.pop(), "".join(versions)
    else:
        speaks_for_the_user = case.key.endswith(("user", "himself"))
        assigned = case.assignment if speaks_for_the_user else "none"
        name, version = {"none": "base", "it": "X", "other": "other"}[assigned], ""
    if name == "base":
        return "base"
    if name == "other":  # everyone may use it; it has one version
        return "other@1" if version in ("", "1") else "404"
    if not may_use(case):
        return "404"
    return answering(case, version)


def wished(text: str | None) -> str:
    """The adapter and version that a text names, "" for none, "?" where it cannot be a name."""
    if text in (None, BASE):
        return ""
    name = text.removeprefix(f"{BASE}:")
    return "?" if name in ("X@", "Not A Name", "../X") else name


def may_use(case: Case) -> bool:
    if "admin" in case.key or case.grant == "everyone":
        return True
    speaks_for_the_user = case.key.endswith(("user", "himself"))
    return speaks_for_the_user and (case.grant != "nobody" or case.assignment == "it")


def answering(case: Case, version: str) -> str:
    active = {"second": "2", "rolled-back": "1"}
    there = {"second": "12", "rolled-back": "12", "never-activated": "1"}
    number = version or active.get(case.state, "")
    found = number and number in there.get(case.state, "")
    return f"{case.adapter}@{number}" if found else "404"


class Contract:
    """The server's own authentication and selection, over a registry with all of it."""

    def __init__(self, registry: Registry, base: BaseModelInfo, folders: list[Path]) -> None:
        self.registry, self.base, self.folders = registry, base, folders
        accounts = registry.accounts
        accounts.create_user("another")
        registry.groups.create("friends")
        self._publish("other", 1)
        registry.set_grants("other", everyone=True, users=[])
        for state, grant in product(STATES, GRANTS):
            self._adapter(state, grant)
        self.secrets = {
            "no such key": "bapo_0123456789abcdef_nothing",
            "expired": self._key(Role.ADMIN, expires=now() - timedelta(seconds=1)),
            "revoked": self._key(Role.ADMIN),
            "service": self._key(Role.SERVICE),
            "admin": self._key(Role.ADMIN),
            "configured admin": "of-the-settings",
        }
        accounts.revoke_key(self.secrets["revoked"].split("_")[1])
        self.view = RegistryView(registry)
        self.authentication = Authentication(_no_app, self.view, "of-the-settings")

    def _adapter(self, state: str, grant: str) -> None:
        registry, name = self.registry, f"{state}/{grant}"
        users = [Case("", None, None, state, grant, a).user for a in ASSIGNMENTS]
        for user in users:
            registry.accounts.create_user(user)
        if state != "unknown":
            for version in range(1, 2 if state == "never-activated" else 3):
                self._publish(name, version, activate=state != "never-activated")
            if state == "rolled-back":
                registry.rollback(name)
            granted = users if grant in ("user", "owner") else []  # one of them is the owner
            if grant == "group":
                registry.groups.add("friends", users)
            groups = ["friends"] if grant == "group" else []
            registry.set_grants(name, everyone=grant == "everyone", users=granted, groups=groups)
            registry.assign(users[1], name)
        registry.assign(users[2], "other")
        if state == "retired":
            registry.retire(name)

    def _publish(self, name: str, version: int, activate: bool = True) -> None:
        state, _, grant = name.partition("/")
        owner = Case("", None, None, state, grant, "none").user if grant == "owner" else None
        folder = self.folders[version - 1]
        self.registry.publish(name, folder, base=self.base, owner=owner, activate=activate)

    def _key(self, role: Role, **options: object) -> str:
        return self.registry.accounts.create_key(role, **options)[1]  # type: ignore[arg-type]

    def user_key(self, user: str) -> str:
        if user not in self.secrets:
            self.secrets[user] = self._key(Role.USER, user_id=user)
            self.view.refresh()
        return self.secrets[user]

    def found(self, case: Case) -> str:
        kind, _, whom = case.key.partition(" for ")
        sent = {} if kind == "no key" else {"Authorization": f"Bearer {self._secret(kind, case)}"}
        names = {"the user": case.user, "himself": case.user, "another": "another"}
        if whom:
            sent["X-User-Id"] = names.get(whom, "stranger")
        header, model = (w and w.replace("X", case.adapter) for w in (case.header, case.model))
        try:
            caller = self.authentication.caller(Headers(sent))
            version, _ = select(self.view, caller, header, model, BASE)
        except (ServerError, AdapterError) as error:
            return str(error_response(error).status_code)
        return version.ref if version else "base"

    def _secret(self, kind: str, case: Case) -> str:
        return self.user_key(case.user) if kind == "user" else self.secrets[kind]


async def _no_app(*_: object) -> None:
    raise AssertionError("nothing is reached here")


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    work = tmp_path_factory.mktemp("contract")
    base = describe_base(POCKET, name=BASE)
    registry = open_registry(work / "data")
    folders = [plain_adapter(work / f"version-{seed}", base, seed) for seed in (1, 2)]
    yield Contract(registry, base, folders)
    registry.close()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("grant", GRANTS)
def test_every_combination(contract: Contract, state: str, grant: str) -> None:
    assignments = [a for a in ASSIGNMENTS if state != "unknown" or a != "it"]
    cases = [
        Case(key, header, model, state, grant, assignment)
        for key, header, model, assignment in product(KEYS, HEADERS, MODELS, assignments)
    ]
    found = {case: contract.found(case) for case in cases}
    wrong = {case: (found[case], expected(case)) for case in cases if found[case] != expected(case)}
    assert not wrong, f"{len(wrong)} of {len(cases)}, as {next(iter(wrong.items()))}"


def test_the_table_has_every_outcome() -> None:
    """A table that always expected a refusal would prove little."""
    cases = map(
        Case, *zip(*product(KEYS, HEADERS, MODELS, STATES, GRANTS, ASSIGNMENTS), strict=True)
    )
    outcomes = {expected(case) for case in cases}
    assert {"400", "401", "403", "404", "base", "other@1"} < outcomes
    assert {"second/nobody@2", "rolled-back/group@1", "never-activated/owner@1"} < outcomes
    assert not any(label.startswith(("retired/", "unknown/")) for label in outcomes)
