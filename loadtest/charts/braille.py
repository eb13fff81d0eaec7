"""A small chart on a terminal, both axes logarithmic: curves in braille's dots, eight to a letter, and marks on top.

plotext could draw it, at the price of a kernel in C++ and two hundred files; this is all that is wanted of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log

from rich.text import Text

from loadtest.charts.axis import Axis

WIDTH, HEIGHT = 64, 16  # letters
DASH = (5, 4)  # dots drawn, dots left out

_BLANK = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a letter, row by row

Point = tuple[float, float]
Span = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points from left to right, close enough for what is between them to be straight."""

    points: Sequence[Point]
    style: str
    dashed: bool = False


@dataclass(frozen=True)
class Marks:
    points: Sequence[Point]
    letter: str
    style: str


@dataclass(frozen=True)
class _Grid:
    """Places on a logarithmic chart, counted from the top left."""

    x: Span
    y: Span
    width: int
    height: int

    def at(self, point: Point) -> tuple[int, int]:
        """Column and row."""
        return self.column(point[0]), self.row(point[1])

    def column(self, value: float) -> int:
        return round(_share(value, self.x) * (self.width - 1))

    def row(self, value: float) -> int:
        return round((1 - _share(value, self.y)) * (self.height - 1))


def chart(lines: Iterable[Line], marks: Iterable[Marks], x: Axis, y: Axis, unit: str) -> Text:
    """What comes later is drawn over what came before. `unit` is written at the end of the x axis."""
    grid = _Grid(x.span, y.span, WIDTH, HEIGHT)
    fine = _Grid(x.span, y.span, 2 * WIDTH, 4 * HEIGHT)
    letters: dict[tuple[int, int], tuple[str, str]] = {}
    for line in lines:
        for place, dots in _dots(line, fine).items():
            before = ord(letters[place][0]) - _BLANK if place in letters else 0
            letters[place] = chr(_BLANK | before | dots), line.style
    for each in marks:
        for point in each.points:
            letters[grid.at(point)] = each.letter, each.style
    rows = {grid.row(at): text for at, text in y.ticks.items() if y.span[0] <= at <= y.span[1]}
    columns = {grid.column(at): text for at, text in x.ticks.items() if x.span[0] <= at <= x.span[1]}
    margin = max(map(len, rows.values()), default=0) + 1
    drawn = Text()
    for row in range(HEIGHT):
        drawn.append(rows.get(row, "").rjust(margin), "dim")
        drawn.append(" ┤" if row in rows else " │", "dim")
        for column in range(WIDTH):
            drawn.append(*letters.get((column, row), (" ", "")))
        drawn.append("\n")
    axis = "".join("┬" if column in columns else "─" for column in range(WIDTH))
    drawn.append(f"{'':{margin}} └{axis}\n{'':{margin + 2}}{_labels(columns)} {unit}", "dim")
    return drawn


def _labels(columns: Mapping[int, str]) -> str:
    """Each below its tick, those left out that would touch the one before."""
    written = ""
    for column, text in sorted(columns.items()):
        begin = max(0, column - len(text) // 2)
        if begin > len(written) or not written:
            written = written.ljust(begin) + text
    return written


def _dots(line: Line, grid: _Grid) -> dict[tuple[int, int], int]:
    """Of each letter, which dots are drawn: one in each column of dots, and those that join it to the one before."""
    found: dict[tuple[int, int], int] = {}
    before: int | None = None
    for across, down in _columns(line.points, grid):
        rows = range(min(before, down) + 1, max(before, down)) if before is not None else range(0)
        before = down
        if line.dashed and across % sum(DASH) >= DASH[0]:
            continue
        for row in (*rows, down):
            if 0 <= row < 4 * HEIGHT:
                place = across // 2, row // 4
                found[place] = found.get(place, 0) | _DOTS[row % 4][across % 2]
    return found


def _columns(points: Sequence[Point], grid: _Grid) -> Iterable[tuple[int, int]]:
    places = dict(map(grid.at, points))
    return sorted((across, down) for across, down in places.items() if 0 <= across < grid.width)


def _share(value: float, span: Span) -> float:
    return log(value / span[0]) / log(span[1] / span[0])
