"""`/health/live`, `/health/ready` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.dependencies import AdminDep, EngineDep

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@router.get("/health/ready")
async def ready(engine: EngineDep) -> dict[str, str]:
    """The engine answers too; 503 while it does not."""
    return {"status": "ready", "model": engine.base_name}


@router.get("/metrics")
async def metrics(admin: AdminDep) -> Response:
    """Prometheus text, vLLM's own metrics among it."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
