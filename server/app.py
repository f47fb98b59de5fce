"""Builds the application: middlewares, routes, error rendering, and the engine's life.

Owns `create_app` and its lifespan; nothing is built at import. The engine starts in the background
so that health can be asked from the first second.
Invariant: the only routes there are, are those included here; vLLM's own are never mounted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import structlog
from fastapi import FastAPI

from adapters.base import BaseModelInfo
from adapters.registry import Registry
from server import errors
from server.api import admin_adapters, admin_users, chat, completions, health, models
from server.auth import Authentication
from server.engine.vllm import STEERING_HEADERS, Engine
from server.limits import BodyLimit, DropHeaders
from server.pool import AdapterPool
from server.routing import Router
from server.settings import Settings

log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    registry: Registry,
    base: BaseModelInfo,
    on_engine_failure: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """The server over an open registry. `on_engine_failure` hears why the engine did not start."""

    async def start_engine(app: FastAPI) -> None:
        try:
            engine = await Engine.start(settings, app.state)
        except Exception as error:
            log.error("engine_failed_to_start", exc_info=error)
            on_engine_failure(error)
            return
        app.state.pool = AdapterPool(engine)
        app.state.router = Router(registry, app.state.pool, settings.base_name)
        app.state.engine = engine
        log.info("ready", model=settings.base_name)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start_engine(app))
        try:
            yield
        finally:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            if app.state.engine is not None:
                app.state.engine.stop()

    app = FastAPI(
        title="bapo-server",
        summary="One base model, one small LoRA adapter per preference, the right one in every "
        "request.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.registry = registry
    app.state.base = base
    app.state.engine = None
    app.state.pool = None
    for routes in (chat, completions, models, admin_adapters, admin_users, health):
        app.include_router(routes.router)
    errors.install(app)
    # The last one added is the first to see a request.
    admin_key = settings.admin_key.get_secret_value() if settings.admin_key else None
    app.add_middleware(Authentication, registry=registry, admin_key=admin_key)
    app.add_middleware(
        BodyLimit, body_bytes=settings.max_body_bytes, upload_bytes=settings.max_upload_bytes
    )
    app.add_middleware(DropHeaders, names=STEERING_HEADERS)
    return app
