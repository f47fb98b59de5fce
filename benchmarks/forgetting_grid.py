"""Which runs the forgetting benchmark makes, and in which order.

Owns the methods, their settings and the grid. The order is such that any prefix is of use: the
comparison of all methods first, then further tastes, further seeds, general anchors, learning
rates, and the rest. Refuses data and training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.forgetting_data import EXAMPLES, PERSONAL

STEPS = (16, 32, 64, 128)
"""Where a run is measured. The learning rate is constant after its warm-up and the order of the
pairs depends on the seed alone, so a run's first n steps are a run of n steps."""

LEARNING_RATE = 1e-3
OTHER_RATES = (3e-4, 2e-3)
FIRST = ("witty", "friendly")
SEEDS = (0, 1, 2)

Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Method:
    """A way to learn a preference: its family and what it is told."""

    family: str
    told: str
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.family} {self.told}".strip()


def method(family: str, told: str = "", **settings: Any) -> Method:
    return Method(family, told, tuple(settings.items()))


def bapo(anchor_type: str, weight: float, **more: Any) -> Method:
    family = f"BAPO {anchor_type}"
    if more.get("general"):
        family += ", general prompts too"
    return method(family, f"λ {weight:g}", anchor_type=anchor_type, anchor_weight=weight, **more)


BASE = method("base")
DPO = method("DPO", "β 0.1", method="dpo")
CORE = (
    DPO,
    bapo("hinge", 0.05),
    bapo("kl", 0.05),
    bapo("absolute", 0.05),
    bapo("squared", 0.01),
    bapo("log_ratio", 0.05),
    method("SFT", method="sft"),
    method("IPO", "β 1", method="dpo", loss_type="ipo", beta=1.0),
    method("DPOP", "λ 5", method="dpo", loss_type="dpop", dpop_weight=5.0),
    method("DPO+SFT", "α 1", method="dpo", sft_weight=1.0),
    method("DPO, KL on chosen", "λ 0.05", anchor_on="chosen", anchor_type="kl", anchor_weight=0.05),
)
"""One setting of each family; every taste and every seed gets these."""

CHIEF = (DPO, bapo("hinge", 0.05), bapo("squared", 0.01))
DEFAULT = bapo("hinge", 0.02)
"""What BAPOConfig said before this benchmark."""
WEIGHTS = (
    DEFAULT,
    bapo("hinge", 0.1),
    *(bapo("squared", w) for w in (0.002, 0.05)),
    *(bapo("kl", w) for w in (0.02, 0.1)),
)
LEASHES = tuple(method("DPO", f"β {b:g}", method="dpo", beta=b) for b in (0.3, 1.0))
OTHERS = (
    *(bapo(kind, w) for kind in ("absolute", "log_ratio") for w in (0.02, 0.1)),
    method("IPO", "β 0.1", method="dpo", loss_type="ipo"),
    method("DPOP", "λ 50", method="dpo", loss_type="dpop", dpop_weight=50.0),
    method("DPO+SFT", "α 0.1", method="dpo", sft_weight=0.1),
    method("DPO, hinge on chosen", "λ 0.05", anchor_on="chosen", anchor_weight=0.05),
    method("SFT, hinge anchor", "λ 0.05", loss_type="sft", anchor_weight=0.05),
)
ALL = (*CORE, *WEIGHTS, *LEASHES, *OTHERS)
WITH_GENERAL = (bapo("hinge", 0.05, general=True), bapo("kl", 0.05, general=True))


@dataclass(frozen=True)
class Run:
    """One training run, measured at every step of `STEPS`; of the base, only measured."""

    taste: str
    method: Method
    learning_rate: float = LEARNING_RATE
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.taste} | {self.method.name} | lr {self.learning_rate:g} | seed {self.seed}"


def grid() -> list[Run]:
    """Every run, each once, the most telling first."""
    return list(dict.fromkeys(_stages()))


def small_grid() -> list[Run]:
    """For the tests: one taste, DPO and BAPO."""
    return [Run("pirate", m) for m in (BASE, DPO, bapo("hinge", 0.05))]


def _stages() -> Iterator[Run]:
    rest = tuple(taste for taste in PERSONAL if taste not in FIRST)
    # All methods once; then the chief ones at another rate, for every taste, for every seed.
    yield from _all(FIRST, (BASE, *CORE))
    yield from _all(FIRST, CHIEF, rates=OTHER_RATES[:1])
    yield from _all(rest, (BASE, *CHIEF))
    yield from _all(FIRST, (DEFAULT, bapo("squared", 0.002)))
    yield from _all(FIRST, (*CHIEF, DEFAULT), seeds=SEEDS[1:2])
    yield from _all(FIRST, (*WITH_GENERAL[:1], *LEASHES))
    yield from _all(FIRST, (*CHIEF, DEFAULT), seeds=SEEDS[2:])
    yield from _all(FIRST, (*WITH_GENERAL, *WEIGHTS))
    # From here on the same, completed.
    yield from _all(rest, CORE)
    # Every core method on three seeds and three rates, where two tastes are enough to see it.
    yield from _all(FIRST, CORE, seeds=SEEDS)
    yield from _all(FIRST, CHIEF, rates=OTHER_RATES)
    yield from _all(FIRST, WITH_GENERAL, seeds=SEEDS)
    yield from _all(FIRST, WEIGHTS, seeds=SEEDS)
    yield from _all(rest, CHIEF, seeds=SEEDS)
    yield from _all(FIRST, CORE, rates=OTHER_RATES, seeds=SEEDS)
    yield from _all(FIRST, (*CORE, *OTHERS), rates=(LEARNING_RATE, OTHER_RATES[0]))
    yield from _all(rest, CORE, seeds=SEEDS)
    yield from _all(EXAMPLES, (BASE, *CHIEF))
    yield from _all(PERSONAL, WITH_GENERAL, seeds=SEEDS)
    yield from _all(PERSONAL, CORE, rates=(LEARNING_RATE, *OTHER_RATES), seeds=SEEDS)
    yield from _all(PERSONAL, ALL, rates=(LEARNING_RATE, *OTHER_RATES), seeds=SEEDS)


def _all(
    tastes: Iterable[str],
    methods: Iterable[Method],
    rates: Iterable[float] = (LEARNING_RATE,),
    seeds: Iterable[int] = (0,),
) -> Iterator[Run]:
    for seed in seeds:
        for rate in rates:
            for each in methods:
                yield from (Run(taste, each, rate, seed) for taste in tastes)
