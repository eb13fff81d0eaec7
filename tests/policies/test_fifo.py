"""First come, first served: neither cost, head start nor past use matters."""

from policies.base import Job
from policies.fifo import Fifo


def job(flow: str = "a", cost: float = 1.0, arrival: float = 0.0, head_start: float = 0.0) -> Job:
    return Job(flow, "short", 100, cost, arrival, head_start=head_start, deadline=arrival + cost)


def test_jobs_go_in_order_of_arrival() -> None:
    fifo = Fifo()
    jobs = [job("a", 9.0), job("b", 1.0), job("a", 0.1, arrival=5.0, head_start=60.0)]
    for each in jobs:
        fifo.push(each)
    assert [fifo.pop("short") for _ in jobs] == jobs


def test_a_job_that_returns_has_its_old_place() -> None:
    fifo = Fifo()
    first, second = job(), job(arrival=1.0)
    fifo.push(first)
    fifo.remove(first)
    fifo.push(second)
    fifo.push(first)
    assert [fifo.pop("short"), fifo.pop("short")] == [first, second]


def test_a_job_that_leaves_moves_the_others_up() -> None:
    fifo = Fifo()
    first, middle, last = jobs = job(), job(), job()
    for each in jobs:
        fifo.push(each)
    fifo.remove(middle)
    assert [fifo.pop("short"), fifo.pop("short")] == [first, last]


def test_past_use_does_not_matter() -> None:
    fifo = Fifo()
    greedy = job("a", 100.0)
    fifo.push(greedy)
    fifo.pop("short")
    fifo.charge(greedy, 500.0)
    fifo.settle(greedy, 1000.0)
    second, third = job("a"), job("b")
    fifo.push(second)
    fifo.push(third)
    assert fifo.pop("short") is second
