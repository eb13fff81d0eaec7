"""Who gets what, scenario by scenario, under every policy: clients, a duration, the expected seconds, a margin.

In the manner of Kubernetes' API Priority and Fairness (queueset_test.go): each client keeps some jobs waiting, the real
admission lets one job a lane prefill at a time, and the virtual clock says how many engine seconds each flow had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.admission import Admission
from gateway.scheduling.limits import Limits
from policies import POLICIES
from policies.base import Job, Lane

Shares = dict[str, float]


@dataclass(frozen=True)
class Client:
    """Keeps `window` jobs waiting in its lane from `since` until `until`.

    predicted  what their cost is taken for, if that is wrong
    due        seconds after their arrival
    """

    flow: str
    cost: float
    lane: Lane = "short"
    since: float = 0.0
    until: float = inf
    predicted: float | None = None
    window: int = 2
    weight: float = 1.0
    session: str = ""
    head_start: float = 0.0
    due: float = inf


class Office:
    """Two lanes, each serving one job at a time, as long as that truly costs."""

    def __init__(self, policy: str, *clients: Client) -> None:
        self.admission = Admission(POLICIES[policy](), Limits(short_lane_tokens=1))
        self.now = 0.0
        self.spent = dict.fromkeys((client.flow for client in clients), 0.0)
        self._clients = clients
        self._waiting: dict[Client, int] = dict.fromkeys(clients, 0)
        self._client_of: dict[Job, Client] = {}
        self._events: list[tuple[float, int, Job | None]] = []
        self._count = count()
        for client in clients:
            heappush(self._events, (client.since, next(self._count), None))

    def run(self, until: float) -> Iterator[None]:
        """A stop after everything that happens."""
        while self._events and self._events[0][0] <= until:
            self.now, _, ended = heappop(self._events)
            if ended:
                self._serve(self.admission.finish(ended, self._client_of[ended].cost))
            self._refill()
            yield

    def spent_between(self, start: float, end: float) -> Shares:
        for _ in self.run(start):
            pass
        before = dict(self.spent)
        for _ in self.run(end):
            pass
        return {flow: self.spent[flow] - before[flow] for flow in before}

    def _refill(self) -> None:
        for client in self._clients:
            while client.since <= self.now < client.until and self._waiting[client] < client.window:
                self._waiting[client] += 1
                self._serve(self.admission.arrive(self._job(client)))

    def _job(self, client: Client) -> Job:
        job = Job(
            client.flow,
            client.lane,
            tokens=100,
            cost=client.cost if client.predicted is None else client.predicted,
            arrival=self.now,
            session=client.session,
            weight=client.weight,
            head_start=client.head_start,
            deadline=self.now + client.due,
        )
        self._client_of[job] = client
        return job

    def _serve(self, jobs: list[Job]) -> None:
        for job in jobs:
            client = self._client_of[job]
            self._waiting[client] -= 1
            self.spent[client.flow] += client.cost
            heappush(self._events, (self.now + client.cost, next(self._count), job))


@dataclass(frozen=True)
class Scenario:
    """What each flow should have, in engine seconds, by policy; `margin` either way."""

    clients: Sequence[Client]
    duration: float
    margin: float
    expected: dict[str, Shares]


def of(policies: str, **shares: float) -> dict[str, Shares]:
    return dict.fromkeys(policies.split(), shares)


SCENARIOS = {
    "equal jobs, equal shares": Scenario(
        [Client("a", 1), Client("b", 1)],
        duration=100,
        margin=2,
        expected=of("fair drr fifo shortest deadline", a=50, b=50),
    ),
    # In order of arrival a gets one job for each of b's. By aged length a job of a's waits until it is 4 * (8 - 0.5)
    # = 30 s older than the next of b's, and as two of them wait at a time, two go in 30 s and a bit.
    "long jobs buy no larger share": Scenario(
        [Client("a", 8), Client("b", 0.5)],
        duration=800,
        margin=20,
        expected=of("fair drr", a=400, b=400)
        | of("fifo deadline", a=800 * 8 / 8.5, b=800 * 0.5 / 8.5)
        | of("shortest", a=800 * 16 / 31.5, b=800 * 15.5 / 31.5),
    ),
    "nor do many connections": Scenario(
        [Client("a", 1, window=6), Client("b", 1)],
        duration=200,
        margin=4,
        expected=of("fair drr", a=100, b=100) | of("fifo shortest deadline", a=150, b=50),
    ),
    "nor do many sessions": Scenario(
        [*(Client("a", 1, session=f"agent {i}") for i in range(9)), Client("b", 1)],
        duration=200,
        margin=4,
        expected=of("fair drr", a=100, b=100) | of("fifo shortest deadline", a=180, b=20),
    ),
    "twice the weight, twice the share": Scenario(
        [Client("a", 1, weight=2), Client("b", 1)],
        duration=300,
        margin=4,
        expected=of("fair drr", a=200, b=100) | of("fifo shortest deadline", a=150, b=150),
    ),
    # In charge it is given once: a is 20 s ahead, and stays so. In waiting each job has it: two of b's go in 22 s, when
    # they are 20 s older than the next of a's.
    "a head start": Scenario(
        [Client("a", 1, head_start=20), Client("b", 1)],
        duration=220,
        margin=4,
        expected=of("fair drr", a=120, b=100) | of("fifo", a=110, b=110) | of("shortest deadline", a=200, b=20),
    ),
    # a alone uses both lanes; were lanes charged apart, a would have 300 of 600, and the others 150 each.
    "what is spent in one lane counts in the other": Scenario(
        [Client("a", 1), Client("b", 1), Client("a", 5, "long"), Client("c", 5, "long")],
        duration=300,
        margin=15,
        expected=of("fair drr", a=200, b=200, c=200) | of("fifo shortest deadline", a=300, b=150, c=150),
    ),
    "shares are of true costs, not of predicted ones": Scenario(
        [Client("a", 4, predicted=1), Client("b", 1, predicted=1), Client("c", 1, predicted=3)],
        duration=300,
        margin=9,
        expected=of("fair drr", a=100, b=100, c=100) | of("fifo deadline", a=200, b=50, c=50),
    ),
    "who asks for less than a share gets what is asked, and the rest goes round": Scenario(
        [*(Client("a", 1, since=10 * i + 0.3, until=10 * i + 0.5) for i in range(10)), Client("b", 1), Client("c", 1)],
        duration=100,
        margin=3,
        expected=of("fair drr fifo shortest deadline", a=20, b=40, c=40),
    ),
    # Without a deadline, b's are due 30 s after they came: as with a head start of 20 s.
    "who is due sooner gets more of the engine": Scenario(
        [Client("a", 1, due=10), Client("b", 1)],
        duration=220,
        margin=4,
        expected=of("fair drr fifo shortest", a=110, b=110) | of("deadline", a=200, b=20),
    ),
}
CASES = [(title, policy) for title, scenario in SCENARIOS.items() for policy in scenario.expected]


@pytest.mark.parametrize(("title", "policy"), CASES, ids=[f"{title}: {policy}" for title, policy in CASES])
def test_each_flow_gets_its_expected_share(title: str, policy: str) -> None:
    scenario = SCENARIOS[title]
    spent = Office(policy, *scenario.clients).spent_between(-1, scenario.duration)
    assert spent == pytest.approx(scenario.expected[policy], abs=scenario.margin)


def test_every_policy_is_in_nearly_every_scenario() -> None:
    for policy in POLICIES:
        assert sum(case[1] == policy for case in CASES) >= len(SCENARIOS) - 1


@given(st.floats(0.1, 30), st.floats(0.1, 30))
def test_two_always_waiting_flows_differ_by_at_most_one_job_each(a: float, b: float) -> None:
    office = Office("fair", Client("a", a), Client("b", b))
    for _ in office.run(0):
        pass  # a was the first to come, and was let go at once
    first = office.spent["a"] - office.spent["b"]
    for _ in office.run(20 * (a + b)):
        assert abs(office.spent["a"] - office.spent["b"] - first) <= a + b + 1e-6


@pytest.mark.parametrize("policy", POLICIES)
def test_absence_earns_no_credit(policy: str) -> None:
    """b works, leaves for 90 s, and comes back: from then on the two share, and b makes up for nothing."""
    office = Office(policy, Client("a", 1), Client("b", 1, until=10), Client("b", 1, since=100))
    assert office.spent_between(100, 120) == pytest.approx({"a": 10, "b": 10}, abs=2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_newcomer_neither_jumps_ahead_nor_pays_for_others_past_use(policy: str) -> None:
    office = Office(policy, Client("a", 1), Client("new", 1, since=1000))
    assert office.spent_between(1000, 1020) == pytest.approx({"a": 10, "new": 10}, abs=2)
