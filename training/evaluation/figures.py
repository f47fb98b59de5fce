"""From items to figures and comparisons.

Owns which statistics suit a figure: a rate (Wilson; paired: McNemar), a mean (bootstrap) or a
perplexity (bootstrap over windows, weighed by tokens). Where the items belong to many users, users
are resampled instead: the items of one user are alike. Refuses what the figures are
(`definitions.py`), measuring and judging. Pure: the items of a report that was read again give the
same figures.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite

from adapters import statistics
from adapters.statistics import Interval, Proportion, holm, mean_of, paired_means, paired_rates
from training.evaluation.definitions import WINRATE, Definition, definitions
from training.evaluation.items import BASE, Duel, Items
from training.evaluation.results import Comparison, Figure, Report

MANY_USERS = 10
"""Users from which they are resampled; of fewer, a resampling says too little and is too sure."""


@dataclass(frozen=True)
class Sample:
    """A figure's values, one an item, each with what it counts and whose it is."""

    definition: Definition
    places: tuple[int, ...]
    """Of the items among all that were asked."""
    values: tuple[float, ...]
    weights: tuple[float, ...]
    users: tuple[str, ...] | None

    @property
    def is_rate(self) -> bool:
        return self.definition.kind == "rate"

    @property
    def value(self) -> float:
        """The figure itself."""
        total = sum(v * w for v, w in zip(self.values, self.weights, strict=True))
        return self._shown(total / sum(self.weights))

    @property
    def n(self) -> int:
        return round(sum(self.weights))

    def interval_at(self, confidence: float) -> Interval:
        """Two-sided; infinite where the items say nothing."""
        if self.is_rate and self.users is None:
            return Proportion.of(self.values).interval_at(confidence)
        found = mean_of(self.values, self.users, weights=self.weights, confidence=confidence)
        return self._shown(found.low), self._shown(found.high)

    def change_from(
        self, before: "Sample", confidence: float = statistics.CONFIDENCE
    ) -> statistics.Comparison:
        """This after that, on the items that both have; of perplexities in nats per token.

        Raises ValueError where they have none.
        """
        if self.places != before.places:
            both = set(self.places) & set(before.places)
            return self._only(both).change_from(before._only(both), confidence)
        if self.is_rate and self.users is None and not _halves(self, before):
            was, now = (tuple(map(bool, sample.values)) for sample in (before, self))
            return paired_rates(was, now, confidence=confidence)
        return paired_means(
            before.values, self.values, self.users, weights=self.weights, confidence=confidence
        )

    def _only(self, places: Collection[int]) -> "Sample":
        kept = [k for k, place in enumerate(self.places) if place in places]
        return replace(
            self,
            places=tuple(self.places[k] for k in kept),
            values=tuple(self.values[k] for k in kept),
            weights=tuple(self.weights[k] for k in kept),
            users=None if self.users is None else tuple(self.users[k] for k in kept),
        )

    def _shown(self, mean: float) -> float:
        return exp(mean) if self.definition.kind == "perplexity" else mean


def figures_of(items: Items, model: str) -> dict[str, Figure]:
    """Every figure that the items allow of this model, in the table's order."""
    return {name: _figure(sample) for name, sample in samples_of(items, model).items()}


def compare(items: Items, before: str, after: str) -> list[Comparison]:
    """Figure by figure, where both models have it; the p-values adjusted together (Holm)."""
    was, now = samples_of(items, before), samples_of(items, after)
    found = [
        (name, now[name].change_from(was[name]), _flips(was[name], now[name]))
        for name in now
        if name in was and name != WINRATE and set(was[name].places) & set(now[name].places)
    ]
    if duels := _duels(items, after, before):
        lost, won = ([d.outcome == side for d in duels] for side in ("loss", "win"))
        # Won less lost, of all: McNemar's test is the sign test here.
        found.insert(0, (WINRATE, paired_rates(lost, won), (sum(won), sum(lost))))
    adjusted = holm([change.p_value for _, change, _ in found])
    return [
        Comparison(
            figure=name,
            before=before,
            after=after,
            difference=change.difference,
            low=_finite(change.low),
            high=_finite(change.high),
            p_value=change.p_value,
            p_adjusted=p,
            n=change.n,
            gained=flips[0] if flips else None,
            lost=flips[1] if flips else None,
        )
        for (name, change, flips), p in zip(found, adjusted, strict=True)
    ]


def complete(report: Report, against: Sequence[str] = (BASE,)) -> Report:
    """Fill in every model's figures, and compare each with those of `against` before it."""
    for model in report.models:
        model.figures = figures_of(report.items, model.name)
    report.comparisons = [
        comparison
        for after in report.names
        if after not in against
        for before in against
        for comparison in compare(report.items, before, after)
    ]
    return report


def samples_of(items: Items, model: str) -> dict[str, Sample]:
    """The values behind each figure of a model, by the figure's name; only what was measured."""
    found = {}
    for definition in definitions(items):
        if definition.relative and model == BASE:
            continue
        sample = _sample(definition, items, model)
        if sample is not None:
            found[definition.name] = sample
    return found


def _sample(definition: Definition, items: Items, model: str) -> Sample | None:
    asked = definition.items(items)
    told = {p: v for p, i in enumerate(asked) if (v := definition.value(i, model)) is not None}
    if not told:
        return None
    owners = [getattr(asked[place], "user", None) for place in told]
    known = tuple(owner for owner in owners if owner is not None)
    by_user = len(known) == len(told) and len(set(known)) >= MANY_USERS
    weighed = definition.kind == "perplexity"
    return Sample(
        definition,
        places=tuple(told),
        values=tuple(told.values()),
        weights=tuple(asked[place].tokens if weighed else 1 for place in told),
        users=known if by_user else None,
    )


def _figure(sample: Sample) -> Figure:
    low, high = sample.interval_at(statistics.CONFIDENCE)
    known = isfinite(low) and isfinite(high)
    return Figure(
        value=sample.value,
        low=low if known else None,
        high=high if known else None,
        n=sample.n,
        kind=sample.definition.kind,
        unit=sample.definition.unit,
        better=sample.definition.better,
        users=None if sample.users is None else len(set(sample.users)),
    )


def _flips(before: Sample, after: Sample) -> tuple[int, int] | None:
    """How many items were gained and lost, of a rate."""
    if not after.is_rate:
        return None
    was = dict(zip(before.places, before.values, strict=True))
    pairs = [(was[p], v) for p, v in zip(after.places, after.values, strict=True) if p in was]
    return sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)


def _halves(*samples: Sample) -> bool:
    """Whether there are ties, which count half and are neither right nor wrong."""
    return any(value not in (0, 1) for sample in samples for value in sample.values)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _duels(items: Items, model: str, against: str) -> list[Duel]:
    """The readable duels of one model with another."""
    return [
        duel
        for item in items.duels
        for duel in item.duels
        if (duel.model, duel.against) == (model, against) and duel.outcome != "unreadable"
    ]
