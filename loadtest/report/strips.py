"""The bars of a report's first screen: one look, and who waits longer is known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

from loadtest.charts.svg import SIDES
from loadtest.charts.units import NOTHING, shown
from loadtest.report.comparison import Comparison
from loadtest.report.sentence import called
from loadtest.results.groups import Group
from loadtest.results.points import LIMITS_S, Rate, batches, capacity, rates

WAIT = "Wait for the first word"
SINGLE_SIDE = "side1"  # the class of whoever is compared with nobody; the first of several is grey


@dataclass(frozen=True)
class Strip:
    """One bar of the first screen, in percent of the longest; `pale` goes on to what one in twenty exceeds."""

    name: str
    css: str
    text: str
    solid: float
    pale: float


@dataclass(frozen=True)
class Strips:
    title: str
    bars: tuple[Strip, ...]


def strips(groups: Sequence[Group], compared: Comparison) -> Iterable[Strips]:
    """Sides against each other; of a side alone, what it has to tell apart itself."""
    points = groups[0][0].summary.points
    if any(point.concurrency is not None for point in points):
        yield from _batch_strips(groups, compared)
    elif any(point.rate is not None for point in points):
        yield _rate_strips(groups, compared)
    else:
        names = named(compared)
        sizes = _sizes(compared)
        if len(names) == 1:
            yield _wait_strips(WAIT, compared, [(title, SINGLE_SIDE, part, 0) for part, title in sizes])
            return
        for part, title in sizes:
            sides = [(name, css, part, place) for place, (css, name) in enumerate(names)]
            yield _wait_strips(f"{title}: wait for the first word" if part else WAIT, compared, sides)


def _sizes(compared: Comparison) -> list[tuple[str, str]]:
    """Parts, and what they are called here."""
    if not compared.short:
        return [("", "all requests")]
    return [(compared.short, "Short prompts"), (compared.long, "Long prompts")]


def _wait_strips(title: str, compared: Comparison, bars: Sequence[tuple[str, str, str, int]]) -> Strips:
    """Of each bar its name, its class, and whose it is: the part and the side."""
    waits = [
        (compared.cells("ttft_arrival_p50", part)[side].value, compared.cells("ttft_arrival_p95", part)[side].value)
        for _, _, part, side in bars
    ]
    longest = max((wait for both in waits for wait in both if wait and isfinite(wait)), default=1.0)
    return Strips(
        title,
        tuple(
            Strip(
                name,
                css,
                f"{shown(p50, 's', 2)} · {shown(p95, 's', 2)}",
                _percent(p50, longest),
                _percent(p95, longest),
            )
            for (name, css, _, _), (p50, p95) in zip(bars, waits, strict=True)
        ),
    )


def _rate_strips(groups: Sequence[Group], compared: Comparison) -> Strips:
    limit = LIMITS_S[1]
    if len(groups) > 1:
        found = [(rates(group), css, name) for group, (css, name) in zip(groups, named(compared), strict=True)]
        bars = [(name, css, capacity(each, limit) or 0.0, highest(each, limit)) for each, css, name in found]
        return _strips_of(f"Requests a second with 95 of 100 first words within {limit:g} s (more is better)", bars)
    waits = [
        (f"at {rate.rps:g} a second", SINGLE_SIDE, rate.p95_s, shown(rate.p95_s, "s", 2)) for rate in rates(groups[0])
    ]
    return _strips_of(f"{WAIT}: 95 of 100 within", waits)


def highest(found: Sequence[Rate], limit_s: float) -> str:
    """In signs; the highest rate that was tried may not be the highest there is."""
    rps = capacity(found, limit_s)
    if rps is None:
        return f"< {found[0].rps:g} /s" if found else NOTHING
    return f"{'≥ ' if rps == found[-1].rps else ''}{rps:g} /s"


def _batch_strips(groups: Sequence[Group], compared: Comparison) -> Iterable[Strips]:
    """Of the longest prompts: of a side alone by size, else of the largest batch by side."""
    names = named(compared)
    longest = max(batch.pp for batch in batches(groups[0]))
    found = [[batch for batch in batches(group) if batch.pp == longest] for group in groups]
    prompts = f"prompts of {longest:,} tokens"
    if len(groups) == 1:
        chosen = [(f"{batch.size} at once", SINGLE_SIDE, batch) for batch in found[0]]
    else:
        most = max(batch.size for batch in found[0])
        prompts = f"{most} at once, {prompts}"
        largest = [[batch for batch in each if batch.size == most] for each in found]
        chosen = [(name, css, batch[0]) for batch, (css, name) in zip(largest, names, strict=True) if batch]
    waits = [(name, css, batch.ttft_s or 0.0, shown(batch.ttft_s, "s", 2)) for name, css, batch in chosen]
    yield _strips_of(f"{WAIT}: {prompts}", waits)
    speeds = [(name, css, batch.tps_each or 0.0, shown(batch.tps_each, "", 2)) for name, css, batch in chosen]
    yield _strips_of(f"Words a second, each user: {prompts} (more is better)", speeds)


def _strips_of(title: str, bars: Sequence[tuple[str, str, float, str]]) -> Strips:
    longest = max((value for _, _, value, _ in bars if isfinite(value)), default=0.0) or 1.0
    lengths = [(name, css, text, _percent(value, longest)) for name, css, value, text in bars]
    return Strips(title, tuple(Strip(name, css, text, percent, percent) for name, css, text, percent in lengths))


def _percent(value: float | None, longest: float) -> float:
    return 0.0 if value is None else round(100 * min(value / longest, 1.0), 1)


def named(compared: Comparison) -> list[tuple[str, str]]:
    if len(compared.sides) == 1:
        return [(SINGLE_SIDE, called(compared.sides[0], compared.sides))]
    return [(f"side{place % SIDES}", called(side, compared.sides)) for place, side in enumerate(compared.sides)]
