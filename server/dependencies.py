"""What routes ask for, as typed FastAPI dependencies; no logic beyond looking it up.

Everything comes from the application's state, which `create_app` fills once. Each is `async`: what
is not, FastAPI runs in a thread, which costs a request more than all that is done here. What an
inference route needs is one dependency, `Asked`, since each costs a request some 15 µs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request, Response

from adapters.accounts import Caller, Role
from adapters.base import BaseModelInfo
from adapters.registry import Registry
from adapters.view import RegistryView
from server.auth import SCRAPER
from server.canary import Canary
from server.engine.vllm import Engine
from server.errors import EngineUnavailable, NotAllowed
from server.keeping import Keeping
from server.live import Live
from server.metrics import Metrics
from server.pacing import Pacing
from server.routing import ADAPTER_HEADERS, Route, Router
from server.settings import Settings
from server.supervisor import Supervisor


async def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


async def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    if caller.role is not Role.ADMIN:
        raise NotAllowed("this needs an admin key")
    return caller


async def _scraper(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    return caller if caller is SCRAPER else await _admin(caller)


async def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


async def _registry(request: Request) -> Registry:
    return cast(Registry, request.app.state.registry)


async def _view(request: Request) -> RegistryView:
    return cast(RegistryView, request.app.state.view)


async def _supervisor(request: Request) -> Supervisor[Live]:
    return cast("Supervisor[Live]", request.app.state.supervisor)


async def _canary(request: Request) -> Canary:
    return cast(Canary, request.app.state.canary)


async def _optional_live(
    supervisor: Annotated[Supervisor[Live], Depends(_supervisor)],
) -> Live | None:
    return supervisor.running


def _running(request: Request) -> Live:
    supervisor = cast("Supervisor[Live]", request.app.state.supervisor)
    live = supervisor.running
    if live is None:
        raise EngineUnavailable(supervisor.outlook, retry_after=supervisor.seconds_to_wait)
    return live


async def _live(request: Request) -> Live:
    return _running(request)


async def _base(request: Request) -> BaseModelInfo:
    return cast(BaseModelInfo, request.app.state.base)


async def _keeping(request: Request) -> Keeping:
    return cast(Keeping, request.app.state.keeping)


async def _pacing(request: Request) -> Pacing:
    return cast(Pacing, request.app.state.pacing)


async def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


@dataclass(frozen=True)
class Asked:
    """What an inference route works with."""

    caller: Caller
    adapter: str | None
    """As the header names it."""
    engine: Engine
    router: Router
    held: AsyncExitStack
    """What closes when the last byte of the answer is sent."""
    settings: Settings
    keeping: Keeping

    async def route(self, model: str | None) -> Route:
        """See `Router.route`."""
        return await self.router.route(self.caller, self.adapter, model, self.held)

    async def answered(self, request: Request, route: Route, response: Response) -> Response:
        """The answer with who gives it in its head; it is kept to be rated, if it is to be."""
        response.headers.update(route.headers)
        user_id = self.caller.user_id
        await self.keeping.watch(request, user_id, route, response, self.held)
        return response


def ask(request: Request, held: AsyncExitStack) -> Asked:
    """For a request whose adapter is given back when `held` is closed."""
    live = _running(request)
    state = request.app.state
    caller = cast(Caller, request.state.caller)
    return Asked(
        caller, _named(request), live.engine, live.router, held, state.settings, state.keeping
    )


async def _asked(request: Request) -> AsyncIterator[Asked]:
    """Ends, and gives the adapter back, once the last byte of the answer is sent."""
    async with AsyncExitStack() as held:
        yield ask(request, held)


def _named(request: Request) -> str | None:
    """The adapter that a header names. FastAPI would take 30 µs to look for each of them."""
    named = (value for name in ADAPTER_HEADERS if (value := request.headers.get(name)))
    return next(named, None)


CallerDep = Annotated[Caller, Depends(_caller)]
AdminDep = Annotated[Caller, Depends(_admin)]
ScraperDep = Annotated[Caller, Depends(_scraper)]
KeepingDep = Annotated[Keeping, Depends(_keeping)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
RegistryDep = Annotated[Registry, Depends(_registry)]
ViewDep = Annotated[RegistryView, Depends(_view)]
AskedDep = Annotated[Asked, Depends(_asked)]
LiveDep = Annotated[Live, Depends(_live)]
OptionalLive = Annotated[Live | None, Depends(_optional_live)]
CanaryDep = Annotated[Canary, Depends(_canary)]
SupervisorDep = Annotated[Supervisor[Live], Depends(_supervisor)]
BaseDep = Annotated[BaseModelInfo, Depends(_base)]
PacingDep = Annotated[Pacing, Depends(_pacing)]
SettingsDep = Annotated[Settings, Depends(_settings)]
