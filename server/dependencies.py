"""What routes ask for, as typed FastAPI dependencies; no logic beyond looking it up.

Everything comes from the application's state, which `create_app` fills once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, cast

from fastapi import Depends, Header, Request

from adapters.accounts import Caller, Role
from adapters.base import BaseModelInfo
from adapters.registry import Registry
from adapters.view import RegistryView
from server.auth import SCRAPER
from server.canary import Canary
from server.engine.vllm import Engine
from server.errors import EngineUnavailable, NotAllowed
from server.live import Live
from server.metrics import Metrics
from server.routing import Routes
from server.settings import Settings
from server.supervisor import Supervisor


def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    if caller.role is not Role.ADMIN:
        raise NotAllowed("this needs an admin key")
    return caller


def _scraper(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    return caller if caller is SCRAPER else _admin(caller)


def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


def _registry(request: Request) -> Registry:
    return cast(Registry, request.app.state.registry)


def _view(request: Request) -> RegistryView:
    return cast(RegistryView, request.app.state.view)


def _supervisor(request: Request) -> Supervisor[Live]:
    return cast("Supervisor[Live]", request.app.state.supervisor)


def _canary(request: Request) -> Canary:
    return cast(Canary, request.app.state.canary)


def _optional_live(supervisor: Annotated[Supervisor[Live], Depends(_supervisor)]) -> Live | None:
    return supervisor.running


def _live(supervisor: Annotated[Supervisor[Live], Depends(_supervisor)]) -> Live:
    live = supervisor.running
    if live is None:
        raise EngineUnavailable(supervisor.outlook, retry_after=supervisor.seconds_to_wait)
    return live


def _engine(live: Annotated[Live, Depends(_live)]) -> Engine:
    return live.engine


def _base(request: Request) -> BaseModelInfo:
    return cast(BaseModelInfo, request.app.state.base)


async def _routes(request: Request, live: Annotated[Live, Depends(_live)]) -> AsyncIterator[Routes]:
    """Ends, and gives the adapter back, once the last byte of the answer is sent."""
    async with AsyncExitStack() as held:
        yield Routes(live.router, held, request.receive)


def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


def _adapter_header(
    x_adapter_id: Annotated[
        str | None, Header(description="`<adapter>[@version]`, or `base`")
    ] = None,
    x_amzn_sagemaker_adapter_identifier: Annotated[
        str | None, Header(description="SageMaker's name for the same")
    ] = None,
) -> str | None:
    return x_adapter_id or x_amzn_sagemaker_adapter_identifier


CallerDep = Annotated[Caller, Depends(_caller)]
AdminDep = Annotated[Caller, Depends(_admin)]
ScraperDep = Annotated[Caller, Depends(_scraper)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
RegistryDep = Annotated[Registry, Depends(_registry)]
ViewDep = Annotated[RegistryView, Depends(_view)]
EngineDep = Annotated[Engine, Depends(_engine)]
RoutesDep = Annotated[Routes, Depends(_routes)]
LiveDep = Annotated[Live, Depends(_live)]
OptionalLive = Annotated[Live | None, Depends(_optional_live)]
CanaryDep = Annotated[Canary, Depends(_canary)]
SupervisorDep = Annotated[Supervisor[Live], Depends(_supervisor)]
BaseDep = Annotated[BaseModelInfo, Depends(_base)]
SettingsDep = Annotated[Settings, Depends(_settings)]
AdapterHeader = Annotated[str | None, Depends(_adapter_header)]
