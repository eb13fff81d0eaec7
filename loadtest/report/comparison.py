"""Runs side by side: each figure, its ratio to the first group's, and how far that ratio may be chance.

Percentiles and shares are of all requests of a group together; what a run has only one of is the mean over its runs. A
percentile's interval needs a request beyond it on both sides, and an interval over runs alone needs three of them.

Ratios: nothing to nothing and never to never are 1, anything to nothing and never to anything are infinite.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, nan
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from loadtest.report import bootstrap
from loadtest.report.differences import faults, notes
from loadtest.results.figures import FAILED, GOODPUT, OF_A_PART, OF_A_RUN, OF_ALL, Figure, Measure, failed, good
from loadtest.results.groups import Group, counted, long_kinds, same_plan
from loadtest.results.records import percentile
from loadtest.results.summary import Row

if TYPE_CHECKING:
    from loadtest.report.bootstrap import Draws, Floats

MIN_REQUESTS, MIN_RUNS = 8, 3
SHORT, LONG = "short prompts", "long prompts"  # what they are called where there are several kinds of them


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


def compare(groups: Sequence[Group]) -> Comparison:
    """Raises ValueError for what cannot be compared."""
    if not groups or not all(groups):
        raise ValueError("nothing to compare: each side needs a run")
    workloads = {run.summary.workload for group in groups for run in group}
    if len(workloads) > 1:
        raise ValueError(f"runs of different workloads cannot be compared: {', '.join(sorted(workloads))}")
    short, long, parts = _parts(groups)
    sides = tuple(_sides(groups))
    names = [side.name for side in sides]
    return Comparison(
        workload=workloads.pop(),
        sides=sides,
        lines=tuple(_lines(groups, parts)),
        short=short,
        long=long,
        faults=tuple(faults(groups, names)),
        notes=tuple(notes(groups, names)),
    )


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
    for figure, measure in ((GOODPUT, good(groups[0][0].summary.slo)), (FAILED, failed)):
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
        enough = len(known) >= MIN_REQUESTS and len(known) * (100 - q) >= 100
        replicates = bootstrap.percentiles(values, self.draws.requests, q) if enough else None
        return _Estimate(percentile(known.tolist(), q), replicates)

    def mean(self, measure: Measure) -> _Estimate:
        values = self._values(measure)
        known = values[values == values]
        if not len(known):
            return _Estimate(None, None)
        replicates = bootstrap.means(values, self.draws.requests) if len(known) >= MIN_REQUESTS else None
        return _Estimate(float(known.mean()), replicates)

    def over_runs(self, values: Sequence[float | None]) -> _Estimate:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return _Estimate(fmean(known) if known else None, None)
        replicates = self.draws.runs @ known / len(known) if len(known) >= MIN_RUNS else None
        return _Estimate(fmean(known), replicates)

    def _values(self, measure: Measure) -> "Floats":
        import numpy as np

        mine = (row if row and (self.kinds is None or row.kind in self.kinds) else None for row in self.rows)
        return np.array([nan if row is None else measure(row) for row in mine])


def _samples(groups: Sequence[Group]) -> list[_Sample]:
    """Those that were sent the first one's plans share its numbers and its draws."""
    first = groups[0]
    with_first = [all(map(same_plan, first, group)) and len(first) == len(group) for group in groups]
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
