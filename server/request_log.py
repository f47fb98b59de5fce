"""One line of the log a request: who (hashed), what answered, how long, how much, how it ended.

Owns the line and the hash. Refuses the rest of the log. Neither a prompt, an answer, a key nor a
user's name is ever in it, and of a path only the route's template: names stand in the rest.
"""

from __future__ import annotations

import functools
import hmac
import logging
import secrets
import sys
from typing import Any, Literal, TextIO, cast

import structlog

from server.log_pipe import Lines
from server.meter import Meter, Phase

log = structlog.get_logger(__name__)

QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines, and logged only when they fail."""
MOST_HASHES = 4096
"""Of users, that are kept."""


class RequestLog:
    """An observer of meters. Hashes with the same `secret` are comparable."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret.encode() if secret else secrets.token_bytes(32)
        self._hashed = functools.lru_cache(MOST_HASHES)(self._hash)

    def __call__(self, meter: Meter) -> None:
        if meter.route in QUIET and meter.status < 400:
            return
        log.info("request", **self._line(meter))

    def _line(self, meter: Meter) -> dict[str, Any]:
        prompt, completion = meter.usage
        caller = meter.caller
        return {
            "request_id": meter.request_id,
            "method": meter.method,
            "route": meter.route,
            "status": meter.status,
            "outcome": meter.outcome,
            "user": caller and caller.user_id and self._hashed(caller.user_id),
            "key_id": caller and caller.key_id,
            "adapter": meter.label,
            "cold": meter.cold,
            "seconds": _rounded(meter.seconds),
            "queue_seconds": _rounded(meter.seconds_in(Phase.ADMIT)),
            "load_seconds": _rounded(meter.seconds_in(Phase.LOAD)),
            "ttft_seconds": _rounded(meter.first_token_seconds),
            "inter_token_seconds": _rounded(meter.inter_token_seconds),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
        }

    def _hash(self, user_id: str) -> str:
        """Keyed, so that nobody with the log and a list of names finds who is who."""
        return hmac.digest(self._secret, user_id.encode(), "sha256").hex()[:16]


def configure_logging(style: Literal["json", "console"]) -> None:
    """Lines on standard error, as JSON or for the eye."""
    drawn: list[Any] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    if style == "json":
        drawn = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *drawn,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, Lines(sys.stderr.fileno()))),
        cache_logger_on_first_use=True,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
