"""Counts as proportions with their uncertainty.

Owns the arithmetic of small samples; knows nothing of models. Every figure carries n.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

Z_95 = 1.959964


@dataclass(frozen=True)
class Proportion:
    """`hits` of `n` cases; ties may count half."""

    hits: float
    n: int

    @property
    def rate(self) -> float:
        """hits / n, in [0, 1]; 0 where there was no case."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (1927), which stays in [0, 1] and holds at 0 and at n."""
        if not self.n:
            return 0.0, 1.0
        z2 = Z_95**2
        middle = (self.rate + z2 / (2 * self.n)) / (1 + z2 / self.n)
        spread = Z_95 / (1 + z2 / self.n)
        spread *= sqrt(self.rate * (1 - self.rate) / self.n + z2 / (4 * self.n**2))
        return max(0.0, middle - spread), min(1.0, middle + spread)

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "Proportion":
        cases = list(outcomes)
        return cls(sum(cases), len(cases))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.1%} [{low:.1%}, {high:.1%}] of {self.n}"
