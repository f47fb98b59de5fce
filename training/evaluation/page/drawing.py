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
from typing import Any

from matplotlib import rc_context
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


def short(name: str) -> str:
    """A name that fits beside a point."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else f"…{line[1 - LONGEST_NAME :]}"
