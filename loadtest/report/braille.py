"""A small chart on a terminal, both axes logarithmic: curves in braille's dots, eight to a letter, and marks on top.

plotext could draw it, at the price of a kernel in C++ and two hundred files; this is all that is wanted of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log

from rich.text import Text

WIDTH, HEIGHT = 64, 16  # letters
DASH = (5, 4)  # dots drawn, dots left out

_BLANK = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a letter, row by row

Point = tuple[float, float]
Span = tuple[float, float]
Ticks = Mapping[int, str] | Mapping[float, str]


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


def chart(
    lines: Iterable[Line], marks: Iterable[Marks], x: Span, y: Span, x_ticks: Ticks, y_ticks: Ticks, unit: str
) -> Text:
    """What comes later is drawn over what came before. `unit` is written at the end of the x axis."""
    letters: dict[tuple[int, int], tuple[str, str]] = {}
    for line in lines:
        for place, dots in _dots(line, x, y).items():
            before = ord(letters[place][0]) - _BLANK if place in letters else 0
            letters[place] = chr(_BLANK | before | dots), line.style
    for each in marks:
        for point in each.points:
            column, row = _at(point, x, y, WIDTH, HEIGHT)
            letters[column, row] = each.letter, each.style
    rows = {_at((x[0], at), x, y, WIDTH, HEIGHT)[1]: text for at, text in y_ticks.items() if y[0] <= at <= y[1]}
    columns = {_at((at, y[0]), x, y, WIDTH, HEIGHT)[0]: text for at, text in x_ticks.items() if x[0] <= at <= x[1]}
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


def _dots(line: Line, x: Span, y: Span) -> dict[tuple[int, int], int]:
    """Of each letter, which dots are drawn: one in each column of dots, and those that join it to the one before."""
    found: dict[tuple[int, int], int] = {}
    before: int | None = None
    for across, down in _columns(line.points, x, y):
        rows = range(min(before, down) + 1, max(before, down)) if before is not None else range(0)
        before = down
        if line.dashed and across % sum(DASH) >= DASH[0]:
            continue
        for row in (*rows, down):
            if 0 <= row < 4 * HEIGHT:
                place = across // 2, row // 4
                found[place] = found.get(place, 0) | _DOTS[row % 4][across % 2]
    return found


def _columns(points: Sequence[Point], x: Span, y: Span) -> Iterable[tuple[int, int]]:
    places = dict(_at(point, x, y, 2 * WIDTH, 4 * HEIGHT) for point in points)
    return sorted((across, down) for across, down in places.items() if 0 <= across < 2 * WIDTH)


def _at(point: Point, x: Span, y: Span, width: int, height: int) -> tuple[int, int]:
    """Column and row, from the top left."""
    across, up = _part(point[0], x), _part(point[1], y)
    return round(across * (width - 1)), round((1 - up) * (height - 1))


def _part(value: float, span: Span) -> float:
    return log(value / span[0]) / log(span[1] / span[0])
