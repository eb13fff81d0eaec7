"""What came of a run, or of several side by side, on a terminal of 100 columns."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.charts.units import shown, span, times
from loadtest.report.comparison import Cell, Comparison
from loadtest.report.differences import spoiled
from loadtest.results.figures import FAILED, Figure
from loadtest.results.summary import PointSummary, Stat, Summary, UserSummary

STATS = ("mean", "p50", "p90", "p95", "p99", "max")
MAX_USERS = 12
MAX_WITH_INTERVALS = 3  # sides whose intervals have room
FOREVER = Stat(inf, inf, inf, inf, inf, inf)


def summary_table(summary: Summary) -> RenderableType:
    """A run: what was asked and how it ended, then its figures; kinds, users and points, where there are several."""
    return Group(*_run(summary))


def comparison_table(compared: Comparison) -> RenderableType:
    """Bold is what chance does not explain, for better or worse.

    Of two sides a ratio stands beside its figures, of more below each, and of many without its interval.
    """
    beside, few = len(compared.sides) == 2, len(compared.sides) <= MAX_WITH_INTERVALS
    table = _table("", *(side.name for side in compared.sides), *(["ratio (95 %)"] if beside else []))
    part = ""
    for line in compared.lines:
        if line.part != part:
            part = line.part
            table.add_row()
            table.add_row(Text(part, style="italic"))
        ratios = [_ratio(cell, in_words=beside, interval=few) for cell in line.cells]
        cells = [_value(line.figure, cell) for cell in line.cells]
        if line.figure == FAILED:
            counts = [f"{side.failed:,} of {side.offered:,}" for side in compared.sides]
            cells = [Text(count, cell.style) for count, cell in zip(counts, cells, strict=True)]
        if not beside:
            both = zip(cells, ratios, strict=True)
            cells = [Text("\n").join((cell, ratio)) if ratio else cell for cell, ratio in both]
        table.add_row(line.figure.title, *cells, *(ratios[1:] if beside else []))
    table.add_row()
    for what in ("rejected", "interrupted"):
        table.add_row(what, *(f"{getattr(side, what):,}" for side in compared.sides))
    return Group(
        Text(compared.workload, style="bold"),
        *(Text(fault, style="bold red") for fault in compared.faults),
        *(Text(note, style="yellow") for note in compared.notes),
        table,
        Text(f"bold{'' if beside else ', *'}: the interval leaves 1 out", style="dim"),
    )


def _run(summary: Summary) -> Iterable[RenderableType]:
    clock = f"simulated {summary.profile}".strip() if summary.clock == "virtual" else f"{summary.clock} clock"
    yield Text.assemble((f"{summary.workload}, {summary.policy}", "bold"), f"  {clock}, seed {summary.seed}")
    yield _ending(summary)
    if why := spoiled(summary):
        yield Text(why, style="bold red")
    yield _latencies(summary)
    yield from map(Text, _rates(summary))
    if len(summary.kinds) > 1:
        yield _groups("kind", summary.kinds)
    if len(summary.users) > 1 and not summary.points:
        yield _groups("user", summary.users)
    if summary.points:
        yield _points(summary.points)


def _ending(summary: Summary) -> Text:
    failures = {name: count for name, count in summary.outcomes.items() if name not in ("completed", "interrupted")}
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in failures.items())
    return Text.assemble(
        f"{summary.offered:,} asked, {summary.completed:,} completed, ",
        (f"{summary.failed:,} failed{f' ({told})' if told else ''}", "bold red" if summary.failed else ""),
        ", ",
        (f"{summary.interrupted:,} interrupted", "bold red" if summary.interrupted else ""),
        f", in {shown(summary.duration_s, 's')}",
    )


def _latencies(summary: Summary) -> Table:
    table = _table("", *STATS)
    for title, stat, unit in (
        ("TTFT from arrival", _reached(summary.ttft_arrival_ms, summary.failed), "s"),
        ("TTFT from send", summary.ttft_send_ms, "s"),
        ("TPOT", summary.tpot_ms, "ms"),
        ("ITL", summary.itl_ms, "ms"),
        ("E2E from arrival", _reached(summary.e2e_ms, summary.failed), "s"),
        ("E2E from send", summary.e2e_send_ms, "s"),
    ):
        values = [getattr(stat, name) for name in STATS]
        table.add_row(title, *(_s(value) if unit == "s" else shown(value, "ms") for value in values))
    return table


def _rates(summary: Summary) -> Iterable[str]:
    requests = f"{shown(summary.rps, '/s')} answered of {shown(summary.offered_rps, '/s')} offered"
    yield f"{requests}, {shown(summary.output_tps, '/s')} tokens"
    fairness = (
        f", Jain {shown(summary.jain, '')}, least favoured {summary.worst_user}" if len(summary.users) > 1 else ""
    )
    yield f"goodput {shown(summary.goodput, '%')}{fairness}"


def _groups(what: str, groups: Mapping[str, UserSummary]) -> Table:
    """Those who fared worst, where there are many."""
    table = _table(what, "asked", "failed", "TTFT p50", "p95", "E2E p50", "p95", "slowdown")
    worst = sorted(groups, key=lambda name: -(groups[name].slowdown or 0.0))[:MAX_USERS]
    for name in (name for name in groups if name in worst):
        group = groups[name]
        ttft, e2e = _reached(group.ttft_arrival_ms, group.failed), _reached(group.e2e_ms, group.failed)
        table.add_row(
            Text(name),
            f"{group.offered:,}",
            Text(f"{group.failed:,}", "bold red" if group.failed else ""),
            *map(_s, (ttft.p50, ttft.p95, e2e.p50, e2e.p95)),
            shown(group.slowdown, ""),
        )
    if len(groups) > len(worst):
        table.add_row(Text(f"and {len(groups) - len(worst)} more", style="dim"))
    return table


def _points(points: Sequence[PointSummary]) -> Table:
    closed = points[0].concurrency is not None
    table = _table(
        "prompt, answer", "at once" if closed else "rate", "asked", "failed", "TTFT", "p95", "tok/s each", "all"
    )
    for point in points:
        table.add_row(
            f"{point.pp:,}, {point.tg:,}",
            f"{point.concurrency}" if closed else shown(point.rate, "/s", 2),
            f"{point.requests:,}",
            Text(f"{point.failed:,}", "bold red" if point.failed else ""),
            _s(point.ttft_ms),
            _s(point.ttft_p95_ms),
            shown(point.decode_tps_per_request, ""),
            shown(point.decode_tps_total, ""),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(Text(first), overflow="fold")
    for name in others:
        table.add_column(Text(name), justify="right", overflow="fold")
    return table


def _reached(stat: Stat, failed: int) -> Stat:
    """What is null because failures reach it is never."""
    if not failed:
        return stat
    values = (
        (mine if mine is not None else never) for mine, never in zip(_values(stat), _values(FOREVER), strict=True)
    )
    return Stat(*values)


def _values(stat: Stat) -> list[float | None]:
    return [getattr(stat, name) for name in STATS]


def _s(ms: float | None) -> str:
    return shown(None if ms is None else ms / 1e3, "s")


def _value(figure: Figure, cell: Cell) -> Text:
    return Text(shown(cell.value, figure.unit), "bold" if cell.verdict else "")


def _ratio(cell: Cell, *, in_words: bool, interval: bool) -> Text:
    if cell.ratio is None:
        return Text()
    within = f" ({span(cell.interval)})" if cell.interval and interval else ""
    verdict = (f" {cell.verdict}" if in_words else "*") if cell.verdict else ""
    return Text(f"{times(cell.ratio)}{within}{verdict}", "bold" if cell.verdict else "dim")
