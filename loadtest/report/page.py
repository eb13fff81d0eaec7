"""A page that says what came of a run, or of several side by side: one file, nothing fetched.

From top to bottom for readers who go on: a sentence, bars, a table in plain words, charts, then every figure and what
it takes to have it again. The same runs give the same page, to the byte.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite

from loadtest.charts.svg import PALETTE, SIDES
from loadtest.charts.units import number, shown, span, times
from loadtest.report.comparison import Cell, Comparison, compare
from loadtest.report.differences import slo_text
from loadtest.report.gallery import gallery
from loadtest.report.sentence import called, sentence
from loadtest.report.strips import highest, named, strips
from loadtest.results.figures import FAILED, Figure, Unit
from loadtest.results.groups import Group
from loadtest.results.points import LIMITS_S, batches, rates
from loadtest.results.summary import Summary

BATCH_MEASURES: tuple[tuple[str, str, str, Unit], ...] = (
    ("ttft_s", "First word", "TTFT from send, mean", "s"),
    ("tps_each", "Words a second, each", "decode per request", "/s"),
    ("tps_all", "Words a second, all", "decode of the batch", "/s"),
    ("prefill_tps", "Prompts read, words a second", "prefill", "/s"),
)
FACTOR_FROM = 1.2  # below which a ratio is told in percent
ROUNDING = 0.005  # of a ratio: what is written as the same figure


@dataclass(frozen=True)
class Entry:
    """A cell of a table: its figure, and how it is to the first side's."""

    text: str
    change: str = ""
    within: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    plain: str
    technical: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    title: str
    rows: tuple[Row, ...]


def html(groups: Sequence[Group], template: str) -> str:
    """`template` is page.html.j2. Raises ValueError for what cannot be compared."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    compared = compare(groups)
    sides = compared.sides
    runs = [run.summary for group in groups for run in group]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        workload=compared.workload,
        sentence=unbroken(sentence(groups, compared)).partition(";"),
        origin=_origin(groups, compared),
        repeated=max(side.runs for side in sides) > 1,
        faults=compared.faults,
        notes=compared.notes,
        sides=named(compared),
        strips=list(strips(groups, compared)),
        two_tones=not groups[0][0].summary.points,
        headline=_headline(groups, compared),
        charts=gallery(groups, compared),
        palette=Markup(PALETTE.rstrip("\n")),
        svg=Markup,
        colours=SIDES,
        figures=list(_all_figures(groups, compared)),
        outcomes=_outcomes(groups),
        slo=slo_text(groups[0][0]),
        settings=_settings(groups, compared),
        provenance=_provenance(groups, compared),
        credited=any(run.profile for run in runs),
    )


def _origin(groups: Sequence[Group], compared: Comparison) -> str:
    """Measured or simulated: said before any figure is believed."""
    virtual = [any(run.summary.clock == "virtual" for run in group) for group in groups]
    if not any(virtual):
        return ""
    profiles = ", ".join(dict.fromkeys(run.summary.profile for group in groups for run in group if run.summary.profile))
    machine = f"a model of the machine ({profiles})" if profiles else "a model of the machine"
    if all(virtual):
        return f"Simulated: computed with {machine}, not measured on one."
    names = [called(side, compared.sides) for side, each in zip(compared.sides, virtual, strict=True) if each]
    return f"Partly simulated: {', '.join(names)} computed with {machine}, the rest measured."


# Tables.


def _headline(groups: Sequence[Group], compared: Comparison) -> list[Table]:
    points = groups[0][0].summary.points
    overall = Table(
        "All together", tuple(_lines(compared, "", ("failed", "goodput", "output_tps", "jain", "duration")))
    )
    if any(point.concurrency is not None for point in points):
        return [*_batch_tables(groups, BATCH_MEASURES[:2]), overall]
    if any(point.rate is not None for point in points):
        return [_capacity_table(groups), _rate_table(groups), overall]
    keys = ("ttft_arrival_p50", "ttft_arrival_p95", "e2e_p50", "tpot_p50")
    if not compared.short:
        return [Table("Requests", tuple(_lines(compared, "", keys))), overall]
    tables = []
    for part, size in ((compared.short, "Short prompts"), (compared.long, "Long prompts")):
        own_name = "" if size.lower().startswith(part) or part == size.lower() else f" ({part})"
        tables.append(Table(f"{size}{own_name}", tuple(_lines(compared, part, keys))))
    return [*tables, overall]


def _all_figures(groups: Sequence[Group], compared: Comparison) -> Iterable[Table]:
    yield from _batch_tables(groups, BATCH_MEASURES)
    for part in dict.fromkeys(line.part for line in compared.lines):
        keys = [line.figure.key for line in compared.lines if line.part == part]
        yield Table(f"{part[0].upper()}{part[1:]}" if part else "All requests", tuple(_lines(compared, part, keys)))


def _lines(compared: Comparison, part: str, keys: Sequence[str]) -> Iterable[Row]:
    found = {line.figure.key: line for line in compared.lines if line.part == part}
    for key in keys:
        figure = found[key].figure
        entries = [_entry(figure, cell) for cell in found[key].cells]
        if figure is FAILED:
            counts = [f"{side.failed:,} of {side.offered:,}" for side in compared.sides]
            entries = [replace(entry, text=count) for entry, count in zip(entries, counts, strict=True)]
        yield Row(figure.plain, figure.title, tuple(entries))


def _entry(figure: Figure, cell: Cell) -> Entry:
    text = shown(cell.value, figure.unit)
    if cell.ratio is None:
        return Entry(text)
    within = "" if cell.interval is None else span(cell.interval)
    return Entry(text, change(figure, cell), f"{times(cell.ratio)}{f' ({within})' if within else ''}", cell.verdict)


def change(figure: Figure, cell: Cell) -> str:
    """A ratio in words."""
    ratio = cell.ratio
    if ratio is None or cell.value == inf or cell.value == 0 == ratio - 1:
        return ""
    if abs(ratio - 1) < ROUNDING:
        return "the same"
    if cell.in_doubt:
        return "no clear difference"
    if figure.unit in ("s", "ms"):
        more, less = ("slower", "faster")
    else:
        more, less = ("more", "less")
    if ratio in (0, inf):
        return more if ratio else less
    factor, word = (ratio, more) if ratio > 1 else (1 / ratio, less)
    return f"{100 * abs(ratio - 1):.0f} % {word}" if factor < FACTOR_FROM else f"{number(factor, 2)}× {word}"


def unbroken(text: str) -> str:
    """With no line end between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(?:s|ms|min|h|minutes|hours|%|/s)\b|%)", "\u00a0", text)


def _batch_tables(groups: Sequence[Group], measures: Sequence[tuple[str, str, str, Unit]]) -> Iterable[Table]:
    """A table for each length of prompt, with its batch sizes."""
    found = [{(batch.pp, batch.tg, batch.size): batch for batch in batches(group)} for group in groups]
    for pp, tg in dict.fromkeys(key[:2] for key in found[0]):
        rows = []
        for size in (key[2] for key in found[0] if key[:2] == (pp, tg)):
            points = [each.get((pp, tg, size)) for each in found]
            for name, plain, technical, unit in measures:
                values = [None if point is None else getattr(point, name) for point in points]
                rows.append(_point_row(f"{plain}, {size} at once", f"{technical}, c={size}", values, unit))
        yield Table(f"Prompts of {pp:,} tokens, answers of up to {tg:,}", tuple(rows))


def _capacity_table(groups: Sequence[Group]) -> Table:
    rows = []
    for limit in LIMITS_S:
        entries = tuple(Entry(highest(rates(group), limit)) for group in groups)
        rows.append(
            Row(f"95 of 100 first words within {limit:g} s, up to", f"highest rate, TTFT p95 ≤ {limit:g} s", entries)
        )
    return Table("How fast requests may come", tuple(rows))


def _rate_table(groups: Sequence[Group]) -> Table:
    found = [{rate.rps: rate for rate in rates(group)} for group in groups]
    rows = []
    for rps in sorted({rps for each in found for rps in each}):
        waits = [each[rps].p95_s if rps in each else None for each in found]
        rows.append(_point_row(f"At {rps:g} a second", "TTFT from arrival p95", waits, "s"))
    return Table("First word: 95 of 100 within", tuple(rows))


def _point_row(plain: str, technical: str, values: Sequence[float | None], unit: Unit) -> Row:
    base = values[0]

    def ratio(value: float | None) -> str:
        if value is None or not base or not isfinite(value) or not isfinite(base):
            return ""
        return times(value / base)

    ratios = [ratio(value) if place else "" for place, value in enumerate(values)]
    entries = [Entry(shown(value, unit), each, each) for value, each in zip(values, ratios, strict=True)]
    return Row(plain, technical, tuple(entries))


def _outcomes(groups: Sequence[Group]) -> list[tuple[str, list[int]]]:
    counts = [[run.summary.outcomes for run in group] for group in groups]
    names = sorted(
        {name for group in counts for run in group for name in run}, key=lambda name: (name != "completed", name)
    )
    return [(name.replace("_", " "), [sum(run.get(name, 0) for run in group) for group in counts]) for name in names]


def _settings(groups: Sequence[Group], compared: Comparison) -> list[tuple[str, list[str]]]:
    def each(told: Callable[[Summary], str]) -> list[str]:
        return [", ".join(dict.fromkeys(told(run.summary) for run in group)) for group in groups]

    clock = {"virtual": "simulated", "real": "real"}
    found = [
        ("run", [side.name for side in compared.sides]),
        ("runs", [str(side.runs) for side in compared.sides]),
        ("before the engine", each(lambda run: run.policy)),
        ("seed", each(lambda run: str(run.seed))),
        ("clock", each(lambda run: clock.get(run.clock, run.clock))),
        ("simulated machine", each(lambda run: run.profile)),
        ("model", each(lambda run: run.model)),
        ("requests", [f"{side.offered:,}" for side in compared.sides]),
        ("users", each(lambda run: str(len(run.users)))),
        ("offered", each(lambda run: shown(run.offered_rps, "/s"))),
        ("tokens in, out", each(lambda run: f"{run.input_tokens:,}, {run.output_tokens:,}")),
        ("least favoured user", each(lambda run: run.worst_user or "")),
        ("sent late, p99", each(lambda run: shown(run.schedule_lag.p99_ms, "ms"))),
        ("load tester's cores", each(lambda run: "" if run.client_cpu is None else number(run.client_cpu))),
        ("note", each(lambda run: run.note)),
    ]
    return [(name, values) for name, values in found if any(values)]


def _provenance(groups: Sequence[Group], compared: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each side, that of its first run."""
    return [
        (called(side, compared.sides), list(group[0].summary.provenance.items()))
        for side, group in zip(compared.sides, groups, strict=True)
        if group[0].summary.provenance
    ]
