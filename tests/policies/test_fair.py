"""What fair promises: shares on a virtual clock, turns and ties by hand, and that debts are kept and bounded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import LANES, Job, Lane
from policies.fair import AGING, MAX_IDLE_FLOWS, Fair


@dataclass(frozen=True)
class Client:
    """Keeps two jobs waiting in its lane from `since` until `until`. `predicted` is what their cost is taken for."""

    flow: str
    cost: float
    lane: Lane = "short"
    since: float = 0.0
    until: float = inf
    predicted: float | None = None


class Office:
    """Two lanes, each serving one job at a time, as long as that truly costs: the virtual clock."""

    def __init__(self, *clients: Client) -> None:
        self.policy = Fair()
        self.now = 0.0
        self.spent = dict.fromkeys((client.flow for client in clients), 0.0)
        self._clients = clients
        self._waiting: dict[Client, int] = dict.fromkeys(clients, 0)
        self._client_of: dict[Job, Client] = {}
        self._serving: dict[Lane, Job | None] = dict.fromkeys(LANES)
        self._events: list[tuple[float, int, Job | None]] = []
        self._count = count()
        for client in clients:
            heappush(self._events, (client.since, next(self._count), None))

    def run(self, until: float) -> Iterator[None]:
        """A stop after everything that happens."""
        while self._events and self._events[0][0] <= until:
            self.now, _, ended = heappop(self._events)
            if ended:
                self.policy.settle(ended, self._client_of[ended].cost)
                self._serving[ended.lane] = None
            self._arrive()
            self._serve()
            yield

    def spent_between(self, start: float, end: float) -> dict[str, float]:
        for _ in self.run(start):
            pass
        before = dict(self.spent)
        for _ in self.run(end):
            pass
        return {flow: self.spent[flow] - before[flow] for flow in before}

    def _arrive(self) -> None:
        for client in self._clients:
            while client.since <= self.now < client.until and self._waiting[client] < 2:
                predicted = client.cost if client.predicted is None else client.predicted
                job = Job(client.flow, client.lane, 100, predicted, self.now)
                self._client_of[job] = client
                self._waiting[client] += 1
                self.policy.push(job)

    def _serve(self) -> None:
        for lane in LANES:
            if self._serving[lane] is None and self.policy.waiting(lane):
                job = self._serving[lane] = self.policy.pop(lane)
                client = self._client_of[job]
                self._waiting[client] -= 1
                self.spent[client.flow] += client.cost
                heappush(self._events, (self.now + client.cost, next(self._count), job))


# Shares.


@dataclass(frozen=True)
class Scenario:
    clients: Sequence[Client]
    duration: float
    expected: dict[str, float]
    margin: float


SCENARIOS = {
    "equal jobs, equal shares": Scenario([Client("a", 1), Client("b", 1)], 100, {"a": 50, "b": 50}, 1),
    "long jobs buy no larger share": Scenario([Client("a", 8), Client("b", 0.5)], 800, {"a": 400, "b": 400}, 8.5),
    "nor do many connections": Scenario(
        [Client("a", 1), Client("a", 1), Client("a", 1), Client("b", 1)], 100, {"a": 50, "b": 50}, 1
    ),
    # a alone uses both lanes; were lanes charged apart, a would have 150 of 300, and the others 75 each.
    "what is spent in one lane counts in the other": Scenario(
        [Client("a", 1), Client("b", 1), Client("a", 5, "long"), Client("c", 5, "long")],
        150,
        {"a": 100, "b": 100, "c": 100},
        10,
    ),
    "shares are of true costs, not of predicted ones": Scenario(
        [Client("a", 4, predicted=1), Client("b", 1, predicted=1), Client("c", 1, predicted=5)],
        300,
        {"a": 100, "b": 100, "c": 100},
        8,
    ),
    "who asks for less than a share gets what is asked, and the rest goes round": Scenario(
        [*(Client("a", 1, since=10.0 * i, until=10.0 * i + 0.5) for i in range(10)), Client("b", 1), Client("c", 1)],
        100,
        {"a": 20, "b": 40, "c": 40},
        2,
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_shares(scenario: Scenario) -> None:
    spent = Office(*scenario.clients).spent_between(-1, scenario.duration)
    assert spent == pytest.approx(scenario.expected, abs=scenario.margin)


@given(st.floats(0.1, 30), st.floats(0.1, 30))
def test_two_that_always_wait_never_differ_by_more_than_a_job_each(a: float, b: float) -> None:
    office = Office(Client("a", a), Client("b", b))
    for _ in office.run(20 * (a + b)):
        assert abs(office.spent["a"] - office.spent["b"]) <= a + b + 1e-6


def test_time_away_earns_no_credit() -> None:
    """b works, leaves for 90 s, and comes back: from then on the two share, and b makes up for nothing."""
    office = Office(Client("a", 1), Client("b", 1, until=10), Client("b", 1, since=100))
    assert office.spent_between(100, 120) == pytest.approx({"a": 10, "b": 10}, abs=1)


def test_a_newcomer_neither_jumps_ahead_nor_waits_for_what_others_had() -> None:
    office = Office(Client("a", 1), Client("new", 1, since=1000))
    assert office.spent_between(1000, 1020) == pytest.approx({"a": 10, "new": 10}, abs=1)


# Turns.


def job(flow: str, cost: float = 1.0, lane: Lane = "short", arrival: float = 0.0) -> Job:
    return Job(flow, lane, 100, cost, arrival)


def pushed(fair: Fair, *jobs: Job) -> None:
    for each in jobs:
        fair.push(each)


def popped(fair: Fair, n: int, lane: Lane = "short") -> str:
    return "".join(fair.pop(lane).flow for _ in range(n))


def test_the_second_paster_is_let_in_at_the_first_ones_second_turn() -> None:
    fair = Fair()
    pushed(fair, *(job("a", 7.5, "long", arrival) for arrival in range(6)))
    assert popped(fair, 1, "long") == "a"
    pushed(fair, job("b", 7.5, "long", arrival=5))
    assert popped(fair, 6, "long") == "baaaaa"


def test_equal_flows_take_turns() -> None:
    fair = Fair()
    pushed(fair, *(job(flow) for flow in "aaabbbccc"))
    assert popped(fair, 9) == "abcabcabc"


def test_among_equals_the_one_served_longest_ago_goes_first() -> None:
    fair = Fair()
    pushed(fair, job("a"), job("b"), job("a"))
    assert popped(fair, 2) == "ab"
    pushed(fair, job("b"))
    assert popped(fair, 2) == "ab"


def test_a_flow_that_returns_goes_before_one_that_was_served_meanwhile() -> None:
    fair = Fair()
    pushed(fair, job("b"), *(job("a") for _ in range(4)))
    assert popped(fair, 3) == "baa"
    pushed(fair, job("b"))
    assert popped(fair, 3) == "baa"


def test_a_newcomer_begins_where_the_least_of_those_who_wait_is() -> None:
    fair = Fair()
    pushed(fair, job("a", 10.0), job("a", 10.0))
    assert popped(fair, 1) == "a"
    pushed(fair, *(job("b") for _ in range(3)))
    assert popped(fair, 4) == "babb"


def test_and_where_the_last_one_began_if_nobody_waits() -> None:
    fair = Fair()
    pushed(fair, job("a", 10.0), job("a", 10.0))
    assert popped(fair, 2) == "aa"
    pushed(fair, *(job("b", 5.0) for _ in range(4)), job("a"))
    assert popped(fair, 5) == "bbabb"


def test_a_user_in_debt_from_the_long_lane_waits_in_the_short_one() -> None:
    fair = Fair()
    pushed(fair, job("b", 3.0), job("a", 7.5, "long"))
    assert popped(fair, 1, "long") == "a"
    pushed(fair, job("a"), *(job("b", 3.0) for _ in range(3)))
    assert popped(fair, 5) == "bbbab"


def test_leaving_the_queue_costs_nothing() -> None:
    fair = Fair()
    gone = job("a", 100.0)
    pushed(fair, gone, job("a"), job("b"))
    fair.remove(gone)
    assert popped(fair, 2) == "ab"


def test_what_a_cancelled_job_did_not_use_is_given_back() -> None:
    fair = Fair()
    cancelled = job("a", 10.0)
    pushed(fair, cancelled, *(job("b") for _ in range(4)))
    assert fair.pop("short") is cancelled
    pushed(fair, job("a"), job("a"))
    fair.settle(cancelled, 0.0)
    assert popped(fair, 4) == "baba"


def test_what_a_job_came_to_beyond_its_prediction_is_owed() -> None:
    fair = Fair()
    dear = job("a", 1.0)
    pushed(fair, dear, job("a"), *(job("b") for _ in range(5)))
    assert fair.pop("short") is dear
    fair.settle(dear, 4.0)
    assert popped(fair, 6) == "bbbbab"


# Inside a flow.


def test_short_jobs_go_before_the_long_ones_of_their_flow() -> None:
    fair = Fair()
    swarm, chat = [job("a", 5.0) for _ in range(3)], job("a", 0.3, arrival=1.0)
    pushed(fair, *swarm, chat)
    assert [fair.pop("short") for _ in range(4)] == [chat, *swarm]


@pytest.mark.parametrize(("later", "passes"), [(AGING * 10 - AGING - 0.1, True), (AGING * 10 - AGING + 0.1, False)])
def test_but_only_those_that_come_soon_enough(later: float, passes: bool) -> None:
    fair = Fair()
    old, young = job("a", 10.0), job("a", 1.0, arrival=later)
    pushed(fair, old, young)
    assert fair.pop("short") is (young if passes else old)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 100)), min_size=2, max_size=20))
def test_nobody_is_passed_by_what_comes_later_than_the_aging_bound(shapes: list[tuple[float, float]]) -> None:
    fair = Fair()
    jobs = [job("a", cost, arrival=arrival) for cost, arrival in shapes]
    pushed(fair, *jobs)
    order = [fair.pop("short") for _ in jobs]
    for place, passed in enumerate(order):
        for first in order[:place]:
            assert first.arrival <= passed.arrival + AGING * passed.cost + 1e-9


# Memory.


def visit(fair: Fair, flow: str, cost: float = 1.0) -> None:
    """Come, be served, go."""
    visitor = job(flow, cost)
    fair.push(visitor)
    assert fair.pop("short") is visitor
    fair.settle(visitor, cost)


def test_however_many_come_by_once_few_are_remembered() -> None:
    fair = Fair()
    for i in range(3 * MAX_IDLE_FLOWS):
        visit(fair, f"visitor {i}")
        assert len(fair._flows) <= MAX_IDLE_FLOWS + 1


def test_large_debts_are_the_last_to_be_forgotten() -> None:
    fair = Fair()
    visit(fair, "d", 1000.0)
    for i in range(2 * MAX_IDLE_FLOWS):
        visit(fair, f"visitor {i}", 0.001)
    pushed(fair, *(job("n") for _ in range(3)), job("d"))
    assert popped(fair, 4) == "nnnd"


def test_a_flow_with_a_job_in_the_engine_or_in_the_queue_is_not_forgotten() -> None:
    fair = Fair()
    running, waiting = job("r"), job("w", 0.5, "long")
    pushed(fair, running, waiting)
    assert fair.pop("short") is running
    for i in range(2 * MAX_IDLE_FLOWS):
        visit(fair, f"visitor {i}")
    assert fair.peek("long") is waiting
    fair.settle(running, 5000.0)
    pushed(fair, *(job("n", 10.0) for _ in range(3)), job("r"))
    assert popped(fair, 4) == "nnnr"
