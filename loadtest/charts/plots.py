"""The charts of a report, each a small drawing. A side's colour is its number's; waits are in seconds.

Waits have a logarithmic scale, for what matters of them are multiples; bars start at zero. Who never got an answer is
drawn at the edge, not left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

from loadtest.charts.axis import Axis
from loadtest.charts.svg import FAINT, FONT_SIZE, HEIGHT, INK, PAPER, STAGES, WIDTH, by_itself, drawn, side
from loadtest.charts.units import seconds, shown
from loadtest.results.points import LIMITS_S, Rate
from loadtest.results.records import percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORTEST_S = 0.02  # what is drawn of a wait, at the least
TICKS_S = {
    0.0001: "0.1 ms",
    0.0003: "0.3 ms",
    0.001: "1 ms",
    0.003: "3 ms",
    0.01: "0.01 s",
    0.03: "0.03 s",
    0.1: "0.1 s",
    0.3: "0.3 s",
    1: "1 s",
    3: "3 s",
    10: "10 s",
    30: "30 s",
    120: "2 min",
    600: "10 min",
    3600: "1 h",
    14_400: "4 h",
    86_400: "24 h",
}
MAX_STEPS = 200  # of a distribution
LONGEST_NAME = 16
TITLE = 48  # letters in a line of it
PIXELS = (600, 360)  # dots that fall on the same of these are one
DASHES = ("-", "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def dash(number: int) -> Any:
    """The line of the side of that number, so that colour is not all that tells."""
    return DASHES[number % len(DASHES)]


@dataclass(frozen=True)
class Dots:
    """`waits` by arrival; `pale` are those of long prompts."""

    waits: Sequence[tuple[float, float]]
    pale: bool = False


@dataclass(frozen=True)
class Waits:
    """Those of one side. `until` is the end of the run, and `room` from the shortest to the longest wait of all
    sides, so that their charts can be compared."""

    side: int
    dots: Sequence[Dots]
    until: float
    room: tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """Mean seconds in line, in prefill and in decode."""

    part: str
    name: str
    side: int
    stages: tuple[float, float, float]


@dataclass(frozen=True)
class Curve:
    name: str
    side: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Priced:
    """Seconds by tokens, as they are believed, or were learned."""

    name: str
    points: Sequence[tuple[float, float]]
    learned: bool


def distribution(key: str, label: str, waits: Sequence[tuple[int, Sequence[float]]]) -> str:
    """Of each side, how many of its requests had waited at most so long."""

    def draw(axes: "Axes") -> None:
        known = [wait for _, each in waits for wait in each if isfinite(wait)]
        _waits(axes, "x", known)
        for number, each in waits:
            ordered = sorted(max(wait, SHORTEST_S) for wait in each)
            count = sum(map(isfinite, ordered))
            places = sorted({round(step * (count - 1) / MAX_STEPS) for step in range(MAX_STEPS + 1)}) if count else []
            shares = [100 * (place + 1) / len(ordered) for place in places]
            axes.step([ordered[place] for place in places], shares, where="post", color=side(number), ls=dash(number))
        for q in (50, 95):
            found = [(percentile(each, q), number) for number, each in waits if each]
            _marked(axes, q, sorted((max(at, SHORTEST_S), number) for at, number in found if isfinite(at)))
        axes.set_ylim(0, 104)
        axes.set_yticks([0, 50, 95], ["0", "half", "95 %"])

    return drawn(key, label, draw)


def over_time(key: str, label: str, waits: Waits) -> str:
    """One side's waits by when they began."""

    def draw(axes: "Axes") -> None:
        _waits(axes, "y", waits.room)
        axes.set_xlim(0, waits.until)
        low, high = axes.get_ylim()
        for each in waits.dots:
            known = [(at, min(max(wait, low), high)) for at, wait in each.waits if isfinite(wait)]
            _dots(axes, known, waits.side, each.pale)
        if never := [at for each in waits.dots for at, wait in each.waits if not isfinite(wait)]:
            axes.plot(never, [high] * len(never), "x", color=INK, ms=6, mew=1.5, clip_on=False)
        _clock(axes, waits.until)

    return drawn(key, label, draw)


def stages(key: str, label: str, bars: Sequence[Bar]) -> str:
    """Where the time of an answer went."""

    def draw(axes: "Axes") -> None:
        place, places, names = 0.0, [], []
        part = None
        for bar in bars:
            if bar.part != part:
                part = bar.part
                place += 0.9 if part else 0
                axes.text(0, place - 0.85, _brief(part), color=INK, weight="bold", va="center", clip_on=False)
            left = 0.0
            for length, colour in zip(bar.stages, STAGES, strict=True):
                axes.barh(place, length, 0.7, left=left, color=colour, linewidth=0)
                left += length
            axes.annotate(seconds(left, 2), (left, place), (4, 0), textcoords="offset points", va="center", color=INK)
            places.append(place)
            names.append(_brief(bar.name))
            place += 1
        axes.set_yticks(places, names)
        axes.set_ylim(place - 0.4, -0.45 if bars[0].part else -0.6)
        axes.grid(False, axis="y")
        axes.set_xlim(0, 1.12 * max(sum(bar.stages) for bar in bars))
        _seconds(axes)

    parts = len({bar.part for bar in bars})
    return drawn(key, label, draw, height=0.7 + 0.24 * len(bars) + 0.24 * parts)


def going_on(key: str, label: str, curves: Sequence[Curve], unit: str) -> str:
    """Something that goes on at so much a second."""

    def draw(axes: "Axes") -> None:
        for curve in curves:
            times, values = zip(*curve.points, strict=True)
            axes.step(times, values, where="post", color=side(curve.side), ls=dash(curve.side), lw=1.5)
        axes.set_ylim(0, None)
        axes.set_ylabel(unit)
        _clock(axes, max(curve.points[-1][0] for curve in curves))

    return drawn(key, label, draw)


def people(key: str, label: str, waits: Sequence[tuple[str, Sequence[tuple[int, float, float]]]]) -> str:
    """Of each person and side, the median and the 95th percentile."""

    def draw(axes: "Axes") -> None:
        _waits(axes, "x", [wait for _, sides in waits for _, *both in sides for wait in both if isfinite(wait)])
        low, high = axes.get_xlim()
        for row, (_, sides) in enumerate(waits):
            for place, (number, p50, p95) in enumerate(sides):
                y = row + (place - (len(sides) - 1) / 2) * 0.7 / len(sides)
                ends = [min(max(wait, low), high) for wait in (p50, p95)]
                axes.plot(ends, [y, y], color=side(number), lw=2, alpha=0.5)
                for at, wait, filled in zip(ends, (p50, p95), (True, False), strict=True):
                    style = "o" if isfinite(wait) else ">"
                    face = side(number) if filled else PAPER
                    axes.plot([at], [y], style, ms=4.5, color=side(number), mfc=face, mew=1.2, clip_on=False)
        axes.set_yticks(range(len(waits)), [_brief(name) for name, _ in waits])
        axes.set_ylim(len(waits) - 0.4, -0.6)
        axes.grid(False, axis="y")

    rows = sum(max(1.0, 0.55 * len(sides)) for _, sides in waits)
    return drawn(key, label, draw, height=0.6 + 0.21 * rows)


def capacities(key: str, label: str, sides: Sequence[tuple[int, Sequence[Rate]]]) -> str:
    """Of each side, the 95th percentile of the wait at each rate, against what may be waited."""

    def draw(axes: "Axes") -> None:
        known = [rate.p95_s for _, found in sides for rate in found if isfinite(rate.p95_s)]
        _waits(axes, "y", [*known, *LIMITS_S], {limit: f"{limit:g} s" for limit in LIMITS_S})
        _, high = axes.get_ylim()
        fastest = max((rate.rps for _, found in sides for rate in found), default=1.0)
        axes.set_xlim(0, 1.05 * fastest)
        for limit in LIMITS_S:
            axes.axhline(limit, color=FAINT, lw=1, ls=(0, (1, 2)))
        for number, found in sides:
            shape = [(rate.rps, min(rate.p95_s, high)) for rate in found]
            axes.plot(*zip(*shape, strict=True), "o", ls=dash(number), color=side(number), ms=5, mec=PAPER)
        axes.set_xticks(sorted({rate.rps for _, found in sides for rate in found}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(False)
        axes.set_xlabel("requests a second")

    return drawn(key, label, draw)


def by_size(key: str, label: str, curves: Sequence[Curve], unit: str, *, waits: bool = False) -> str:
    """Something against how many ask at once; each curve has its name at its end."""

    def draw(axes: "Axes") -> None:
        sizes = sorted({int(size) for curve in curves for size, _ in curve.points})
        for curve in curves:
            shape = list(zip(*curve.points, strict=True))
            axes.plot(*shape, "o", ls=dash(curve.side), color=side(curve.side), ms=5, mec=PAPER)
        if waits:
            _waits(axes, "y", [value for curve in curves for _, value in curve.points])
        else:
            axes.set_ylim(0, 1.08 * max(value for curve in curves for _, value in curve.points))
            axes.set_ylabel(unit)
        axes.set_xticks(sizes)
        axes.grid(False, axis="x")
        axes.set_xlim(0, (1.35 if any(curve.name for curve in curves) else 1.05) * sizes[-1])
        axes.set_xlabel("at once")
        _named_at_their_ends(axes, [curve for curve in curves if curve.name])

    return drawn(key, label, draw)


def prices(
    key: str,
    label: str,
    lines: Sequence[Priced],
    dots: Sequence[tuple[bool, Sequence[tuple[float, float]]]],
    tokens: Axis,
) -> str:
    """What a prompt costs by its length, a file by itself. Samples are filled if the prompt was alone."""

    def draw(axes: "Axes") -> None:
        found = [*(line.points for line in lines), *(each for _, each in dots)]
        known = [at for points in found for _, at in points]
        _logarithmic(axes, "y", Axis((min(known) / 1.3, max(known) * 1.3), TICKS_S))
        _logarithmic(axes, "x", tokens)
        for line in lines:
            style: Any = {"lw": 2.5, "ls": "-"} if line.learned else {"lw": 1.2, "ls": "--"}
            axes.plot(*zip(*line.points, strict=True), color=side(int(line.learned)), label=line.name, **style)
        for alone, points in dots:
            if points:
                what = "a prompt by itself" if alone else "corrected: partly cached, or not alone"
                style = {"ms": 5, "mec": INK, "mew": 1, "mfc": INK if alone else "none", "zorder": 3}
                axes.plot(*zip(*points, strict=True), "o", color=INK, alpha=0.65, label=what, **style)
        axes.set_xlabel("tokens of the prompt")
        axes.set_title("\n".join(wrap(label, TITLE)), loc="left", size=FONT_SIZE)
        # Above a curve that rises to the right there is room.
        axes.legend(loc="upper left", framealpha=1, facecolor=PAPER, edgecolor=PAPER, handlelength=1.8, borderpad=0.2)

    return by_itself(drawn(key, label, draw, height=3.4), WIDTH, 3.4)


def _brief(name: str) -> str:
    """In one line, and short enough to leave room for what it names."""
    line = "".join(letter if letter.isprintable() else " " for letter in name)
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def _marked(axes: "Axes", share: float, found: Sequence[tuple[float, int]]) -> None:
    """Where the curves pass; what is written stands outside of them, so only the first and the last have it."""
    for place, (at, number) in enumerate(found):
        axes.plot([at], [share], "o", color=side(number), ms=5, mec=PAPER, mew=1)
        last = place == len(found) - 1
        if last or place == 0:
            axes.annotate(
                seconds(at, 2),
                (at, share),
                (6, -3) if last else (-6, 3),
                textcoords="offset points",
                ha="left" if last else "right",
                va="top" if last else "bottom",
                color=side(number),
                weight="bold",
            )


def _named_at_their_ends(axes: "Axes", curves: Sequence[Curve]) -> None:
    """One above the other, with room for each."""
    height = HEIGHT * 72 * 0.75  # of the axes, about
    below = -FONT_SIZE
    for curve in sorted(curves, key=lambda curve: curve.points[-1][1]):
        x, y = curve.points[-1]
        at = height * float(axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1])
        above = max(at, below + FONT_SIZE)
        below = above
        axes.annotate(
            curve.name, (x, y), (6, above - at), textcoords="offset points", va="center", color=side(curve.side)
        )


# Axes.


def _waits(
    axes: "Axes", which: Literal["x", "y"], waits: Iterable[float], limits: Mapping[float, str] | None = None
) -> None:
    """Room for these, on a logarithmic scale with ticks that people read; at the limits, where there are some."""
    known = [max(wait, SHORTEST_S) for wait in waits] or [0.1, 10.0]
    low, high = min(known) / 1.3, max(known) * 1.3
    if high / low < 12:  # two ticks at the least
        low, high = low / 2, high * 2
    ticks = {at: text for at, text in TICKS_S.items() if low <= at <= high}
    if limits:
        ticks = {at: text for at, text in ticks.items() if not min(limits) / 2 < at < 2 * max(limits)} | dict(limits)
    _logarithmic(axes, which, Axis((low, high), ticks))


def _logarithmic(axes: "Axes", which: Literal["x", "y"], scale: Axis) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(*scale.span)
    else:
        axes.set_yscale("log")
        axes.set_ylim(*scale.span)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(scale.ticks)))
    axis.set_major_formatter(FixedFormatter(list(scale.ticks.values())))
    axis.set_minor_locator(NullLocator())


def _clock(axes: "Axes", until: float) -> None:
    """Time from the start, in minutes where seconds would be many."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    steps = MaxNLocator(5, steps=[1, 2, 3, 5, 6, 10])
    minutes = until >= 600
    unit = 60.0 if minutes else 1.0
    axes.set_xticks([unit * tick for tick in steps.tick_values(0, until / unit) if 0 <= unit * tick <= until])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at / unit:g}"))
    axes.grid(False, axis="x")
    axes.set_xlabel("minutes from the start" if minutes else "seconds from the start")


def _seconds(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: shown(at, "s", 2) if at else "0"))


def _dots(axes: "Axes", dots: Sequence[tuple[float, float]], number: int, pale: bool) -> None:
    """In one path: a line of no length with round ends is a dot, at a tenth of a marker's size."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not dots:
        return
    places = axes.transAxes.inverted().transform(axes.transData.transform(dots))
    kept = {(round(x * PIXELS[0]), round(y * PIXELS[1])): dot for (x, y), dot in zip(places, dots, strict=True)}
    ends = [end for dot in sorted(kept.values()) for end in (dot, dot)]
    path = Path(ends, [Path.MOVETO, Path.LINETO] * len(kept))
    style = {"lw": 8, "alpha": 0.3} if pale else {"lw": 4, "alpha": 0.8}
    axes.add_patch(PathPatch(path, fill=False, color=side(number), capstyle="round", clip_on=False, **style))
