"""The proof: who may be dispatched, and how far two flows can drift apart, through the real admission, virtual time.

A witness stands in for the policy. It keeps the books by the formulas in the docstrings, the slow way, without a look
inside, and writes down every breach:

order  a dispatch while somebody else in the lane stood before it
gap    two flows, both backlogged, whose charges over their weights drifted further apart than the bound allows
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import combinations, count
from math import ceil, inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.scheduling.admission import Admission
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Slice
from policies import POLICIES
from policies.base import AGING, LANES, Job, Lane, Policy
from policies.deadline import SLACK
from policies.drr import QUANTUM
from policies.fair import Fair
from policies.fifo import Fifo

HAIR = 1e-6


# The books.


class Level:
    """Parties that take turns: tag on return = max(tag, v), and so on."""

    def __init__(self) -> None:
        self.tags: dict[str, float] = {}
        self.turns: dict[str, int] = {}
        self.last_start = 0.0

    def lift(self, name: str, backlogged: set[str]) -> None:
        self.turns.setdefault(name, len(self.turns) - 10**9)  # before anybody who was served, in order of coming
        tag = self.tags.setdefault(name, 0.0)
        if name not in backlogged:
            self.tags[name] = max(tag, min((self.tags[other] for other in backlogged), default=self.last_start))

    def serve(self, name: str, amount: float, turn: int) -> None:
        self.last_start = max(self.last_start, self.tags[name])
        self.turns[name] = turn
        self.tags[name] += amount


@dataclass
class Spread:
    """How W_f - W_m moved since both are backlogged."""

    least: float
    most: float
    tags_apart: float  # |tag_f - tag_m| at the start


class Witness(Policy):
    def __init__(self, policy: Policy, name: str) -> None:
        self.policy = policy
        self.name = name
        self.order_faults: list[str] = []
        self.gap_faults: list[str] = []
        self.truth: dict[Job, float] = {}  # what each job will have come to
        self.waiting: dict[Job, int] = {}  # in order of pushing
        self.charged: dict[Job, float] = {}
        self.spent: dict[str, float] = defaultdict(float)  # over the weight
        self.largest: dict[str, float] = defaultdict(float)  # of what was dispatched
        self.largest_of_all = 0.0  # of what came
        self.head_start: dict[str, float] = defaultdict(float)
        self.unsettled = 0.0  # the most there ever was in flight
        self.widest = 0.0  # gap, as a part of its bound
        self.users = Level()
        self.sessions: dict[str, Level] = defaultdict(Level)
        self.from_tags = False  # allow for how far apart the tags were when both were backlogged first
        self._spreads: dict[tuple[Lane, str, str], Spread] = {}
        self._count = count()

    # The seam.

    def push(self, job: Job) -> None:
        mine = {other.session for other in self.waiting if other.flow == job.flow}
        self.users.lift(job.flow, {other.flow for other in self.waiting})
        self.sessions[job.flow].lift(job.session, mine)
        self.head_start[job.flow] = max(self.head_start[job.flow], job.head_start)
        self.largest_of_all = max(self.largest_of_all, self._size(job))
        self.waiting[job] = next(self._count)
        self.policy.push(job)
        self._look()

    def peek(self, lane: Lane) -> Job | None:
        return self.policy.peek(lane)

    def pop(self, lane: Lane) -> Job:
        standings = self.standings(lane)
        job = self.policy.pop(lane)
        if standings[job.flow] > min(standings.values()) + HAIR:
            self.order_faults.append(f"{job.flow} at {standings[job.flow]}: {standings}")
        del self.waiting[job]
        turn = next(self._count)
        self.users.serve(job.flow, 0.0, turn)
        self.sessions[job.flow].serve(job.session, 0.0, turn)
        self.charged[job] = 0.0
        self._add(job, job.cost)
        self.largest[job.flow] = max(self.largest[job.flow], self._size(job))
        self._look()
        return job

    def remove(self, job: Job) -> None:
        del self.waiting[job]
        self.policy.remove(job)
        self._rest(job.flow)
        self._look()

    def charge(self, job: Job, cost: float) -> None:
        self._add(job, cost - self.charged[job])
        self.policy.charge(job, cost)
        self._look()

    def settle(self, job: Job, cost: float) -> None:
        assert cost == self.truth[job]
        self._add(job, cost - self.charged[job])
        del self.charged[job]
        self.policy.settle(job, cost)
        self._rest(job.flow)
        self._look()

    # Where flows stand.

    def standings(self, lane: Lane) -> dict[str, float]:
        """The least goes first."""
        flows = {job.flow for job in self.waiting if job.lane == lane}
        return {flow: self._standing(flow, lane) for flow in flows}

    def _standing(self, flow: str, lane: Lane) -> float:
        jobs = [job for job in self.waiting if job.flow == flow and job.lane == lane]
        if self.name == "fair":
            return self.users.tags[flow] - self._fair_head(flow, jobs).head_start
        if self.name == "drr":
            head = min(jobs, key=lambda job: (job.arrival - job.head_start, self.waiting[job]))
            used = self.users.tags[flow]
            return ceil((used + head.cost / head.weight - head.head_start) / QUANTUM - 1e-9)
        return min(map(KEYS[self.name], jobs))

    def _fair_head(self, flow: str, jobs: list[Job]) -> Job:
        level = self.sessions[flow]
        heads: dict[str, Job] = {}
        for job in sorted(jobs, key=lambda job: (KEYS["shortest"](job), self.waiting[job])):
            heads.setdefault(job.session, job)
        return min(heads.values(), key=lambda job: (level.tags[job.session] - job.head_start, level.turns[job.session]))

    def _size(self, job: Job) -> float:
        return max(job.cost, self.truth[job]) / job.weight

    def _add(self, job: Job, more: float) -> None:
        self.charged[job] += more
        self.spent[job.flow] += more / job.weight
        self.users.tags[job.flow] += more / job.weight
        self.sessions[job.flow].tags[job.session] += more

    def _rest(self, flow: str) -> None:
        """The sessions of a user who has nothing waiting or running are forgotten."""
        if not any(job.flow == flow for job in (*self.waiting, *self.charged)):
            self.sessions.pop(flow, None)

    # How far they drift.

    def _look(self) -> None:
        unsettled = sum(abs(self.truth[job] - charged) / job.weight for job, charged in self.charged.items())
        self.unsettled = max(self.unsettled, unsettled)
        both: set[tuple[Lane, str, str]] = set()
        for lane in LANES:
            there = sorted({job.flow for job in self.waiting if job.lane == lane})
            both |= {(lane, f, m) for f, m in combinations(there, 2)}
        for pair in both:
            _, f, m = pair
            apart = self.spent[f] - self.spent[m]
            tags_apart = abs(self.users.tags[f] - self.users.tags[m])
            spread = self._spreads.setdefault(pair, Spread(apart, apart, tags_apart))
            spread.least = min(spread.least, apart)
            spread.most = max(spread.most, apart)
            gap, bound = spread.most - spread.least, self._bound(f, m) + self.from_tags * spread.tags_apart
            self.widest = max(self.widest, gap / bound) if bound else self.widest
            if gap > bound + HAIR:
                self.gap_faults.append(f"{f} and {m} in the {pair[0]} lane: {gap} > {bound}")
        for pair in self._spreads.keys() - both:
            del self._spreads[pair]

    def _bound(self, f: str, m: str) -> float:
        """The largest job of each over its weight, head starts, and what is unsettled at either end."""
        slack = self.head_start[f] + self.head_start[m] + 2 * self.unsettled
        if self.name == "drr":
            return 2 * QUANTUM + 2 * self.largest_of_all + slack
        return self.largest[f] + self.largest[m] + slack


KEYS: dict[str, Callable[[Job], float]] = {
    "fifo": lambda job: job.arrival,
    "shortest": lambda job: job.arrival + AGING * job.cost - job.head_start,
    "deadline": lambda job: (job.arrival + SLACK if job.deadline == inf else job.deadline) - job.head_start,
}


# The virtual clock.


@dataclass(frozen=True)
class Fate:
    """A job, and what becomes of it. `truth` is its cost, prefill and answer; its prefill comes in so many slices."""

    job: Job
    truth: float
    prefill: float
    decode: float
    slices: int = 1
    leaves_after: float = inf  # if it still waits then


@dataclass
class World:
    admission: Admission
    witness: Witness
    now: float = 0.0
    waits: dict[Job, float] = field(default_factory=dict)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: "count[int]" = field(default_factory=count)
    _slices_left: dict[Job, int] = field(default_factory=dict)
    _fates: dict[Job, Fate] = field(default_factory=dict)

    def run(self, fates: Iterable[Fate]) -> "World":
        for fate in fates:
            self._at(fate.job.arrival, lambda fate=fate: self._arrive(fate))  # type: ignore[misc]
        while self._events:
            self.now, _, act = heappop(self._events)
            act()
        assert not self.witness.waiting
        assert not self.witness.charged
        assert not any(self.admission.held().values())
        return self

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._count), act))

    def _dispatched(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.waits.setdefault(job, self.now - job.arrival)
            fate = self._fates[job]
            self._at(self.now + fate.prefill / fate.slices, lambda job=job: self._prefilled(job))  # type: ignore[misc]

    def _arrive(self, fate: Fate) -> None:
        job = fate.job
        self._fates[job] = fate
        self._slices_left[job] = fate.slices
        self.witness.truth[job] = fate.truth
        if fate.leaves_after < inf:
            self._at(self.now + fate.leaves_after, lambda: self._leave(job))
        self._dispatched(self.admission.arrive(job, self._slice(fate) if fate.slices > 1 else None))

    def _slice(self, fate: Fate) -> Slice:
        return Slice(fate.job.tokens // fate.slices, fate.job.cost / fate.slices)

    def _leave(self, job: Job) -> None:
        if job not in self.waits:
            self._dispatched(self.admission.leave(job))

    def _prefilled(self, job: Job) -> None:
        fate = self._fates[job]
        self._slices_left[job] -= 1
        if self._slices_left[job]:
            self._dispatched(self.admission.slice_done(job, self._slice(fate)))
            return
        self._at(self.now + fate.decode / 2, lambda: self._half_way(fate))
        self._dispatched(self.admission.first_token(job))

    def _half_way(self, fate: Fate) -> None:
        self._at(self.now + fate.decode / 2, lambda: self._dispatched(self.admission.finish(fate.job, fate.truth)))
        self._dispatched(self.admission.progress(fate.job, (fate.job.cost + fate.truth) / 2, 0))


def office(seed: int, n: int, flows: int, lanes: Iterable[Lane], wrong: float = 3.0) -> list[Fate]:
    """Busier than the engine can serve: weights, sessions, head starts, cancellations, mispredictions up to `wrong`."""
    random, lanes = Random(seed), tuple(lanes)
    names = "abcdef"[:flows]
    weights = {name: random.choice([0.5, 1, 1, 2, 3]) for name in names}
    lane_of = {name: random.choice([lanes, lanes[:1], lanes[-1:]]) for name in names}
    # Some come without end, some now and then.
    rates = {name: random.choice([0.1, 1, 5]) for name in names}
    fates, now = [], 0.0
    for _ in range(n):
        now += random.choice([0.0, random.expovariate(1.5), random.expovariate(0.1) if random.random() < 0.1 else 0.0])
        name = random.choices(names, list(rates.values()))[0]
        lane = random.choice(lane_of[name])
        cost = random.uniform(0.1, 1.0) if lane == "short" else random.uniform(1.0, 8.0)
        truth = cost * wrong ** random.uniform(-1, 1)
        if wrong > 1 and random.random() < 0.1:  # cancelled in flight
            truth *= random.random()
        job = Job(
            name,
            lane,
            tokens=3000 if lane == "long" else 100,
            cost=cost,
            arrival=now,
            session=random.choice(["", "", "chat", "agent"]),
            weight=weights[name],
            head_start=random.choice([0.0] * 9 + [5.0]),
            deadline=random.choice([inf, now + random.uniform(0, 60)]),
        )
        prefill = truth * random.uniform(0.3, 1.0)
        slices = random.choice([1, 1, 3]) if lane == "long" else 1
        leaves = random.uniform(0, 20) if random.random() < 0.15 else inf
        fates.append(Fate(job, truth, prefill, truth - prefill, slices, leaves))
    return fates


limits = st.builds(
    Limits,
    short_lane_tokens=st.sampled_from([100, 300]),
    long_lane_jobs=st.integers(1, 2),
    max_num_seqs=st.integers(1, 6),
    flow_in_flight=st.sampled_from([None, None, 2]),
)
offices = {"seed": st.integers(0, 2**32), "n": st.integers(2, 150), "flows": st.integers(2, 5), "limits": limits}


def witnessed(name: str, fates: list[Fate], limits: Limits, from_tags: bool = False) -> Witness:
    witness = Witness(POLICIES[name](), name)
    witness.from_tags = from_tags
    World(Admission(witness, limits), witness).run(fates)
    return witness


# Order.


@pytest.mark.parametrize("name", POLICIES)
@given(**offices)
@settings(max_examples=60, deadline=None)
def test_dispatches_follow_the_order_of_the_witness(name: str, seed: int, n: int, flows: int, limits: Limits) -> None:
    assert witnessed(name, office(seed, n, flows, LANES), limits).order_faults == []


# Gap.


@pytest.mark.parametrize("wrong", [1.0, 3.0])
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", ["fair", "drr"])
@given(**offices)
@settings(max_examples=60, deadline=None)
def test_backlogged_flows_drift_apart_by_at_most_the_bound(
    name: str, lane: Lane, wrong: float, seed: int, n: int, flows: int, limits: Limits
) -> None:
    """Where predictions are right, nothing is unsettled, and the bound is that of the paper."""
    assert witnessed(name, office(seed, n, flows, [lane], wrong), limits).gap_faults == []


@pytest.mark.parametrize("name", ["fair", "drr"])
@given(**offices)
@settings(max_examples=60, deadline=None)
def test_with_both_lanes_in_use_only_the_start_may_exceed_the_bound(
    name: str, seed: int, n: int, flows: int, limits: Limits
) -> None:
    fates = [
        fate
        for fate in office(seed, n, flows, LANES)
        if fate.job.lane == ("short" if fate.job.flow in "ac" else "long")
    ]
    assert witnessed(name, fates, limits, from_tags=True).gap_faults == []


def fate(flow: str, lane: Lane, arrival: float, cost: float) -> Fate:
    return Fate(Job(flow, lane, 100, cost, arrival), truth=cost, prefill=cost, decode=0.0)


# Each of b's jobs comes just before one of a's, which are ten times as dear.
UNEQUAL = [fate(flow, "long", 0.1 * i, cost) for i in range(30) for flow, cost in [("b", 0.5), ("a", 5.0)]]


@pytest.mark.parametrize("name", POLICIES)
def test_other_policies_break_the_bound(name: str) -> None:
    witness = witnessed(name, UNEQUAL, Limits())
    assert witness.order_faults == []
    assert bool(witness.gap_faults) == (name in {"fifo", "shortest", "deadline"})


def test_the_bound_is_reached() -> None:
    assert witnessed("fair", UNEQUAL, Limits()).widest == pytest.approx(1.0, abs=0.05)


def test_a_newcomer_goes_before_flows_that_used_the_faster_lane() -> None:
    """What the lift to the least tag over both lanes costs: b, who had the short lane alone, lets c go first for as
    long as four in the long lane are behind b."""
    fates = [
        *(fate("b", "short", 0.0, 0.5) for _ in range(300)),
        *(fate(flow, "long", 0.0, 4.0) for flow in "pqrs" for _ in range(20)),
        *(fate("c", "short", 60.0, 0.5) for _ in range(200)),
    ]
    limits = Limits(short_lane_tokens=100)
    assert witnessed("fair", fates, limits).gap_faults
    assert witnessed("fair", fates, limits, from_tags=True).gap_faults == []


# Time away.


@pytest.mark.parametrize("name", ["fair", "drr"])
@pytest.mark.parametrize("away", [0.0, 5.0, 50.0, 500.0])
def test_absence_earns_and_costs_nothing(name: str, away: float) -> None:
    """b has worked as a has, was away, and comes back with ten jobs: they share from then on, as if b had not left."""
    back = 20.0 + away
    returning = [fate("b", "short", back, 1.0) for _ in range(10)]
    fates = [
        *(fate("a", "short", 0.0, 1.0) for _ in range(600)),
        *(fate("b", "short", 0.0, 1.0) for _ in range(10)),
        *returning,
    ]
    witness = Witness(POLICIES[name](), name)
    world = World(Admission(witness, Limits(short_lane_tokens=100)), witness).run(fates)
    waits = [world.waits[each.job] for each in returning]
    assert waits == pytest.approx([2 * place + 1 for place in range(10)], abs=1.01)


# That the witness sees what is wrong.


class NoLift(Fair):
    def __init__(self) -> None:
        super().__init__()
        self.users.lift = lambda account: None  # type: ignore[method-assign]


class Forgiving(Fair):
    """Never settles."""

    def charge(self, job: Job, cost: float) -> None:
        pass


def mispriced() -> list[Fate]:
    dear = [replace(fate("b", "long", 0.0, 1.0), truth=3.0, prefill=3.0) for _ in range(30)]
    return [*dear, *(fate("a", "long", 0.0, 1.0) for _ in range(30))]


def away() -> list[Fate]:
    return [fate("a", "long", 0.0, 1.0) for _ in range(100)] + [fate("b", "long", 50.0, 1.0) for _ in range(40)]


@pytest.mark.parametrize(
    ("broken", "fates"),
    [(NoLift, away()), (Forgiving, mispriced()), (Fifo, UNEQUAL)],
    ids=["no lift", "no debt", "fifo"],
)
def test_a_deliberately_broken_policy_is_detected(broken: type[Policy], fates: list[Fate]) -> None:
    witness = Witness(broken(), "fair")
    World(Admission(witness), witness).run(fates)
    assert witness.order_faults
    assert witness.gap_faults
    assert witnessed("fair", fates, Limits()).gap_faults == []
