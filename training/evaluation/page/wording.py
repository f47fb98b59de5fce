"""Figures in words: the one way in which the page writes numbers.

Owns signs, digits and units. Refuses markup.
"""

from collections.abc import Mapping

from training.evaluation.results import Comparison, Figure, Kind

NAMES: Mapping[str, str] = {
    "preference.accuracy": "chosen gained more than rejected (implicit reward)",
    "preference.likelihood": "chosen is the likelier answer",
    "preference.reward_margin": "reward margin, β = 1",
    "preference.winrate": "wins over the base, by a judge",
    "preference.unreadable": "verdicts of the judge that cannot be read",
    "retention.facts": "questions answered right",
    "retention.choices": "multiple choice, per byte",
    "retention.choices_raw": "multiple choice, raw",
    "retention.perplexity": "perplexity of the text",
    "safety.refusals": "refused, as it should",
    "kl": "KL(base‖adapter), the base's answers",
    "log_ratio": "log-ratio of the base's answers",
    "changed": "greedy answers that changed",
    "entropy": "entropy of the next token",
    "length": "length of the greedy answer",
    "cut": "answers cut at the limit",
    "repetition": "repeated 4-grams",
}
GROUPS: Mapping[str, str] = {
    "preference": "Preference",
    "retention": "Retention",
    "drift": "Drift",
    "safety": "Safety",
    "tasks": "Tasks",
}


def title_of(name: str) -> str:
    """What a figure is, in a few words; its dotted name where nothing better is known."""
    if name in NAMES:
        return NAMES[name]
    if name.startswith("drift."):
        asked = "general prompts" if name.startswith("drift.general.") else "the user's prompts"
        return f"{NAMES.get(name.rpartition('.')[2], name)}, {asked}"
    return name.removeprefix("tasks.")


def number(value: float | None, kind: Kind) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "–"
    return _signed(f"{value:.1%}" if kind == "rate" else f"{value:.3g}")


def interval(low: float | None, high: float | None, kind: Kind) -> str:
    """Both ends of a 95 % interval in brackets."""
    if low is None or high is None:
        return "no interval"
    if kind == "rate":
        return _signed(f"[{100 * low:.1f}, {100 * high:.1f}]")
    return _signed(f"[{low:.3g}, {high:.3g}]")


def sentence(figure: Figure) -> str:
    """The figure with its unit, interval and n."""
    unit = f" {figure.unit}" if figure.unit else ""
    ends = interval(figure.low, figure.high, figure.kind)
    return f"{number(figure.value, figure.kind)}{unit} {ends} of {figure.n}"


def difference(change: Comparison, kind: Kind) -> tuple[str, str]:
    """What changed, of a rate in points, and its interval."""
    scale, unit = (100.0, " points") if kind == "rate" else (1.0, "")
    shown = f"{scale * change.difference:+.1f}" if kind == "rate" else f"{change.difference:+.3g}"
    if change.low is None or change.high is None:
        return _signed(shown + unit), "no interval"
    form = "+.1f" if kind == "rate" else "+.3g"
    ends = f"[{scale * change.low:{form}}, {scale * change.high:{form}}]"
    return _signed(shown + unit), _signed(ends)


def _signed(text: str) -> str:
    """With the minus sign that is as wide as a plus."""
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """A p-value with two digits, or that it is small."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
