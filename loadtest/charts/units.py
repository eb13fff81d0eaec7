"""Figures as people read them: so many digits as mean something, seconds until they are minutes, "never" for never."""

from math import floor, inf, isnan, log10

from loadtest.results.figures import Unit

MINUTE, HOUR = 60.0, 3600.0
NOTHING = "–"


def shown(value: float | None, unit: Unit, digits: int = 3) -> str:
    if value is None or isnan(value):
        return NOTHING
    if value == inf:
        return "never"
    match unit:
        case "s":
            return seconds(value, digits)
        case "%":
            return f"{number(100 * value, digits)} %"
        case "":
            return number(value, digits)
    return f"{number(value, digits)} {unit}"


def seconds(value: float, digits: int = 3) -> str:
    """Of ten minutes and more, minutes; of two hours and more, hours."""
    if value >= 2 * HOUR:
        return f"{number(value / HOUR, digits)} h"
    if value >= 10 * MINUTE:
        return f"{number(value / MINUTE, digits)} min"
    return f"{number(value, digits)} s"


def spoken(value: float) -> str:
    """Seconds as one says them."""
    if value >= 2 * HOUR:
        return f"{number(value / HOUR, 2)} hours"
    return f"{number(value / MINUTE, 2)} minutes" if value >= 2 * MINUTE else f"{number(value, 2)} s"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, at most three behind the point, and no exponent."""
    if value == 0:
        return "0"
    behind = digits - 1 - floor(log10(abs(value)))
    rounded = round(value, behind)
    behind = digits - 1 - floor(log10(abs(rounded))) if rounded else behind  # 9.96 is 10, not 10.0
    return f"{rounded:,.{min(3, max(0, behind))}f}" if abs(value) >= 0.0005 else "<0.001"


def times(ratio: float | None) -> str:
    """A ratio, as a factor."""
    return NOTHING if ratio is None or isnan(ratio) else f"{_factor(ratio)}×".replace("∞×", "∞")


def span(interval: tuple[float, float]) -> str:
    low, high = map(_factor, interval)
    return low if low == high else f"{low}–{high}"


def _factor(ratio: float) -> str:
    if ratio == inf:
        return "∞"
    return f"{ratio:.2f}" if 0.1 <= ratio < 9.995 else number(ratio, 3 if ratio > 1 else 2)
