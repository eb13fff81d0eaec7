"""Which charts a report has, and what is in them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import fmean

from loadtest.charts import plots
from loadtest.charts.plots import Bar, Curve, Dots, Waits
from loadtest.charts.svg import SIDES
from loadtest.report.comparison import Comparison
from loadtest.report.sentence import called
from loadtest.results.figures import wait
from loadtest.results.groups import Group, counted, long_kinds
from loadtest.results.points import batches, rates
from loadtest.results.records import percentile
from loadtest.results.summary import Row

MAX_PEOPLE = 14
BINS = 60  # of a run, of its throughput


@dataclass(frozen=True)
class Chart:
    """`title` and `plain` are for everybody, `technical` for engineers.

    colours  what its colours mean: class of the page and name
    """

    title: str
    plain: str
    technical: str
    svg: str
    colours: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A side, as it is drawn: its number is its colour's."""

    number: int
    name: str
    runs: tuple[tuple[Row, ...], ...]

    @property
    def rows(self) -> list[Row]:
        return [row for run in self.runs for row in run]


def gallery(groups: Sequence[Group], compared: Comparison) -> list[Chart]:
    first = len(groups) == 1  # a side alone is not the grey one
    sides = [
        Drawn(number + first, called(side, compared.sides), tuple(tuple(counted(run)) for run in group))
        for number, (side, group) in enumerate(zip(compared.sides, groups, strict=True))
    ]
    if not any(side.rows for side in sides):
        return []
    points = groups[0][0].summary.points
    if any(point.concurrency is not None for point in points):
        return [*_closed(groups, sides), *_throughput(sides)]
    if any(point.rate is not None for point in points):
        return [*_sweep(groups, sides), *_over_time(sides, set()), *_throughput(sides)]
    long = long_kinds(groups) if compared.long else set()
    return [
        *_distributions(sides, long),
        *_over_time(sides, long),
        *_stages(sides),
        *_people(sides),
        *_throughput(sides),
    ]


def keys(sides: Iterable[Drawn]) -> tuple[tuple[str, str], ...]:
    return tuple((f"side{side.number % SIDES}", side.name) for side in sides)


def _distributions(sides: Sequence[Drawn], long: set[str]) -> Iterable[Chart]:
    for part, chosen in _sizes(long):
        waits = [(side.number, [wait(row) for row in side.rows if chosen(row)]) for side in sides]
        if not any(isfinite(each) for _, found in waits for each in found):
            continue
        title = f"Wait for the first word{f', {part} prompts' if part else ''}"
        svg = plots.distribution(f"distribution{part}", title, waits)
        plain = "The further left, the sooner. A line that ends below the top: the rest never got an answer."
        yield Chart(title, plain, "TTFT from arrival, cumulative", svg, keys(sides))


def _over_time(sides: Sequence[Drawn], long: set[str]) -> Iterable[Chart]:
    """Small multiples: whose waits lie on top of each other cannot be told apart in one."""
    until = max(row.scheduled for side in sides for row in side.rows)
    waits = [wait(row) for side in sides for row in side.rows if isfinite(wait(row))] or [1.0]
    room = (min(waits), max(waits))
    for side in sides:
        dots = [
            Dots([(row.scheduled, wait(row)) for row in side.rows if chosen(row)], pale=part == "long")
            for part, chosen in _sizes(long)
        ]
        title = f"Every wait, by when it began: {side.name}"
        svg = plots.over_time(f"time{side.number}", title, Waits(side.number, dots, until or 1.0, room))
        what = "A dot is a request; a large pale one has a long prompt." if long else "A dot is a request."
        crosses = " A cross never got an answer." if any(wait(row) == inf for row in side.rows) else ""
        yield Chart(title, what + crosses, "TTFT from arrival, by arrival", svg, keys([side]))


def _sizes(long: set[str]) -> list[tuple[str, Callable[[Row], bool]]]:
    if not long:
        return [("", lambda row: True)]
    return [("short", lambda row: row.kind not in long), ("long", lambda row: row.kind in long)]


def _stages(sides: Sequence[Drawn]) -> Iterable[Chart]:
    kinds = sorted({row.kind for side in sides for row in side.rows})
    bars = []
    for kind in kinds:
        for side in sides:
            known = [
                (row.queue_ms, row.prefill_ms, row.decode_ms)
                for row in side.rows
                if row.kind == kind
                and row.queue_ms is not None
                and row.prefill_ms is not None
                and row.decode_ms is not None
            ]
            if known:
                queue, prefill, decode = (fmean(stage) / 1e3 for stage in zip(*known, strict=True))
                bars.append(Bar(kind if len(kinds) > 1 else "", side.name, side.number, (queue, prefill, decode)))
    if not bars:
        return
    yield Chart(
        "Where the time went",
        "Mean time of an answer: in line, then its prompt is read, then it is written.",
        "queue, prefill, decode",
        plots.stages("stages", "Mean time in line, in prefill and in decode", bars),
        (("stage0", "in line"), ("stage1", "read"), ("stage2", "written")),
    )


def _people(sides: Sequence[Drawn]) -> Iterable[Chart]:
    users = sorted({row.user for side in sides for row in side.rows})
    if len(users) < 2:
        return
    found = []
    for user in users:
        each = []
        for side in sides:
            if waits := [wait(row) for row in side.rows if row.user == user]:
                each.append((side.number, percentile(waits, 50), percentile(waits, 95)))
        found.append((user, each))
    found.sort(key=lambda person: -max(p95 for _, _, p95 in person[1]))
    shown = found[:MAX_PEOPLE]
    more = f" The {len(shown)} who waited longest, of {len(found)}." if len(found) > len(shown) else ""
    yield Chart(
        "Person by person",
        f"From the median wait (filled) to what one in twenty exceeds (open).{more}",
        "TTFT from arrival, p50 and p95 of each user",
        plots.people("people", "Median and 95th percentile of each person's wait", shown),
        keys(sides),
    )


def _throughput(sides: Sequence[Drawn]) -> Iterable[Chart]:
    ends = [row.last for side in sides for row in side.rows if row.last is not None]
    if not ends:
        return
    width = max(ends) / BINS or 1.0
    curves = []
    for side in sides:
        bins = [0.0] * (BINS + 1)
        for row in side.rows:
            _spread(row, bins, width)
        each = [tokens / width / len(side.runs) for tokens in bins]
        curves.append(Curve(side.name, side.number, [(width * number, rate) for number, rate in enumerate(each)]))
    yield Chart(
        "Words a second, all together",
        "A word is a token here. An answer's are spread evenly over its time.",
        "output tokens a second",
        plots.going_on("throughput", "Output tokens a second, over time", curves, "a second"),
        keys(sides),
    )


def _spread(row: Row, bins: list[float], width: float) -> None:
    if row.first is None or row.last is None or not row.output_tokens:
        return
    begin, end = int(row.first / width), int(row.last / width)
    for number in range(begin, end + 1):
        inside = min(row.last, (number + 1) * width) - max(row.first, number * width)
        share = inside / (row.last - row.first) if row.last > row.first else 1.0
        bins[number] += row.output_tokens * share


def _sweep(groups: Sequence[Group], sides: Sequence[Drawn]) -> Iterable[Chart]:
    found = [(side.number, rates(group)) for side, group in zip(sides, groups, strict=True)]
    yield Chart(
        "How fast requests may come",
        "95 of 100 first words came within so long. Below a dotted line, that wait is kept to.",
        "TTFT from arrival, p95, at each offered rate",
        plots.capacities("capacity", "95th percentile of the wait at each rate", found),
        keys(sides),
    )


def _closed(groups: Sequence[Group], sides: Sequence[Drawn]) -> Iterable[Chart]:
    """Of one side all prompt lengths in one chart, of several sides a chart for each length."""
    found = [batches(group) for group in groups]
    lengths = sorted({batch.pp for each in found for batch in each})
    measures = (
        ("ttft_s", "Wait for the first word", "TTFT from send, mean", "s"),
        ("tps_each", "Words a second, each user", "decode tokens a second per request, mean", "a second"),
    )
    for name, title, technical, unit in measures:
        pictures: dict[str, list[Curve]] = {}
        for side, each in zip(sides, found, strict=True):
            for length in lengths:
                points = [
                    (float(batch.size), value)
                    for batch in each
                    if batch.pp == length and (value := getattr(batch, name)) is not None
                ]
                prompt = f"prompts of {length:,}"
                alone = len(sides) == 1
                curve = Curve(f"{length:,}" if alone and len(lengths) > 1 else "", side.number, points)
                if points:
                    pictures.setdefault("" if alone else f", {prompt}", []).append(curve)
        for number, (part, curves) in enumerate(pictures.items()):
            svg = plots.by_size(f"{name.replace('_', '-')}{number}", title + part, curves, unit, waits=name == "ttft_s")
            plain = "Against how many ask at once." + " A line for each length of prompt." * any(c.name for c in curves)
            yield Chart(title + part, plain, technical, svg, keys(sides))
