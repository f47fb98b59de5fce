"""What Prometheus sees of this server: requests and adapters, the engine's health, limits.

Owns our metrics and their labels; vLLM's own stand beside them, but for the one that leaks names.
No user's name is in a label, and adapters have at most `adapters` of their own: the first that are
seen keep theirs while the process lives, so that no counter ever runs backwards, and all that come
later are counted under `other`. `base` always has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as _text
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.registry import AdapterVersion
from server.meter import Meter, Outcome, Phase

BASE, OTHER, NONE = "base", "other", "none"
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class AdapterLabels:
    """From an adapter's name to its label; the first so many have one of their own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, adapter_id: str | None) -> str:
        if adapter_id is None or adapter_id == BASE:
            return adapter_id or NONE
        if adapter_id in self._known:
            return adapter_id
        # A name that is one of ours would be mixed up with it.
        if len(self._known) >= self._most or adapter_id in (OTHER, NONE):
            return OTHER
        self._known.add(adapter_id)
        return adapter_id


@dataclass(frozen=True, slots=True)
class Health:
    """What the server says of itself when it is asked."""

    engine_up: bool
    restarts: int
    canary_failures: int
    quarantined: int
    stale_seconds: float
    limits_shared: bool
    running: int
    waiting: int
    resident: Sequence[tuple[AdapterVersion, int]]
    """Versions that the engine holds, and their bytes there."""


class Self(Protocol):
    def __call__(self) -> Health: ...


class Metrics:
    """An observer of meters, and of the pool; one for the application."""

    def __init__(self, adapters: int, health: Self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._labels = AdapterLabels(adapters)
        self._series: dict[str, _AdapterSeries] = {}
        self._families = _Families(self.registry)
        self._refused = Counter(
            "bapo_limits_refused", "Requests refused by a limit.", ["limit"], registry=self.registry
        )
        self._kept, self._not_kept = (
            Counter(f"bapo_{name}", says, registry=self.registry)
            for name, says in (
                ("answers_kept", "Answers that were kept to be rated."),
                ("answers_not_kept", "Requests whose answers should have been kept and were not."),
            )
        )
        self.registry.register(_AskedForHealth(health, self._labels))

    def __call__(self, meter: Meter) -> None:
        """Count a request that has ended."""
        self._of(meter.adapter_id).count(meter)

    def loaded(self, adapter_id: str, seconds: float) -> None:
        self._of(adapter_id).load.observe(seconds)

    def evicted(self, adapter_id: str) -> None:
        self._of(adapter_id).evictions.inc()

    def refused(self, limit: str) -> None:
        self._refused.labels(limit).inc()

    def kept(self, answers: int) -> None:
        self._kept.inc(answers)

    def not_kept(self, requests: int) -> None:
        self._not_kept.inc(requests)

    def text(self) -> bytes:
        """Everything in Prometheus' text format, vLLM's and Python's own among it."""
        return bytes(_text(self.registry)) + bytes(_text(REGISTRY))

    def _of(self, adapter_id: str | None) -> _AdapterSeries:
        label = self._labels.of(adapter_id)
        series = self._series.get(label)
        if series is None:
            series = self._series[label] = _AdapterSeries(self._families, label)
        return series


class _Families:
    """Our metrics that have an adapter in their labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, says: str, *more: str) -> Counter:
            return Counter(f"bapo_{name}", says, ["adapter", *more], registry=registry)

        def seconds(name: str, says: str, buckets: Sequence[float]) -> Histogram:
            name = f"bapo_{name}_seconds"
            return Histogram(name, says, ["adapter"], buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests that have ended.", "outcome")
        self.prompt = counter("prompt_tokens", "Tokens of prompts.")
        self.completion = counter("completion_tokens", "Tokens of answers, broken ones too.")
        self.hits = counter("adapter_hits", "Requests that found their adapter loaded.")
        self.misses = counter("adapter_misses", "Requests that had to wait for a load.")
        self.evictions = counter("adapter_evictions", "Adapters that made room for others.")
        self.first_token = seconds(
            "time_to_first_token", "From the request to its first token.", SLOW
        )
        self.inter_token = seconds(
            "inter_token", "Mean time between the tokens of an answer, one value an answer.", FAST
        )
        self.pause = seconds("longest_pause", "Longest pause in a streamed answer.", SLOW)
        self.queue = seconds("queue_wait", "Waiting for a slot, before the engine.", SLOW)
        self.load = seconds("adapter_load", "Reading an adapter and giving it a slot.", SLOW)


class _AdapterSeries:
    """The metrics of one label, looked up once."""

    def __init__(self, families: _Families, label: str) -> None:
        self._outcomes = {one: families.requests.labels(label, one) for one in Outcome}
        self.prompt = families.prompt.labels(label)
        self.completion = families.completion.labels(label)
        self.first_token = families.first_token.labels(label)
        self.inter_token = families.inter_token.labels(label)
        self.pause = families.pause.labels(label)
        self._adapters = label not in (BASE, NONE)
        if self._adapters:
            self.hits = families.hits.labels(label)
            self.misses = families.misses.labels(label)
            self.evictions = families.evictions.labels(label)
            self.queue = families.queue.labels(label)
            self.load = families.load.labels(label)

    def count(self, meter: Meter) -> None:
        self._outcomes[meter.outcome].inc()
        prompt, completion = meter.usage
        if prompt:
            self.prompt.inc(prompt)
            self.completion.inc(completion)
        _observe(self.first_token, meter.first_token_seconds)
        _observe(self.inter_token, meter.inter_token_seconds)
        _observe(self.pause, meter.longest_pause)
        if self._adapters and meter.cold is not None:
            (self.misses if meter.cold else self.hits).inc()
            _observe(self.queue, meter.seconds_in(Phase.ADMIT))


def _observe(histogram: Histogram, seconds: float | None) -> None:
    if seconds is not None:
        histogram.observe(seconds)


class _AskedForHealth(Collector):
    """The values that are looked up when Prometheus comes, not kept."""

    def __init__(self, health: Self, labels: AdapterLabels) -> None:
        self._health = health
        self._labels = labels

    def describe(self) -> Iterable[Metric]:
        return []  # else it would be asked before there is anything to say

    def collect(self) -> Iterable[Metric]:
        now = self._health()
        says: Mapping[str, tuple[str, float]] = {
            "bapo_engine_up": ("1 while the engine answers.", now.engine_up),
            "bapo_canary_ok": ("1 while no adapter is in quarantine.", not now.quarantined),
            "bapo_quarantined_adapters": ("Versions in quarantine.", now.quarantined),
            "bapo_registry_stale_seconds": ("Age of what is known of it.", now.stale_seconds),
            "bapo_limits_shared": ("0 while Redis is set and away.", now.limits_shared),
            "bapo_adapters_running": ("Adapters that hold a slot.", now.running),
            "bapo_requests_waiting": ("Requests that wait for a slot.", now.waiting),
        }
        for name, (words, value) in says.items():
            yield GaugeMetricFamily(name, words, value=float(value))
        yield CounterMetricFamily(
            "bapo_engine_restarts", "Engines that followed one that died.", value=now.restarts
        )
        yield CounterMetricFamily(
            "bapo_canary_failures", "Engines that went wrong.", value=now.canary_failures
        )
        yield self._resident(now)

    def _resident(self, now: Health) -> Metric:
        family = GaugeMetricFamily(
            "bapo_adapter_resident_bytes", "Host memory of loaded adapters.", labels=["adapter"]
        )
        sums: dict[str, int] = {}
        for version, size in now.resident:
            label = self._labels.of(version.adapter_id)
            sums[label] = sums.get(label, 0) + size
        for label, size in sums.items():
            family.add_metric([label], size)
        return family
