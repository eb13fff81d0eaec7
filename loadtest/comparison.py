"""Runs side by side: each figure, its ratio to the first group's, and how far that ratio may be chance.

A group is one thing measured, in one run or in several. What was asked and failed has waited for ever, so that nobody
gains by refusing; latencies from send and per token are of the requests that completed. Percentiles are of all requests
of a group together, what a run has only one of is the mean over its runs. A percentile's interval needs a request
beyond it on both sides, and an interval over runs alone needs three of them.

Ratios: nothing to nothing and never to never are 1, anything to nothing and never to anything are infinite.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, nan
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal

from loadtest import bootstrap
from loadtest.records import Outcome, percentile
from loadtest.results import Result
from loadtest.summary import Row, Slo, Summary
from loadtest.units import Unit, number, shown

if TYPE_CHECKING:
    from loadtest.bootstrap import Draws, Floats

FEWEST_REQUESTS, FEWEST_RUNS = 8, 3
LONG_PROMPT_TOKENS = 2048  # as the gateway's lanes have it
SHORT, LONG = "short prompts", "long prompts"  # what they are called where there are several kinds of them
OTHER_RATE = 0.1  # of the offered rates, what is another load

Group = Sequence[Result]


@dataclass(frozen=True)
class Figure:
    """`title` says it to an engineer, `plain` to everybody else."""

    key: str
    title: str
    plain: str
    unit: Unit
    more_is_better: bool = False


@dataclass(frozen=True)
class Cell:
    """value     None where there is none, infinite where failures reach
    ratio     to the first group's
    interval  of the ratio, 95 %; None where too few were asked
    verdict   only where the interval leaves no doubt
    """

    value: float | None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    verdict: Literal["better", "worse", ""] = ""

    @property
    def in_doubt(self) -> bool:
        return self.interval is not None and not self.verdict


@dataclass(frozen=True)
class Line:
    """A figure of the requests of one part: "" is all of them."""

    figure: Figure
    part: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Side:
    """What was measured: the counts are of all runs."""

    name: str
    policy: str
    runs: int
    offered: int
    failed: int
    rejected: int
    interrupted: int


@dataclass(frozen=True)
class Comparison:
    """The first side is what the others are compared with.

    short, long  the parts of that name, where there are prompts of both kinds
    faults       why the figures of a side are not to be trusted
    notes        in what the sides differ, apart from what was to be compared
    """

    workload: str
    sides: tuple[Side, ...]
    lines: tuple[Line, ...]
    short: str
    long: str
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def cells(self, key: str, part: str = "") -> tuple[Cell, ...]:
        return next(line.cells for line in self.lines if (line.figure.key, line.part) == (key, part))


# Of a request: NaN where it has none.
Measure = Callable[[Row], float]


def wait(row: Row) -> float:
    """For the first word, from arrival: for ever, if there came none."""
    return _seconds(row.ttft_arrival_ms) if row.outcome is Outcome.COMPLETED else inf


def _e2e(row: Row) -> float:
    return _seconds(row.e2e_ms) if row.outcome is Outcome.COMPLETED else inf


def _ttft_send(row: Row) -> float:
    return _seconds(row.ttft_send_ms)


def _tpot(row: Row) -> float:
    return nan if row.tpot_ms is None else row.tpot_ms


def _failed(row: Row) -> float:
    return float(row.outcome is not Outcome.COMPLETED)


def _good(slo: Slo) -> Measure:
    def good(row: Row) -> float:
        first, token = row.ttft_arrival_ms, row.tpot_ms
        return float(
            row.outcome is Outcome.COMPLETED
            and (slo.ttft is None or (first is not None and first <= 1e3 * slo.ttft))
            and (slo.tpot is None or token is None or token <= 1e3 * slo.tpot)
        )

    return good


def _seconds(ms: float | None) -> float:
    return nan if ms is None else ms / 1e3


Percentile = tuple[Figure, Measure, float]


def _stat(key: str, title: str, plain: str, measure: Measure, q: float, unit: Unit = "s") -> Percentile:
    return Figure(f"{key}_p{q:g}", f"{title} p{q:g}", plain, unit), measure, q


TTFT_P50 = _stat("ttft_arrival", "TTFT from arrival", "First word: half came within", wait, 50)
TTFT_P95 = _stat("ttft_arrival", "TTFT from arrival", "First word: 95 of 100 within", wait, 95)
E2E_P50 = _stat("e2e", "E2E from arrival", "Whole answer: half within", _e2e, 50)
E2E_P95 = _stat("e2e", "E2E from arrival", "Whole answer: 95 of 100 within", _e2e, 95)
TPOT_P50 = _stat("tpot", "TPOT", "Then a word every", _tpot, 50, "ms")

# Percentiles of requests: of all, and of each kind.
OF_ALL = (
    TTFT_P50,
    TTFT_P95,
    _stat("ttft_arrival", "TTFT from arrival", "First word: 99 of 100 within", wait, 99),
    _stat("ttft_send", "TTFT from send", "First word, once it was sent: half within", _ttft_send, 50),
    _stat("ttft_send", "TTFT from send", "First word, once it was sent: 95 of 100 within", _ttft_send, 95),
    TPOT_P50,
    E2E_P50,
    E2E_P95,
)
OF_A_PART = (TTFT_P50, TTFT_P95, E2E_P50, TPOT_P50)

GOODPUT = Figure("goodput", "goodput", "Good answers: fast enough, of all asked for", "%", more_is_better=True)
FAILED = Figure("failed", "failed", "Failed, of all asked for", "%")

# What a run has only one of.
OF_A_RUN: tuple[tuple[Figure, Callable[[Summary], float | None]], ...] = (
    (Figure("itl_p99", "ITL p99", "Longest pauses inside an answer", "ms"), lambda run: run.itl_ms.p99),
    (Figure("rps", "throughput", "Requests answered a second", "/s", more_is_better=True), lambda run: run.rps),
    (Figure("output_tps", "output tokens", "Words a second, all together", "/s", True), lambda run: run.output_tps),
    (Figure("jain", "Jain's index", "Evenness between people (1: all alike)", "", True), lambda run: run.jain),
    (Figure("duration", "duration", "Everybody done after", "s"), lambda run: run.duration_s),
)


def compare(groups: Sequence[Group]) -> Comparison:
    """Raises ValueError for what cannot be compared."""
    if not groups or not all(groups):
        raise ValueError("nothing to compare: each side needs a run")
    workloads = {run.summary.workload for group in groups for run in group}
    if len(workloads) > 1:
        raise ValueError(f"runs of different workloads cannot be compared: {', '.join(sorted(workloads))}")
    short, long, parts = _parts(groups)
    sides = tuple(_sides(groups))
    return Comparison(
        workload=workloads.pop(),
        sides=sides,
        lines=tuple(_lines(groups, parts)),
        short=short,
        long=long,
        faults=tuple(_faults(groups, sides)),
        notes=tuple(_notes(groups, sides)),
    )


def spoiled(summary: Summary) -> str:
    """Why the figures of a run are not to be trusted; "" if they are."""
    lag = summary.schedule_lag
    if lag.valid:
        return ""
    return (
        f"not valid: the load tester itself sent late (p99 {number(lag.p99_ms)} ms, at most {number(lag.max_ms)} ms), "
        "so the load was not what it says"
    )


def counted(run: Result) -> list[Row]:
    return [row for row in run.rows if row.outcome is not Outcome.INTERRUPTED]


def long_kinds(groups: Iterable[Group]) -> set[str]:
    """Those of which half the prompts are longer than what goes with the short ones."""
    tokens: dict[str, list[int]] = {}
    for row in (row for group in groups for run in group for row in run.rows):
        if row.prompt_tokens is not None:
            tokens.setdefault(row.kind, []).append(row.prompt_tokens)
    return {kind for kind, found in tokens.items() if median(found) > LONG_PROMPT_TOKENS}


def _parts(groups: Sequence[Group]) -> tuple[str, str, dict[str, set[str]]]:
    """What the short and the long prompts are called, and of each part its kinds: those two, then the single kinds."""
    kinds = {row.kind for group in groups for run in group for row in run.rows}
    long = long_kinds(groups)
    parts: dict[str, set[str]] = {}
    names = {SHORT: kinds - long, LONG: long} if long and kinds - long else {}
    for name, members in names.items():
        parts[name if len(members) > 1 else next(iter(members))] = members
    short_name, long_name = parts or ("", "")
    if len(kinds) > 1:
        parts |= {kind: {kind} for kind in sorted(kinds)}
    return short_name, long_name, parts


def _sides(groups: Sequence[Group]) -> Iterable[Side]:
    names = [group[0].name for group in groups]
    for place, (name, group) in enumerate(zip(names, groups, strict=True)):
        runs = [run.summary for run in group]
        yield Side(
            name=name if names.count(name) == 1 else f"{name} #{place + 1}",
            policy=" / ".join(dict.fromkeys(run.policy for run in runs)),
            runs=len(runs),
            offered=sum(run.offered for run in runs),
            failed=sum(run.failed for run in runs),
            rejected=sum(run.rejected for run in runs),
            interrupted=sum(run.interrupted for run in runs),
        )


# Figures.


def _lines(groups: Sequence[Group], parts: dict[str, set[str]]) -> Iterable[Line]:
    samples = _samples(groups)

    def line(figure: Figure, part: str, found: Sequence[_Estimate]) -> Line:
        return Line(figure, part, tuple(_cells(figure, found)))

    for figure, measure, q in OF_ALL:
        yield line(figure, "", [sample.percentile(measure, q) for sample in samples])
    for figure, measure in ((GOODPUT, _good(groups[0][0].summary.slo)), (FAILED, _failed)):
        yield line(figure, "", [sample.mean(measure) for sample in samples])
    for figure, of_run in OF_A_RUN:
        values = [[of_run(run.summary) for run in group] for group in groups]
        yield line(figure, "", [sample.over_runs(each) for sample, each in zip(samples, values, strict=True)])
    for part, kinds in parts.items():
        chosen = [sample.only(kinds) for sample in samples]
        for figure, measure, q in OF_A_PART:
            yield line(figure, part, [sample.percentile(measure, q) for sample in chosen])


@dataclass(frozen=True)
class _Estimate:
    """A figure, and what it is in each replicate; None where those say nothing."""

    value: float | None
    replicates: "Floats | None"


@dataclass(frozen=True)
class _Sample:
    """The requests of a group, run after run; None where this run lacks one that the other side has."""

    rows: tuple[Row | None, ...]
    draws: "Draws"
    kinds: frozenset[str] | None = None

    def only(self, kinds: set[str]) -> "_Sample":
        return _Sample(self.rows, self.draws, frozenset(kinds))

    def percentile(self, measure: Measure, q: float) -> _Estimate:
        values = self._values(measure)
        known = values[values == values]
        if not len(known):
            return _Estimate(None, None)
        enough = len(known) >= FEWEST_REQUESTS and len(known) * (100 - q) >= 100
        replicates = bootstrap.percentiles(values, self.draws.requests, q) if enough else None
        return _Estimate(percentile(known.tolist(), q), replicates)

    def mean(self, measure: Measure) -> _Estimate:
        values = self._values(measure)
        known = values[values == values]
        if not len(known):
            return _Estimate(None, None)
        replicates = bootstrap.means(values, self.draws.requests) if len(known) >= FEWEST_REQUESTS else None
        return _Estimate(float(known.mean()), replicates)

    def over_runs(self, values: Sequence[float | None]) -> _Estimate:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return _Estimate(fmean(known) if known else None, None)
        replicates = self.draws.runs @ known / len(known) if len(known) >= FEWEST_RUNS else None
        return _Estimate(fmean(known), replicates)

    def _values(self, measure: Measure) -> "Floats":
        import numpy as np

        mine = (row if row and (self.kinds is None or row.kind in self.kinds) else None for row in self.rows)
        return np.array([nan if row is None else measure(row) for row in mine])


def _samples(groups: Sequence[Group]) -> list[_Sample]:
    """Those that were sent the first one's plans share its numbers and its draws."""
    first = groups[0]
    with_first = [all(map(_same_plan, first, group)) and len(first) == len(group) for group in groups]
    runs = [[{row.n: row for row in counted(run)} for run in group] for group in groups]
    numbers = [
        sorted({n for group, paired in zip(runs, with_first, strict=True) if paired for n in group[place]})
        for place in range(len(first))
    ]
    shared = bootstrap.draw([len(run) for run in numbers], 0)
    samples = []
    for stream, (group, paired) in enumerate(zip(runs, with_first, strict=True)):
        wanted = numbers if paired else [sorted(run) for run in group]
        draws = shared if paired else bootstrap.draw([len(run) for run in wanted], stream)
        rows = tuple(run.get(n) for run, mine in zip(group, wanted, strict=True) for n in mine)
        samples.append(_Sample(rows, draws))
    return samples


def _same_plan(one: Result, other: Result) -> bool:
    """Whoever was cut off has fewer requests of it."""
    if (one.summary.seed, one.summary.workload) != (other.summary.seed, other.summary.workload):
        return False
    who = {row.n: (row.user, row.kind) for row in one.rows}
    return all(who.get(row.n, (row.user, row.kind)) == (row.user, row.kind) for row in other.rows)


def _cells(figure: Figure, found: Sequence[_Estimate]) -> Iterable[Cell]:
    base = found[0]
    yield Cell(base.value)
    for each in found[1:]:
        if each.value is None or base.value is None:
            yield Cell(each.value)
            continue
        within = None
        if each.replicates is not None and base.replicates is not None:
            within = bootstrap.interval(list(map(_ratio, each.replicates.tolist(), base.replicates.tolist())))
        yield Cell(each.value, _ratio(each.value, base.value), within, _verdict(figure, within))


def _ratio(value: float, base: float) -> float:
    if value == base:
        return 1.0
    return inf if base == 0 or value == inf else value / base


def _verdict(figure: Figure, interval: tuple[float, float] | None) -> Literal["better", "worse", ""]:
    if interval is None or interval[0] <= 1 <= interval[1]:
        return ""
    return "better" if (interval[0] > 1) == figure.more_is_better else "worse"


# In words.


def _faults(groups: Sequence[Group], sides: Sequence[Side]) -> Iterable[str]:
    for side, group in zip(sides, groups, strict=True):
        for run in group:
            if why := spoiled(run.summary):
                yield f"{side.name}, seed {run.summary.seed}: {why}"
        if side.interrupted:
            yield f"{side.name}: stopped before its end, {side.interrupted} requests are not in the figures"


def _notes(groups: Sequence[Group], sides: Sequence[Side]) -> Iterable[str]:
    names = [side.name for side in sides]

    def differing(what: str, told: Callable[[Summary], str]) -> Iterable[str]:
        found = [", ".join(dict.fromkeys(told(run.summary) for run in group)) for group in groups]
        if len(set(found)) > 1:
            each = "; ".join(f"{name}: {value or 'not told'}" for name, value in zip(names, found, strict=True))
            yield f"not the same {what} ({each})"

    yield from differing("seed, so not the same requests", lambda run: str(run.seed))
    yield from differing("clock", lambda run: "simulated" if run.clock == "virtual" else run.clock)
    yield from differing("machine", lambda run: run.profile)
    yield from differing("model", lambda run: "" if run.model == run.profile else run.model)
    if len({run.summary.slo for group in groups for run in group}) > 1:
        yield f"not the same limits for a good answer: the first side's are applied to all ({slo_text(groups[0][0])})"
    if _another_load(groups):
        rates = [fmean(run.summary.offered_rps for run in group) for group in groups]
        each = "; ".join(f"{name}: {shown(rate, '/s')}" for name, rate in zip(names, rates, strict=True))
        yield f"requests did not come at the same rate ({each})"
    if any(_seeds(groups[0]) == _seeds(group) and not _same_requests(groups[0], group) for group in groups[1:]):
        yield "not the same requests, although the seeds are the same: the workload's options differ"


def slo_text(run: Result) -> str:
    slo = run.summary.slo
    said = []
    if slo.ttft is not None:
        said.append(f"first word within {slo.ttft:g} s")
    if slo.tpot is not None:
        said.append(f"at most {1e3 * slo.tpot:g} ms a word after that")
    return ", ".join(said) or "none"


def _another_load(groups: Sequence[Group]) -> bool:
    """In lock-step the rate is a result."""
    if any(point.concurrency is not None for point in groups[0][0].summary.points):
        return False
    rates = [fmean(run.summary.offered_rps for run in group) for group in groups]
    return max(rates) > (1 + OTHER_RATE) * min(rates)


def _seeds(group: Group) -> list[int]:
    return [run.summary.seed for run in group]


def _same_requests(one: Group, other: Group) -> bool:
    whole = not any(run.summary.interrupted for run in (*one, *other))
    counts = [sum(run.summary.offered for run in group) for group in (one, other)]
    return all(map(_same_plan, one, other)) and (not whole or counts[0] == counts[1])
