"""Traces: what a request went through, as spans that OpenTelemetry's collectors understand.

Owns the ASGI middleware that begins a span for each request of the API, hands its context on to
vLLM (whose own span joins it), and draws the request's phases when it has ended, from its meter. So
nothing on the way knows of traces, and without an endpoint none of this is there. Whether a trace
is kept is its sender's decision, or OTEL_TRACES_SAMPLER's. No user and no text is in a span.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.meter import Meter, Outcome, Phase, current

W3C = TraceContextTextMapPropagator()
CONTEXT_HEADERS = frozenset({b"traceparent", b"tracestate"})
ROUTING = (Phase.RESOLVE, Phase.ADMIT, Phase.LOAD)


def tracer_provider(endpoint: str) -> TracerProvider:
    """What sends spans to the OTLP/HTTP `endpoint`, in batches and in a thread of its own."""
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "bapo-server"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Tracing:
    """ASGI middleware, inside of the meter."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self.app = app
        self._tracer = provider.get_tracer(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(("/v1/", "/admin/")):
            await self.app(scope, receive, send)
            return
        sent = W3C.extract(Headers(scope=scope))
        meter = current()
        began = int(meter.began_at * 1e9)
        span = self._tracer.start_span(scope["method"], sent, SpanKind.SERVER, start_time=began)
        carried: dict[str, str] = {}
        W3C.inject(carried, set_span_in_context(span))
        kept = [pair for pair in scope["headers"] if pair[0] not in CONTEXT_HEADERS]
        ours = [(name.encode(), value.encode()) for name, value in carried.items()]
        scope["headers"] = [*kept, *ours]
        try:
            await self.app(scope, receive, send)
        finally:
            route = getattr(scope.get("route"), "path", None)
            span.update_name(f"{scope['method']} {route or 'unknown'}")
            span.set_attribute("http.route", route or "unknown")
            _describe(span, meter)
            _draw(self._tracer, span, meter)
            span.end()


def _describe(span: Span, meter: Meter) -> None:
    prompt, completion = meter.usage
    outcome = meter.outcome
    attributes: dict[str, str | int | bool | None] = {
        "http.request.method": meter.method,
        "http.response.status_code": meter.status,
        "bapo.request_id": meter.request_id,
        "bapo.outcome": outcome.value,
        "bapo.adapter": meter.label,
        "bapo.cold": meter.cold,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": completion,
    }
    for name, value in attributes.items():
        if value is not None:
            span.set_attribute(name, value)
    if outcome is Outcome.FAILED:
        span.set_status(Status(StatusCode.ERROR))


def _draw(tracer: Tracer, span: Span, meter: Meter) -> None:
    """The phases as spans: those of routing under `route`, beside it `generate`."""
    ends = meter.phase_ends()
    routing = [(phase, began, end) for phase, began, end in ends if phase in ROUTING]
    within = set_span_in_context(span)
    if routing:
        route = tracer.start_span("route", within, start_time=_nanoseconds(meter, routing[0][1]))
        for phase, began, end in routing:
            _drawn(tracer, set_span_in_context(route), meter, phase, began, end)
        route.end(_nanoseconds(meter, routing[-1][2]))
    for phase, began, end in ends:
        if phase not in ROUTING:
            _drawn(tracer, within, meter, phase, began, end)


def _drawn(
    tracer: Tracer, within: Context, meter: Meter, phase: Phase, began: float, end: float
) -> None:
    start = _nanoseconds(meter, began)
    tracer.start_span(phase.value, within, start_time=start).end(_nanoseconds(meter, end))


def _nanoseconds(meter: Meter, at: float) -> int:
    """From the meter's clock to the epoch's."""
    return int((meter.began_at + at - meter.began) * 1e9)
