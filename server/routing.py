"""Which adapter does a request mean, and is it ready? The selection rule of the contract.

First that applies: the adapter header → `model` naming an adapter → the calling user's
assignment → the base. Header and `model` naming two different adapters is an error, and an
adapter that the caller may not use does not exist for him.
Invariant: the base is answered only to someone who asked for it or has nothing assigned.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from adapters.accounts import Caller, Role
from adapters.errors import AdapterNotFound, IncompatibleBase, InvalidName
from adapters.names import BASE, AdapterRef, parse_ref
from adapters.registry import AdapterVersion
from adapters.versions import Choice
from adapters.view import NotInMemory, RegistryView
from server.admission import UserPlaces
from server.canary import Canary
from server.errors import BadRequest
from server.meter import Phase, current
from server.pool import AdapterPool

ADAPTER_HEADERS = {
    "X-Adapter-Id": "`<adapter>[@version]`, or `base`",
    "X-Amzn-SageMaker-Adapter-Identifier": "SageMaker's name for the same",
}
"""By which a request names its adapter; the first that is there counts."""
BASE_REF = AdapterRef(BASE, None)


def _wish(text: str) -> AdapterRef:
    """What a client's text names; a text that can name nothing is an adapter that is not there."""
    if text == BASE:
        return BASE_REF
    try:
        return parse_ref(text)
    except InvalidName:
        raise AdapterNotFound(text[:80]) from None


def _wished_by_model(model: str | None, base_name: str) -> AdapterRef | None:
    """The adapter that `model` names, None where it names the base model or nothing.

    Clients must send some `model`, so the base's own name is no wish: an assignment still counts.
    """
    if not model or model == base_name:
        return None
    return _wish(model.removeprefix(f"{base_name}:"))


def select(
    view: RegistryView,
    caller: Caller,
    header: str | None,
    model: str | None,
    base_name: str,
    *,
    blocking: bool = True,
) -> Choice:
    """The version to answer with, None for the base, and the arm of an experiment that chose it.

    Raises AdapterNotFound (unknown, retired, inactive or forbidden alike) and BadRequest (header
    and `model` disagree); without `blocking` NotInMemory where the view would have to ask the
    registry.
    """
    by_header = _wish(header) if header else None
    by_model = _wished_by_model(model, base_name)
    if by_header and by_model and not _agree(by_header, by_model):
        raise BadRequest(
            f"the adapter header says {header!r} and model says {model!r}: name one adapter",
            param="model",
        )
    wish = by_header or by_model
    if wish is None:
        return view.assigned(caller.user_id) if caller.user_id else Choice(None)
    if wish == BASE_REF:
        return Choice(None)
    version = wish.version or (by_model.version if by_model else None)
    found = view.resolve(
        wish.adapter_id,
        version,
        user_id=caller.user_id,
        is_admin=caller.role is Role.ADMIN,
        blocking=blocking,
    )
    return Choice(found)


def _agree(header: AdapterRef, model: AdapterRef) -> bool:
    same_version = None in (header.version, model.version) or header.version == model.version
    return header.adapter_id == model.adapter_id and same_version


def refuse_other_base(version: AdapterVersion, base: str) -> None:
    """A registry outlives its server, which may be started with another model: `base` is its
    fingerprint. Raises IncompatibleBase."""
    if version.base_fingerprint != base:
        raise IncompatibleBase(
            [
                f"{version.ref} was published for another base model"
                f" ({version.base_fingerprint[:19]}…) than the one served ({base[:19]}…):"
                " publish it again here, or serve that one"
            ]
        )


@dataclass(frozen=True)
class Route:
    """Where a request goes: `model` and `cache_salt` for the engine, `label` for the client."""

    model: str
    cache_salt: str
    label: str  # "alice/concise@3", or "base"
    arm: str | None = None  # "tone/warm", where an experiment decided

    @property
    def headers(self) -> dict[str, str]:
        """What tells the client who answers."""
        shown = {"X-Adapter-Id": self.label}
        return shown if self.arm is None else {**shown, "X-Experiment": self.arm}


class Router:
    """Takes a request's selection to a loaded adapter; one for the application."""

    def __init__(
        self,
        view: RegistryView,
        pool: AdapterPool,
        users: UserPlaces[str],
        canary: Canary,
        base_name: str,
        base: str,
    ) -> None:
        """`base` is the fingerprint of the base model."""
        self._base = base
        self._view = view
        self._users = users
        self._canary = canary
        self._pool = pool
        self._base_name = base_name
        # Only this process's prefix cache ever sees a salt, so the secret can die with it.
        self._salt_secret = secrets.token_bytes(32)

    async def route(
        self, caller: Caller, header: str | None, model: str | None, held: AsyncExitStack
    ) -> Route:
        """Select, wait for a turn, load if need be, and salt. Raises what these raise.

        The user's place and the adapter are the request's until `held` is closed.
        """
        meter = current()
        meter.enter(Phase.RESOLVE)
        version, arm = await self.choose(caller, header, model)
        await held.enter_async_context(self._users.place(_tenant(caller)))
        salt = self._cache_salt(caller)
        meter.label = BASE if version is None else version.ref
        if version is None:
            meter.enter(Phase.GENERATE)
            return Route(self._base_name, salt, BASE, arm)
        refuse_other_base(version, self._base)
        self._canary.refuse_quarantined(version)
        name = await held.enter_async_context(self._pool.using(version))
        meter.enter(Phase.GENERATE)
        return Route(name, salt, version.ref, arm)

    async def choose(self, caller: Caller, header: str | None, model: str | None) -> Choice:
        """See `select`, loading nothing.

        From memory; in a thread where an older version is asked for by its number, once.
        """
        wish = (self._view, caller, header, model, self._base_name)
        try:
            return select(*wish, blocking=False)
        except NotInMemory:
            return await run_in_threadpool(select, *wish)

    def _cache_salt(self, caller: Caller) -> str:
        """Tenants never share cached prefixes, so none can time what another has asked."""
        key, tenant = self._salt_secret, _tenant(caller).encode()
        return hashlib.blake2b(tenant, key=key, digest_size=32).hexdigest()


def _tenant(caller: Caller) -> str:
    """Whom a request is for: the user, or the key that names none."""
    return f"user:{caller.user_id}" if caller.user_id else f"key:{caller.key_id}"
