"""The trade between short prompts and long ones, drawn: each pace a point of a curve, the engine's own flags beside."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.charts import braille
from loadtest.charts.axis import Axis
from loadtest.charts.svg import INK, PALETTE, drawn, side
from loadtest.results.trade import Figures, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Column titles: which of the figures, and how it is written.
COLUMNS = {
    "short_ttft_p50_s": ("short TTFT p50, s", ".2f"),
    "short_ttft_p95_s": ("p95", ".2f"),
    "short_e2e_p50_s": ("short E2E p50, s", ".1f"),
    "short_tpot_p50_ms": ("short TPOT p50, ms", ".0f"),
    "long_ttft_p50_s": ("long TTFT p50, s", ".1f"),
    "long_ttft_max_s": ("last", ".1f"),
    "itl_p99_s": ("ITL p99, s", ".2f"),
    "makespan_s": ("makespan, s", ".1f"),
}

# What is drawn over the long prompts' median, of the figures.
DRAWN = {
    "short_e2e_p50_s": "short prompts: whole answer, median, s",
    "short_ttft_p95_s": "short prompts: first token, 95th percentile, s",
    "short_tpot_p50_ms": "short prompts: ms a token, median",
}
ACROSS = "long prompts: first token, median, s"
MARGIN = 1.1  # around what is drawn
BETWEEN = 32  # points drawn from one of a curve to the next
TICKS = {tick: f"{tick:g}" for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)}

Pairs = list[tuple[float, float]]

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{palette}body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
  background: var(--paper); color: var(--ink); }}
h1 {{ font-size: 1.35rem; }}
p, th {{ color: var(--faint); font-size: .9rem; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }}
.box {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ text-align: right; padding: .2rem .7rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{note}</p>
<div class="charts">
{charts}
</div>
<div class="box">{table}</div>
<p>Spark measurements behind the engine's model: github.com/djangodevreng/dgx-spark-benchmarks, © Django de Vreng,
CC-BY-4.0.</p>
</body>
</html>
"""


def cells(figures: Figures) -> list[str]:
    return [format(getattr(figures, name), spec) for name, (_, spec) in COLUMNS.items()]


def table(points: Sequence[Point]) -> Table:
    found = Table(box=None, pad_edge=False, header_style="dim")
    found.add_column("")
    for title, _ in COLUMNS.values():
        found.add_column(title, justify="right")
    for point in points:
        found.add_row(point.name, *cells(point.figures), style="" if point.long_share else "dim")
    return found


def markdown(points: Sequence[Point]) -> str:
    lines = [["", *(title for title, _ in COLUMNS.values())], ["---", *(["---:"] * len(COLUMNS))]]
    lines += [[point.name, *cells(point.figures)] for point in points]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def chart(points: Sequence[Point], what: str = "short_e2e_p50_s") -> RenderableType:
    """On a terminal of 80 columns; both axes are logarithmic."""
    curve, engine = _pairs(points, what)
    every = curve + engine
    x, y = (_span([pair[axis] for pair in every]) for axis in (0, 1))
    shown = braille.chart(
        [braille.Line(_close(curve), "cyan")],
        [braille.Marks(engine, "○", "yellow"), braille.Marks(curve, "●", "bold cyan")],
        Axis(x, TICKS),
        Axis(y, TICKS),
        "s",
    )
    key = Text("   ").append("● ", "bold cyan").append("sliced, by share   ").append("○ ", "yellow")
    return Text("\n").join([Text(f"{DRAWN[what]}, over {ACROSS}", "dim"), shown, key.append("the engine alone")])


def page(points: Sequence[Point], title: str, note: str) -> str:
    charts = "\n".join(f"<figure>{_svg(points, what, label)}</figure>" for what, label in DRAWN.items())
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in (point.name, *cells(point.figures)))}</tr>"
        for point in points
    )
    heads = "".join(f"<th>{title}</th>" for title in ("", *(title for title, _ in COLUMNS.values())))
    return PAGE.format(
        title=escape(title),
        note=escape(note),
        palette=PALETTE,
        charts=charts,
        table=f"<table><tr>{heads}</tr>{rows}</table>",
    )


def _svg(points: Sequence[Point], what: str, label: str) -> str:
    curve, engine = _pairs(points, what)
    shares = [point.long_share for point in points if point.long_share]

    def draw(axes: "Axes") -> None:
        axes.plot(*zip(*curve, strict=True), "-o", color=side(1), ms=5, label="sliced, by share")
        axes.plot(*zip(*engine, strict=True), "s", color=side(0), ms=5, label="the engine alone")
        style: Any = {"textcoords": "offset points", "color": INK}
        for share, at in zip(shares, curve, strict=True):
            if share in (min(shares), max(shares)):
                axes.annotate(f"{share:g}", at, (4, 4), **style)
        axes.set_xlabel(ACROSS)
        axes.set_ylim(bottom=0)
        axes.set_title(label, loc="left", size=10)
        axes.legend(frameon=False)

    return drawn(what.replace("_", "-"), label, draw)


def _pairs(points: Sequence[Point], what: str) -> tuple[Pairs, Pairs]:
    """Of the paces, in order of their share, and of the engine alone."""

    def of(wanted: Callable[[Point], bool]) -> Pairs:
        return [(point.figures.long_ttft_p50_s, getattr(point.figures, what)) for point in points if wanted(point)]

    return of(lambda point: point.long_share is not None), of(lambda point: point.direct)


def _close(curve: Pairs) -> Pairs:
    """With points between, from left to right, so that a line can be drawn."""
    steps = [step / BETWEEN for step in range(BETWEEN)]
    found = [
        (left[0] + step * (right[0] - left[0]), left[1] + step * (right[1] - left[1]))
        for left, right in pairwise(sorted(curve))
        for step in steps
    ]
    return [*found, *sorted(curve)[-1:]]


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / MARGIN, max(values) * MARGIN
