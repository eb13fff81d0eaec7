"""What came of it, in one sentence for everybody: who waited how long, who paid for it, and what failed.

The one who loses is told like the one who wins, and what may be chance is called no clear difference. Times are
medians, from arrival, with failures as waits without an end.
"""

from collections.abc import Iterable, Sequence
from math import inf

from loadtest.charts.units import number, spoken
from loadtest.report.comparison import LONG, SHORT, Cell, Comparison, Side
from loadtest.results.groups import Group
from loadtest.results.points import LIMITS_S, Batch, Rate, batches, capacity, rates
from policies import names

UNNOTICED = 0.05  # of a ratio, what nobody notices
MAX_SIDES_TOLD = 4  # sides, one by one

WITHOUT_GATEWAY = {
    "direct": "straight at the engine",
    "priority": "with vLLM's own priorities",
    "semaphore": "behind a semaphore",
}
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def sentence(groups: Sequence[Group], compared: Comparison) -> str:
    sides = compared.sides
    by = [_by(side, sides) for side in sides]
    points = groups[0][0].summary.points
    if not all(side.offered for side in sides):
        nobody = _listed([how for how, side in zip(by, sides, strict=True) if not side.offered])
        return f"Nothing came to an end {nobody}, so there is nothing to tell."
    if any(point.concurrency is not None for point in points):
        clauses = _closed(by, [batches(group) for group in groups])
    elif any(point.rate is not None for point in points):
        clauses = _sweep(by, [rates(group) for group in groups])
    else:
        clauses = _waits(by, compared)
    said = "; ".join([*clauses, _failures(by, sides)])
    return f"{said[0].upper()}{said[1:]}."


def called(side: Side, sides: Sequence[Side]) -> str:
    """What stood before the engine, if that tells the sides apart; else what the run is called."""
    if [other.policy for other in sides].count(side.policy) > 1:
        return side.name
    return f"Fairlane ({side.policy})" if side.policy in names() else side.policy or side.name


def _by(side: Side, sides: Sequence[Side]) -> str:
    name = called(side, sides)
    return WITHOUT_GATEWAY.get(name, f"with {name}")


# A load of people, or one of prompts of all sizes.


def _waits(by: Sequence[str], compared: Comparison) -> Iterable[str]:
    short, long = compared.short, compared.long
    one, plural = _nouns(short, SHORT, "question") if short else ("request", "requests")
    noun, answers = f"a {one}", "whole short answers" if short else "whole answers"
    document, papers = _nouns(long, LONG, "document")
    waits, tails = compared.cells("ttft_arrival_p50", short), compared.cells("ttft_arrival_p95", short)
    ends = compared.cells("e2e_p50", short)
    documents = compared.cells("ttft_arrival_p50", long) if long else ()
    if len(by) == 1:
        yield from _one_wait(noun, plural, by[0], waits[0], tails[0])
        if documents:
            yield f"a {document} waited {_s(documents[0])}"
        if ends[0].value != inf:
            yield f"{answers} took {_s(ends[0])}"
    elif len(by) == 2:
        yield f"{by[1]} {_two_waits(noun, plural, by[0], *waits)}"
        if inf not in (waits[0].value, waits[1].value):
            yield _two_tails(*tails)
        if documents:
            slow = _but_some(documents[1], *compared.cells("ttft_arrival_p95", long))
            yield f"{_two_documents(papers, by[0], *documents)}{slow}"
        yield _two_answers(answers, by[0], *ends)
    else:
        told = _told(waits)
        each = [f"{_s(waits[side])}{' for its first word' * (side == 0)} {by[side]}" for side in told]
        yield f"{noun} typically waited {_listed(each)}"
        if documents:
            yield f"a {document} {_listed([_s(documents[side]) for side in told])}"
        if len(by) > len(told):
            yield f"the {len(by) - len(told)} others lie between"


def _one_wait(noun: str, plural: str, how: str, wait: Cell, tail: Cell) -> Iterable[str]:
    if wait.value == inf:
        yield f"{how} most {plural} never got an answer"
        return
    yield f"{how} {noun} typically waited {_s(wait)} for its first word"
    yield "one in twenty never got any" if tail.value == inf else f"one in twenty waited more than {_s(tail)}"


def _two_waits(noun: str, plural: str, before: str, base: Cell, now: Cell) -> str:
    if now.value == inf:
        other = ", either way" if base.value == inf else f"; {before} it waited {_s(base)} for its first word"
        return f"most {plural} never got an answer{other}"
    waited = f"{noun} typically waited {_s(now)} for its first word"
    if base.value == inf:
        return f"{waited}; {before} most {plural} never got an answer"
    return f"{waited}{_against(base, now)}"


def _two_tails(base: Cell, now: Cell) -> str:
    if now.value == inf:
        return f"one in twenty never got any{' either way' if base.value == inf else f', instead of after {_s(base)}'}"
    return f"one in twenty waited more than {_s(now)}{_against(base, now)}"


def _nouns(part: str, of_many_kinds: str, of_one: str) -> tuple[str, str]:
    """People know their kinds of work by other words; where there is one of a size, it is what we say it is."""
    size = of_many_kinds.partition(" ")[0]
    noun = f"{size} {'request' if part == of_many_kinds else of_one}"
    return noun, f"{noun}s"


def _two_documents(plural: str, before: str, base: Cell, now: Cell) -> str:
    if inf in (base.value, now.value):
        return f"most {plural} {_never(before, base, now)}"
    if _alike(now):
        return f"{plural} waited {_s(now)}{_against(base, now)}"
    if now.ratio is not None and now.ratio > 1:
        return f"the {plural}' first words came {number(now.ratio, 2)} times later ({_s(now)}, not {_s(base)})"
    return f"the {plural}' first words came sooner, after {_s(now)} instead of {_s(base)}"


def _but_some(median: Cell, base: Cell, now: Cell) -> str:
    """Where the median hides who pays."""
    told = not _alike(median) and median.ratio is not None and median.ratio > 1
    if told or now.verdict != "worse" or _alike(now):
        return ""
    return (
        f", but one in twenty {'never got any' if now.value == inf else f'more than {_s(now)} instead of {_s(base)}'}"
    )


def _two_answers(noun: str, before: str, base: Cell, now: Cell) -> str:
    if inf in (base.value, now.value):
        return f"most {noun} {_never(before, base, now)}"
    if _alike(now):
        return f"{noun} took about as long ({_s(now)})"
    if now.ratio is not None and now.ratio > 1:
        return f"{noun} took {number(now.ratio, 2)} times as long ({_s(now)}, not {_s(base)})"
    return f"{noun} took {_s(now)} instead of {_s(base)}"


def _never(before: str, base: Cell, now: Cell) -> str:
    if now.value == inf == base.value:
        return "never came, either way"
    if now.value == inf:
        return f"never came, and after {_s(base)} {before}"
    return f"came after {_s(now)}, and never {before}"


def _told(cells: Sequence[Cell]) -> list[int]:
    """Of many sides, the first, the best and the worst."""
    if len(cells) <= MAX_SIDES_TOLD:
        return list(range(len(cells)))
    ordered = sorted(range(len(cells)), key=lambda side: inf if (value := cells[side].value) is None else value)
    return sorted({0, ordered[0], ordered[-1]})


# How fast requests may come.


def _sweep(by: Sequence[str], found: Sequence[Sequence[Rate]]) -> Iterable[str]:
    highest = {limit: [_rate(each, limit) for each in found] for limit in LIMITS_S}
    low, middle, high = LIMITS_S
    if len(by) > 2:
        each = [f"{rps} {how}" for rps, how in zip(highest[middle], by, strict=True)]
        yield f"with 95 of 100 first words within {middle:g} s, so many requests a second may come: {_listed(each)}"
        return
    kept_up = _instead(*highest[middle], unit=" requests a second")
    yield f"{by[-1]} it kept up with {kept_up} (95 of 100 first words within {middle:g} s)"
    for limit in (high, low):
        yield f"within {limit:g} s {_instead(*highest[limit])}"


def _rate(found: Sequence[Rate], limit_s: float) -> str:
    """In words; what was the highest rate that was tried may not be the highest there is."""
    rps = capacity(found, limit_s)
    if rps is None:
        return f"not even {found[0].rps:g}" if found else "none"
    return f"at least {rps:g}" if rps == found[-1].rps else f"{rps:g}"


# Batches in lock-step.


def _closed(by: Sequence[str], found: Sequence[Sequence[Batch]]) -> Iterable[str]:
    sizes = sorted({batch.size for batch in found[0]})
    few, many = sizes[0], sizes[-1]
    longest = max(batch.pp for batch in found[0])

    def speeds(size: int) -> list[str]:
        return [_range(batch.tps_each for batch in each if batch.size == size) for each in found]

    def waits(size: int) -> list[str]:
        return [_first(each, longest, size) for each in found]

    prompt = f"the first word of a prompt of {longest:,} tokens came after"
    if len(by) > 2:
        yield f"{_users(many)} got so many tokens a second each: {_listed(_with(speeds(many), by))}"
        yield f"{prompt} {_listed(waits(many))}"
        return
    alone = f"{_users(few)} got {_instead(*speeds(few), unit=' tokens a second')}"
    if few == many:
        yield f"{by[-1]} {alone}"
        yield f"{prompt} {_instead(*waits(few))}"
    elif len(by) == 1:
        yield f"{by[0]} {alone}, {_users(many)} {speeds(many)[0]} each"
        yield f"{prompt} {waits(few)[0]} with {_users(few)}, {waits(many)[0]} with {_users(many)}"
    else:
        yield f"{by[1]} {_users(many)} got {_instead(*speeds(many), unit=' tokens a second each')}"
        yield f"{prompt} {_instead(*waits(many))}"
        yield alone


def _with(told: Sequence[str], by: Sequence[str]) -> list[str]:
    return [f"{what} {how}" for what, how in zip(told, by, strict=True)]


def _first(found: Iterable[Batch], pp: int, size: int) -> str:
    wait = next((batch.ttft_s for batch in found if (batch.pp, batch.size) == (pp, size)), None)
    return "no time that is known" if wait is None else spoken(wait)


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "no"
    low, high = number(min(known), 2), number(max(known), 2)
    return low if low == high else f"{low} to {high}"


def _users(size: int) -> str:
    return f"{WORDS[size] if size < len(WORDS) else size} user{'s' * (size != 1)}"


# What failed.


def _failures(by: Sequence[str], sides: Sequence[Side]) -> str:
    if not any(side.failed for side in sides):
        return "nothing failed"
    if len(sides) == 1:
        return _failed(sides[0])
    if len(sides) == 2:
        base, now = sides
        before = "none" if not base.failed else f"{base.failed:,}" if base.offered == now.offered else _failed(base)
        return f"{_failed(now)}, {before} {by[0]}"
    told = [f"{side.failed:,} of {side.offered:,} {how}" for side, how in zip(sides, by, strict=True) if side.failed]
    return f"requests that failed: {_listed(told)}"


def _failed(side: Side) -> str:
    if not side.failed:
        return "nothing failed"
    many = f"{side.failed:,} of {side.offered:,} requests"
    if side.rejected == side.failed:
        return f"{many} were turned away"
    return f"{many} failed{f' ({side.rejected:,} of them turned away)' if side.rejected else ''}"


# Small words.


def _s(cell: Cell) -> str:
    if cell.value is None:
        return "no time that is known"
    return "for ever" if cell.value == inf else spoken(cell.value)


def _alike(cell: Cell) -> bool:
    return cell.in_doubt or cell.ratio is None or abs(cell.ratio - 1) <= UNNOTICED


def _against(base: Cell, now: Cell) -> str:
    if _s(base) == _s(now):
        return " either way"
    return f", no clear difference from {_s(base)}" if now.in_doubt else f" instead of {_s(base)}"


def _instead(base: str, now: str | None = None, *, unit: str = "") -> str:
    """One side's, or the second one's against the first one's."""
    if now is None:
        return f"{base}{unit}"
    return f"{now}{unit}, either way" if base == now else f"{now}{unit} instead of {base}"


def _listed(told: Sequence[str]) -> str:
    *others, last = told
    return f"{', '.join(others)} and {last}" if others else last
