"""The points of a workload that has several: how fast it may come, and how many at once.

A rate's figure is the 95th percentile of the time to the first token, from arrival, failures included. A machine's
capacity is the highest of the rates at which that stays within a limit, as the article has it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean

from loadtest.results.groups import Group, counted
from loadtest.results.records import Outcome, percentile
from loadtest.results.summary import PointSummary

LIMITS_S = (2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Rate:
    """`p95_s` is infinite where more than one in twenty failed."""

    rps: float
    p95_s: float
    offered: int
    failed: int


@dataclass(frozen=True)
class Batch:
    """`ttft_s` is the mean from send, the others tokens a second: of one request, of the batch, of its prompts."""

    pp: int
    tg: int
    size: int
    requests: int
    failed: int
    ttft_s: float | None
    tps_each: float | None
    tps_all: float | None
    prefill_tps: float | None


def rates(group: Group) -> list[Rate]:
    """In their order; empty where the workload has none."""
    points = group[0].summary.points
    found = []
    for number, point in enumerate(points):
        if point.rate is None:
            continue
        rows = [row for run in group for row in counted(run) if row.point == number]
        waits = [
            row.ttft_arrival_ms / 1e3 if row.outcome is Outcome.COMPLETED and row.ttft_arrival_ms is not None else inf
            for row in rows
        ]
        if waits:
            found.append(Rate(point.rate, percentile(waits, 95), len(waits), sum(wait == inf for wait in waits)))
    return sorted(found, key=lambda rate: rate.rps)


def capacity(found: Iterable[Rate], limit_s: float) -> float | None:
    """None if no rate is slow enough."""
    return max((rate.rps for rate in found if rate.p95_s <= limit_s), default=None)


def batches(group: Group) -> list[Batch]:
    """Means over the runs, in the plan's order; empty where the workload has none."""
    found = []
    for points in zip(*(run.summary.points for run in group), strict=False):
        first = points[0]
        if first.concurrency is None:
            continue
        ttft_ms = _mean(points, "ttft_ms")
        found.append(
            Batch(
                pp=first.pp,
                tg=first.tg,
                size=first.concurrency,
                requests=sum(point.requests for point in points),
                failed=sum(point.failed for point in points),
                ttft_s=None if ttft_ms is None else ttft_ms / 1e3,
                tps_each=_mean(points, "decode_tps_per_request"),
                tps_all=_mean(points, "decode_tps_total"),
                prefill_tps=_mean(points, "prefill_tps"),
            )
        )
    return found


def _mean(points: Sequence[PointSummary], name: str) -> float | None:
    known = [value for point in points if (value := getattr(point, name)) is not None]
    return fmean(known) if known else None
