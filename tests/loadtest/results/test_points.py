"""Figures per rate of a sweep and per batch size."""

from math import inf

import msgspec
import pytest

from loadtest.results.points import Batch, Rate, batches, capacity, rates
from loadtest.results.records import Outcome, Record
from loadtest.results.result import Result
from loadtest.results.summary import About, Measurement, row, summarize
from loadtest.workloads.plan import Plan, Point, Request

SLOW, FAST = Point(4000, 500, rate=0.1), Point(4000, 500, rate=1.0)


def measured(points: tuple[Point, ...], waits: list[tuple[int, float]]) -> Result:
    """Requests of points, by how long they waited; -1 failed. They were sent a second after they were due."""
    records = []
    for number, (point, wait) in enumerate(waits):
        record = Record(Request(0.0, "ada", "random", 4000, 11, point=point), number, sent=1.0)
        if wait >= 0:
            record.outcome, record.tokens = Outcome.COMPLETED, [wait + 0.1 * n for n in range(11)]
        else:
            record.outcome, record.ended = Outcome.TIMEOUT, 1.0
        records.append(record)
    about = About("rate-sweep", 42, "virtual", "direct")
    summary = summarize(about, Measurement(Plan((), points=points), records, alone=lambda tokens: 1.0))
    return Result("direct", summary, tuple(map(row, records)))


def test_figures_of_a_rate_count_from_arrival_and_include_failures() -> None:
    run = measured((FAST, SLOW), [(1, 3.0)] * 20 + [(0, 5.0)] * 18 + [(0, -1.0)] * 2)
    assert rates([run]) == [Rate(0.1, 3.0, 20, 0), Rate(1.0, inf, 20, 2)]


def test_figures_of_a_rate_pool_all_runs() -> None:
    one, two = measured((SLOW,), [(0, 1.0)] * 10), measured((SLOW,), [(0, 9.0)] * 10)
    assert rates([one, two]) == [Rate(0.1, 9.0, 20, 0)]


@pytest.mark.parametrize(("limit", "highest"), [(2.0, None), (5.0, 0.7), (10.0, 1.0)])
def test_capacity_is_the_highest_rate_within_the_limit(limit: float, highest: float | None) -> None:
    """Also where a lower one happened to be above it."""
    found = [Rate(0.3, 5.5, 100, 0), Rate(0.7, 5.0, 100, 0), Rate(1.0, 9.0, 100, 0)]
    assert capacity(found, limit) == highest


def test_figures_of_batches_are_means_over_runs() -> None:
    point = Point(1024, 256, concurrency=2)
    one, two = measured((point,), [(0, 2.0), (0, -1.0)]), measured((point,), [(0, 4.0), (0, 4.0)])
    (found,) = batches([one, two])
    assert isinstance(found, Batch)
    assert (found.pp, found.tg, found.size, found.requests, found.failed) == (1024, 256, 2, 4, 1)
    assert found.ttft_s == pytest.approx(2.0)  # from send
    assert found.tps_each == pytest.approx(10.0)
    (alone,) = batches([one])
    assert alone.ttft_s == 1.0


def test_other_workloads_have_no_points() -> None:
    run = measured((), [(0, 1.0)])
    run = Result(run.name, msgspec.structs.replace(run.summary, points=[]), run.rows)
    assert rates([run]) == []
    assert batches([run]) == []
