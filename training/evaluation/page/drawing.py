"""The one look of the page's pictures, and a figure of matplotlib as SVG inside the page.

Owns colours, markers and what is taken out of the SVG. Refuses data. Pictures are drawn in stand-in
colours that become the page's own variables, so that they follow light and dark. Series differ by
marker and stroke, too, not by colour alone; the colours are those of Okabe and Ito (2008), a
little darker for light paper. Text stays text; nothing in a name is read as a formula.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

INK, FAINT = "#a10000", "#a20000"
SERIES = tuple(f"#a0000{number}" for number in range(6))
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES)},
}
MARKERS = "osD^vPX"
DASHES: Sequence[Any] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1.5, 2)))
LONGEST_NAME = 32
LETTER, HANDLE, LINE = 0.075, 0.65, 0.2
"""Of a legend: a letter's width, a handle's with the space beside it, a line's height; inches."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Picture:
    """A drawing, what is under it, and what it says to who cannot see it."""

    svg: str
    caption: str
    alternative: str


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, figures are drawn in the page's look."""
    with rc_context(STYLE):
        yield


def as_svg(canvas: Canvas, salt: str) -> str:
    """The SVG element alone, without what would clash with other pictures in the page.

    `salt` is the picture's own, for the names of what it refers to within itself.
    """
    written = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        canvas.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    size = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    width = f' style="max-width:{float(size[1]) * 4 / 3:.0f}px"' if size else ""
    return re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', rf"\1{width}", svg, count=1).replace(
        "<svg", '<svg aria-hidden="true"', 1
    )


def in_percent(axes: Axes, *sides: str) -> None:
    """Ticks of a rate, on "x", "y" or both."""
    for side in sides:
        axis = axes.xaxis if side == "x" else axes.yaxis
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def colour_of(number: int) -> str:
    return SERIES[number % len(SERIES)]


def marker_of(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def dashes_of(number: int) -> Any:
    return DASHES[number % len(DASHES)]


def legend(canvas: Canvas, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Below the picture, in as many columns as the labels leave room for."""
    widest = HANDLE + LETTER * max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(canvas.get_figwidth() / widest)))
    rows = -(-len(labels) // columns)
    canvas.set_figheight(canvas.get_figheight() + LINE * (rows - 1))
    # A label that begins with an underscore would be left out.
    shown = [f"\u2060{label}" if label.startswith("_") else label for label in labels]
    canvas.legend(handles, shown, loc="outside lower center", ncols=columns)


def told_apart(names: Sequence[str]) -> list[str]:
    """Names that fit beside a point: of long ones what they share at both ends goes first.

    Two that are still the same are numbered.
    """
    lines = [" ".join(name.split()) for name in names]
    long = [line for line in lines if len(line) > LONGEST_NAME]
    first = _shared(long)
    last = _shared([line[first:][::-1] for line in long])
    shown = [line if line not in long else _window(line, first, last) for line in lines]
    return [
        f"{number}: {name}" if shown.count(name) > 1 else name
        for number, name in enumerate(shown, start=1)
    ]


def _shared(lines: Sequence[str]) -> int:
    """How many letters all of several lines begin with."""
    if len(lines) < 2:
        return 0
    columns = zip(*lines, strict=False)
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, columns))


def _window(line: str, first: int, last: int) -> str:
    """So much of the line as fits: what is its own, from `first` to `last`, and what is around."""
    own = len(line) - first - last
    room = LONGEST_NAME - 2
    if own > room:
        half = room // 2
        middle = f"{line[first : first + half]}…{line[first + own - half : first + own]}"
        return f"{'…' if first else ''}{middle}{'…' if last else ''}"
    begin = max(0, min(first - (room - own) // 2, len(line) - room))
    end = begin + room
    return f"{'…' if begin else ''}{line[begin:end]}{'…' if end < len(line) else ''}"
