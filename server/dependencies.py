"""What routes ask for, as typed FastAPI dependencies; no logic beyond looking it up.

Everything comes from the application's state, which `create_app` fills once.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Header, Request

from adapters.accounts import Caller, Role
from adapters.base import BaseModelInfo
from adapters.registry import Registry
from server.engine.vllm import Engine
from server.errors import EngineUnavailable, NotAllowed
from server.pool import AdapterPool
from server.routing import Router
from server.settings import Settings


def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    if caller.role is not Role.ADMIN:
        raise NotAllowed("this needs an admin key")
    return caller


def _registry(request: Request) -> Registry:
    return cast(Registry, request.app.state.registry)


def _engine(request: Request) -> Engine:
    engine: Engine | None = request.app.state.engine
    if engine is None:
        raise EngineUnavailable("the engine is starting; try again in a few seconds")
    if not engine.alive:
        raise EngineUnavailable("the engine has stopped; try again later")
    return engine


def _optional_pool(request: Request) -> AdapterPool | None:
    return cast("AdapterPool | None", request.app.state.pool)


def _base(request: Request) -> BaseModelInfo:
    return cast(BaseModelInfo, request.app.state.base)


def _router(request: Request, engine: Annotated[Engine, Depends(_engine)]) -> Router:
    return cast(Router, request.app.state.router)


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
RegistryDep = Annotated[Registry, Depends(_registry)]
EngineDep = Annotated[Engine, Depends(_engine)]
RouterDep = Annotated[Router, Depends(_router)]
OptionalPool = Annotated[AdapterPool | None, Depends(_optional_pool)]
BaseDep = Annotated[BaseModelInfo, Depends(_base)]
SettingsDep = Annotated[Settings, Depends(_settings)]
AdapterHeader = Annotated[str | None, Depends(_adapter_header)]
