"""Builds the application: middlewares, routes, error rendering, and the engine's life.

Owns `create_app` and its lifespan; nothing is built at import. The engine starts in the background
so that health can be asked from the first second.
Invariant: the only routes there are, are those included here; vLLM's own are never mounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import structlog
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from pydantic import SecretStr
from starlette.middleware.trustedhost import TrustedHostMiddleware

from adapters.base import BaseModelInfo
from adapters.registry import Registry
from adapters.view import RegistryView
from server import errors
from server.api import (
    admin_adapters,
    admin_engine,
    admin_experiments,
    admin_feedback,
    admin_groups,
    admin_limits,
    admin_registry,
    admin_store,
    admin_users,
    chat,
    completions,
    feedback,
    health,
    lora,
    messages,
    models,
    responses,
)
from server.api.bodies import REFUSALS
from server.auth import Authentication
from server.budgets import Budgets
from server.canary import Canary
from server.engine.vllm import REFUSED_BODY, STEERING_HEADERS
from server.freshness import RefreshAfterWrites
from server.keeping import Keeping
from server.limiting import Limiting, Limits
from server.limits import BodyLimit, DropHeaders, HeadLimit
from server.live import Live, follow_retirements, health_of, listen_to_the_canary, start_live
from server.meter import Metering
from server.metrics import Metrics
from server.openapi import describe
from server.pacing import Pacing
from server.rates import Rates
from server.request_log import RequestLog
from server.settings import Settings
from server.supervisor import Supervisor
from server.tracing import Tracing, tracer_provider

log = structlog.get_logger(__name__)

ROUTES = (
    chat,
    completions,
    responses,
    messages,
    models,
    lora,
    feedback,
    admin_adapters,
    admin_feedback,
    admin_limits,  # before the users, whose ids in paths may be anything
    admin_users,
    admin_groups,
    admin_registry,
    admin_store,
    admin_experiments,
    admin_engine,
    health,
)


def create_app(
    settings: Settings,
    registry: Registry,
    base: BaseModelInfo,
    on_engine_failure: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """The server over an open registry. `on_engine_failure` hears why the engine did not start.

    Raises StoreError where the registry cannot be read.
    """
    view = RegistryView(registry, settings.registry_poll_seconds)

    async def start() -> Live:
        live = await start_live(settings, view, registry.store, canary, app.state, metrics, base)
        log.info("ready", model=settings.base_name)
        return live

    async def keep_an_engine() -> None:
        try:
            await supervisor.run()
        except Exception as error:
            log.error("engine_failed_to_start", exc_info=error)
            on_engine_failure(error)

    def cores_needed() -> bool:
        live = supervisor.running
        return live is not None and live.engine.needs_the_cores

    canary = Canary()
    supervisor = Supervisor(start)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asking = listen_to_the_canary(canary, supervisor, settings.canary_seconds)
        following = follow_retirements(view, supervisor, settings.registry_poll_seconds)
        works = (keep_an_engine(), asking, budgets.run(), keeping.run(), following)
        tasks = [asyncio.create_task(work) for work in works]
        try:
            with view:
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await rates.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.shutdown)

    rates = Rates(settings.redis_url)
    tracing = tracer_provider(settings.otlp_endpoint) if settings.otlp_endpoint else None
    budgets = Budgets(registry.allowances)
    metrics = Metrics(settings.metrics_adapters, lambda: health_of(supervisor, canary, view, rates))

    lasting = timedelta(days=settings.feedback_days)
    keeping = Keeping(registry.feedback, view, lasting, metrics)

    app = FastAPI(
        title="bapo-server",
        summary="One base model, one small LoRA adapter per preference, the right one in every "
        "request.",
        docs_url=None,
        redoc_url=None,
        version=importlib.metadata.version("bapo-server"),
        responses=REFUSALS,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.registry = registry
    app.state.pacing = Pacing(cores_needed)
    app.state.view = view
    app.state.base = base
    app.state.canary = canary
    app.state.supervisor = supervisor
    app.state.metrics = metrics
    app.state.keeping = keeping
    for routes in ROUTES:
        app.include_router(routes.router)
    describe(app)
    errors.install(app, REFUSED_BODY)
    _add_middlewares(app, settings, view, rates, budgets, metrics, tracing)
    return app


def _add_middlewares(
    app: FastAPI,
    settings: Settings,
    view: RegistryView,
    rates: Rates,
    budgets: Budgets,
    metrics: Metrics,
    tracing: TracerProvider | None,
) -> None:
    """What every request goes through; the last one added is the first to see it."""
    app.add_middleware(RefreshAfterWrites, view=view)
    app.add_middleware(
        Limiting,
        limits=Limits(view, settings.user_allowance, settings.key_allowance),
        rates=rates,
        budgets=budgets,
        metrics=metrics,
    )
    app.add_middleware(
        Authentication,
        view=view,
        admin_key=_secret(settings.admin_key),
        metrics_key=_secret(settings.metrics_key),
        no_auth=settings.insecure_no_auth,
    )
    if settings.insecure_no_auth:  # or any web page in this machine's browser could speak to us
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    app.add_middleware(
        BodyLimit, body_bytes=settings.max_body_bytes, upload_bytes=settings.max_upload_bytes
    )
    app.add_middleware(HeadLimit, head_bytes=settings.max_header_bytes)
    if tracing is not None:
        app.add_middleware(Tracing, provider=tracing)
    observers = (RequestLog(_secret(settings.log_secret)), metrics)
    app.add_middleware(Metering, observers=observers)
    app.add_middleware(DropHeaders, names=STEERING_HEADERS)


def _secret(setting: SecretStr | None) -> str | None:
    return setting.get_secret_value() if setting else None
