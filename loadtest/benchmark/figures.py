"""What the runs of one variant come to.

Percentiles are of all its requests together, from arrival, and what failed has waited for ever; what a run has only one
of is the mean over its runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf
from operator import add
from statistics import fmean, median

import msgspec

from loadtest.benchmark.shape import LONG, SHORT
from loadtest.benchmark.slice_counters import SliceCounters
from loadtest.benchmark.variant import Variant
from loadtest.results.figures import Measure, e2e, tpot, wait
from loadtest.results.groups import counted
from loadtest.results.records import percentile
from loadtest.results.result import Result
from loadtest.results.summary import Row


@dataclass(frozen=True)
class Trial:
    """One run of a variant.

    alone_s  that a long prompt took by itself before it, to its first token
    slices   during the run, where the gateway tells
    """

    result: Result
    alone_s: float | None = None
    slices: SliceCounters | None = None


class Figures(msgspec.Struct, frozen=True):
    """Seconds, but for the milliseconds of TPOT. An infinite one is null in JSON: failures reach it."""

    runs: int
    requests: int
    failed: int
    short_ttft_p50_s: float
    short_ttft_p95_s: float
    short_e2e_p50_s: float
    short_e2e_p95_s: float
    short_tpot_p50_ms: float
    long_ttft_p50_s: float
    long_ttft_max_s: float
    long_alone_ttft_s: float
    itl_p99_s: float
    makespan_s: float
    slices: float | None = None  # a run
    slice_cached_share: float | None = None
    slicing_off: bool = False
    spoiled: bool = False  # the load tester itself sent late


RATIOS = tuple(
    name for name in Figures.__struct_fields__ if name.endswith(("_s", "_ms"))
)  # those that are told as ratios to direct


@dataclass(frozen=True)
class Measured:
    variant: Variant
    figures: Figures


def figures(trials: Sequence[Trial]) -> Figures:
    """Of one run at the least."""
    runs = [trial.result for trial in trials]
    rows = [row for run in runs for row in counted(run)]
    short, long = ([row for row in rows if row.kind == kind] for kind in (SHORT, LONG))
    told = [trial.slices for trial in trials if trial.slices is not None]
    slices = reduce(add, told) if told else None
    alone = [trial.alone_s for trial in trials if trial.alone_s is not None]
    gaps = [run.summary.itl_ms.p99 for run in runs]
    return Figures(
        runs=len(runs),
        requests=len(rows),
        failed=sum(run.summary.failed for run in runs),
        short_ttft_p50_s=_of(short, wait, 50),
        short_ttft_p95_s=_of(short, wait, 95),
        short_e2e_p50_s=_of(short, e2e, 50),
        short_e2e_p95_s=_of(short, e2e, 95),
        short_tpot_p50_ms=_of(short, tpot, 50),
        long_ttft_p50_s=_of(long, wait, 50),
        long_ttft_max_s=_of(long, wait, 100),
        long_alone_ttft_s=median(alone) if alone else inf,
        itl_p99_s=fmean(inf if gap is None else gap / 1e3 for gap in gaps),
        makespan_s=fmean(run.summary.duration_s for run in runs),
        slices=None if slices is None else slices.count / len(told),
        slice_cached_share=None if slices is None else slices.cached_share,
        slicing_off=slices is not None and slices.off,
        spoiled=not all(run.summary.schedule_lag.valid for run in runs),
    )


def ratios(figures: Figures, direct: Figures) -> dict[str, float | None]:
    """By the names of the figures; None where one of the two is infinite, or nothing."""
    return {name: ratio(getattr(figures, name), getattr(direct, name)) for name in RATIOS}


def ratio(value: float, base: float) -> float | None:
    return value / base if 0 < base < inf and value < inf else None


def _of(rows: Iterable[Row], measure: Measure, q: float) -> float:
    return percentile((value for row in rows if (value := measure(row)) == value), q)
