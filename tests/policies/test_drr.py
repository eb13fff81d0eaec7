"""Deficit round robin: rounds by hand, debts, weights, one deficit for both lanes, and the paper's own loop."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import Job, Lane
from policies.drr import QUANTUM, Drr
from policies.fair_queue import MAX_IDLE


def job(flow: str, quanta: float = 1.0, lane: Lane = "short", weight: float = 1.0, head_start: float = 0.0) -> Job:
    return Job(flow, lane, 100, quanta * QUANTUM, 0.0, weight=weight, head_start=head_start * QUANTUM)


def pushed(drr: Drr, *jobs: Job) -> None:
    for each in jobs:
        drr.push(each)


def popped(drr: Drr, n: int, lane: Lane = "short") -> str:
    return "".join(drr.pop(lane).flow for _ in range(n))


def test_a_turn_serves_as_many_jobs_as_the_deficit_covers() -> None:
    drr = Drr()
    pushed(drr, *(job("a", 0.25) for _ in range(8)), *(job("b", 0.5) for _ in range(4)))
    assert popped(drr, 12) == "aaaabbaaaabb"


def test_the_unused_deficit_of_a_turn_is_kept() -> None:
    drr = Drr()
    pushed(drr, *(job("a", 0.75) for _ in range(6)), *(job("b") for _ in range(4)))
    assert popped(drr, 10) == "ababaababa"


def test_a_large_job_accumulates_deficit_over_rounds() -> None:
    drr = Drr()
    pushed(drr, job("a", 3.0), job("a", 3.0), *(job("b") for _ in range(6)))
    assert popped(drr, 8) == "bbabbbab"


def test_rounds_without_a_dispatch_are_skipped() -> None:
    drr = Drr()
    pushed(drr, job("a", 1e9), job("b", 2e9))
    assert popped(drr, 2) == "ab"


def test_twice_the_weight_gives_twice_the_quantum() -> None:
    drr = Drr()
    pushed(drr, *(job("a", weight=2.0) for _ in range(4)), *(job("b") for _ in range(2)))
    assert popped(drr, 6) == "aabaab"


def test_float_rounding_does_not_cost_a_round() -> None:
    drr = Drr()
    pushed(drr, *(job("a", 0.1) for _ in range(20)), *(job("b", 0.1) for _ in range(20)))
    assert popped(drr, 40) == ("a" * 10 + "b" * 10) * 2


def test_a_cost_above_the_prediction_becomes_debt() -> None:
    drr = Drr()
    dear = job("a")
    pushed(drr, dear, job("a"), *(job("b") for _ in range(5)))
    assert drr.pop("short") is dear
    drr.charge(dear, 2.0 * QUANTUM)
    drr.settle(dear, 4.0 * QUANTUM)
    assert popped(drr, 6) == "bbbbab"


def test_the_unused_cost_of_a_cancelled_job_is_refunded() -> None:
    drr = Drr()
    cancelled = job("a", 5.0)
    pushed(drr, cancelled, job("a"))
    assert drr.pop("short") is cancelled
    pushed(drr, *(job("b") for _ in range(3)))
    drr.settle(cancelled, 0.0)
    assert popped(drr, 1) == "a"


def test_both_lanes_share_one_deficit() -> None:
    drr = Drr()
    pushed(drr, job("b"), job("a", 3.0, "long"), job("a"), *(job("b") for _ in range(4)))
    assert popped(drr, 1, "long") == "a"
    assert popped(drr, 6) == "bbbbab"


def test_a_head_start_adds_to_the_deficit() -> None:
    drr = Drr()
    pushed(drr, *(job("a") for _ in range(3)), *(job("b", head_start=2.0) for _ in range(4)))
    assert popped(drr, 7) == "bbababa"


def test_an_absent_flow_accumulates_no_deficit() -> None:
    drr = Drr()
    pushed(drr, *(job("a") for _ in range(60)))
    assert popped(drr, 50) == "a" * 50
    pushed(drr, *(job("b") for _ in range(5)))
    assert popped(drr, 10) == "ababababab"


def test_the_number_of_remembered_flows_is_bounded() -> None:
    drr = Drr()
    for i in range(5 * MAX_IDLE):
        visitor = job(f"visitor {i}")
        drr.push(visitor)
        assert drr.pop("short") is visitor
        drr.settle(visitor, visitor.cost)
        assert len(drr.flows.accounts) <= 2 * MAX_IDLE


costs = st.integers(1, 30).map(lambda tenths: tenths / 8)


@given(st.lists(st.lists(costs, min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_order_equals_that_of_the_papers_loop(flows: list[list[float]]) -> None:
    """All are there at the start. Costs are eighths, so that no sum is rounded."""
    drr = Drr()
    names = "abcde"[: len(flows)]
    for name, theirs in zip(names, flows, strict=True):
        pushed(drr, *(job(name, cost) for cost in theirs))
    deficits = dict.fromkeys(names, 0.0)
    queues = {name: deque(theirs) for name, theirs in zip(names, flows, strict=True)}
    active, order = deque(names), ""
    while active:
        name = active.popleft()
        deficits[name] += 1.0
        while queues[name] and queues[name][0] <= deficits[name]:
            deficits[name] -= queues[name].popleft()
            order += name
        if queues[name]:
            active.append(name)
    assert popped(drr, len(order)) == order


def test_an_empty_lane_pops_nothing() -> None:
    with pytest.raises(IndexError):
        Drr().pop("long")
