"""Shortest job first, with aging so that no job starves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import AGING, Job
from policies.shortest import Shortest


def job(cost: float, arrival: float = 0.0, head_start: float = 0.0, flow: str = "a") -> Job:
    return Job(flow, "short", 100, cost, arrival, head_start=head_start)


def order(*jobs: Job) -> list[Job]:
    shortest = Shortest()
    for each in jobs:
        shortest.push(each)
    return [shortest.pop("short") for _ in jobs]


def test_the_shortest_job_goes_first_whatever_its_flow() -> None:
    long, middle, short = jobs = job(7.5), job(2.0, flow="b"), job(0.3, arrival=1.0)
    assert order(*jobs) == [short, middle, long]


@pytest.mark.parametrize(("later", "passes"), [(AGING * 9 - 0.1, True), (AGING * 9 + 0.1, False)])
def test_waiting_time_offsets_length(later: float, passes: bool) -> None:
    old, young = job(10.0), job(1.0, arrival=later)
    assert order(old, young)[0] is (young if passes else old)


def test_a_head_start_counts_as_seconds_of_waiting() -> None:
    plain, ahead, further = jobs = job(1.0), job(2.0, head_start=AGING + 0.1), job(2.0, head_start=AGING - 0.1)
    assert order(*jobs) == [ahead, plain, further]


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 100)), min_size=2, max_size=20))
def test_no_job_is_passed_by_arrivals_after_the_aging_bound(shapes: list[tuple[float, float]]) -> None:
    served = order(*(job(cost, arrival) for cost, arrival in shapes))
    for place, passed in enumerate(served):
        for first in served[:place]:
            assert first.arrival <= passed.arrival + AGING * passed.cost + 1e-9
