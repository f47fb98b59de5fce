"""`/health/live`, `/health/ready` and `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.bodies import HealthBody
from server.dependencies import LiveDep, MetricsDep, ScraperDep

router = APIRouter(tags=["health"])

TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get("/health/live", response_model=HealthBody, response_model_exclude_none=True)
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@router.get("/health/ready", response_model=HealthBody)
async def ready(live: LiveDep) -> dict[str, str]:
    """The engine answers too; 503 while it does not."""
    return {"status": "ready", "model": live.engine.base_name}


@router.get("/metrics", response_class=Response, responses={200: TEXT})
async def prometheus(scraper: ScraperDep, metrics: MetricsDep) -> Response:
    """Prometheus text, vLLM's own metrics among it; for an admin key, or the metrics' own."""
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)
