"""Earliest deadline first."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import Job
from policies.deadline import SLACK, Deadline


def job(deadline: float = inf, arrival: float = 0.0, head_start: float = 0.0, cost: float = 1.0) -> Job:
    return Job("a", "short", 100, cost, arrival, deadline=deadline, head_start=head_start)


def order(*jobs: Job) -> list[Job]:
    policy = Deadline()
    for each in jobs:
        policy.push(each)
    return [policy.pop("short") for _ in jobs]


def test_the_earliest_deadline_goes_first() -> None:
    late, soon, first = jobs = job(20.0), job(10.0, cost=9.0), job(5.0, arrival=4.0)
    assert order(*jobs) == [first, soon, late]


@pytest.mark.parametrize(("due", "before"), [(SLACK - 0.1, True), (SLACK + 0.1, False)])
def test_a_job_without_a_deadline_is_due_after_the_slack(due: float, before: bool) -> None:
    none, dated = job(), job(due)
    assert order(none, dated)[0] is (dated if before else none)


def test_a_head_start_moves_the_deadline_earlier() -> None:
    plain, ahead, further = jobs = job(10.0), job(12.0, head_start=3.0), job(14.0, head_start=3.0)
    assert order(*jobs) == [ahead, plain, further]


jobs_with_deadlines = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 60)), min_size=1, max_size=12)


@given(jobs_with_deadlines)
def test_every_feasible_set_of_deadlines_is_met(shapes: list[tuple[float, float]]) -> None:
    """All come at once, one is served at a time. Jackson: the latest of all is least late in order of deadlines."""

    def lateness(jobs: list[Job]) -> float:
        now, worst = 0.0, -inf
        for each in jobs:
            now += each.cost
            worst = max(worst, now - each.deadline)
        return worst

    jobs = [job(deadline, cost=cost) for cost, deadline in shapes]
    served = order(*jobs)
    for place in range(len(served) - 1):
        swapped = [*served[:place], served[place + 1], served[place], *served[place + 2 :]]
        assert lateness(served) <= lateness(swapped) + 1e-9
    assert lateness(served) <= lateness(jobs) + 1e-9


def test_jobs_that_left_early_leave_no_state() -> None:
    policy = Deadline()
    for i in range(1000):
        patient = job(1e9 + i)
        policy.push(patient)
        policy.remove(patient)
    assert len(policy._heaps["short"]) <= 20
