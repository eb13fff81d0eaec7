"""Random histories of admission, for every policy, checked by a referee that keeps its own books."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import count
from random import Random
from typing import ClassVar, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Corrected
from gateway.scheduling.limits import Limits
from gateway.scheduling.queue import MUCH_SHORTER
from gateway.scheduling.ticket import Slice, Ticket
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy

NewPolicy = Callable[[], Policy]
every_policy = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)


class Witness(Policy):
    """A policy that is another one, and notes that it is told of each job as it should be."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.waiting: set[Job] = set()
        self.popped: set[Job] = set()

    def push(self, job: Job) -> None:
        assert job not in self.waiting | self.popped
        self.waiting.add(job)
        self.policy.push(job)

    def peek(self, lane: Lane) -> Job | None:
        return self.policy.peek(lane)

    def pop(self, lane: Lane) -> Job:
        job = self.policy.pop(lane)
        self.waiting.remove(job)
        self.popped.add(job)
        return job

    def remove(self, job: Job) -> None:
        self.waiting.remove(job)
        self.policy.remove(job)

    def charge(self, job: Job, cost: float) -> None:
        assert job in self.popped
        self.policy.charge(job, cost)

    def settle(self, job: Job, cost: float) -> None:
        self.popped.remove(job)
        self.policy.settle(job, cost)

    def copy(self) -> Self:
        clone = type(self)(self.policy.copy())
        clone.waiting, clone.popped = self.waiting.copy(), self.popped.copy()
        return clone


class Watched(Admission):
    """Shows the referee each dispatch before it happens."""

    judge: Callable[[Job], None] = staticmethod(lambda job: None)

    def grant(self, ticket: Ticket) -> None:
        self.judge(ticket.job)
        super().grant(ticket)


class Referee:
    """Tells admission what happens, and judges what it does from nothing but lists of jobs."""

    def __init__(self, policy: Policy, limits: Limits) -> None:
        self.admission = Watched(policy, limits)
        self.admission.judge = self.judge
        self.limits = limits
        self.waiting: list[Job] = []  # never dispatched
        self.begun: dict[Lane, list[Job]] = {lane: [] for lane in LANES}  # wait for their next slice
        self.left: dict[Job, float] = {}  # engine seconds, of those that have waited for their next slice
        self.passed: dict[Job, list[float]] = {}  # what of others has begun in its lane while they did; and the most
        self.prefill: list[Job] = []  # in their lane
        self.scheduled: list[Job] = []  # out of their lane, before their first token
        self.decode: list[Job] = []
        self.earlier: list[Job] = []  # once for each slice that is in the engine and is not the job's last
        self.slices: dict[Job, Slice] = {}
        self.reserved: dict[Job, int] = {}
        self.ended: list[Job] = []
        self.arrived = 0
        self.correction = Corrected()
        self.served: dict[Lane, int] = {lane: place - len(LANES) for place, lane in enumerate(LANES)}
        self._judged: list[Job] = []
        self._dispatches = count()

    # What happens.

    def arrive(self, job: Job, first_slice: Slice | None = None) -> list[Job]:
        self.arrived += 1
        self.waiting.append(job)
        self.slices[job] = first_slice or Slice(job.tokens, job.cost)
        return self._told(lambda: self.admission.arrive(job, first_slice))

    def has_scheduled(self, job: Job) -> list[Job]:
        self.prefill.remove(job)
        self.scheduled.append(job)
        return self._told(lambda: self.admission.scheduled(job))

    def requeue(self, job: Job, following: Slice) -> list[Job]:
        self.scheduled.remove(job)
        self.earlier.append(job)
        self._wait_for(job, following)
        return self._told(lambda: self.admission.requeue(job, following))

    def slice_done(self, job: Job, following: Slice) -> list[Job]:
        self._take_out(job, self.prefill, self.scheduled)
        self._wait_for(job, following)
        return self._told(lambda: self.admission.slice_done(job, following))

    def earlier_slice_done(self, job: Job) -> list[Job]:
        self.earlier.remove(job)
        return self._told(lambda: self.admission.earlier_slice_done(job))

    def first_token(self, job: Job) -> list[Job]:
        self._take_out(job, self.prefill, self.scheduled, self.decode)
        self.decode.append(job)
        return self._told(lambda: self.admission.first_token(job))

    def progress(self, job: Job, cost: float, kv_tokens: int) -> list[Job]:
        self.reserved[job] = kv_tokens
        return self._told(lambda: self.admission.progress(job, cost, kv_tokens))

    def finish(self, job: Job, cost: float) -> list[Job]:
        self._take_out(job, self.prefill, self.scheduled, self.decode, self.begun[job.lane])
        self.earlier = [other for other in self.earlier if other is not job]
        del self.reserved[job]
        self.ended.append(job)
        return self._told(lambda: self.admission.finish(job, cost))

    def leave(self, job: Job) -> list[Job]:
        self.waiting.remove(job)
        self.ended.append(job)
        return self._told(lambda: self.admission.leave(job))

    def set_limits(self, limits: Limits) -> list[Job]:
        self.limits = limits
        return self._told(lambda: self.admission.set_limits(limits))

    def correct(self, correction: Corrected) -> list[Job]:
        self.correction = correction
        return self._told(lambda: self.admission.correct(correction))

    def set_policy(self, policy: Policy) -> list[Job]:
        return self._told(lambda: self.admission.set_policy(policy))

    def _wait_for(self, job: Job, following: Slice) -> None:
        self.begun[job.lane].append(job)
        self.slices[job] = following
        self.left[job] = following.cost_s + following.rest_s
        self.passed.setdefault(job, [0.0, self.left[job]])

    def _take_out(self, job: Job, *places: list[Job]) -> None:
        """It is in exactly one of these."""
        (place,) = (place for place in places if job in place)
        place.remove(job)

    # What is the case.

    @property
    def running(self) -> list[Job]:
        return self.prefill + self.scheduled + self.decode

    @property
    def in_engine(self) -> list[Job]:
        """A job once for each of its slices that is there: each has seats."""
        return self.running + self.earlier

    @property
    def dispatched(self) -> list[Job]:
        return self.running + [job for lane in LANES for job in self.begun[lane]]

    @property
    def has_earlier(self) -> list[Job]:
        """With an earlier slice in the engine, whose end admission can be told of."""
        return [job for job in self.dispatched if job in self.earlier]

    def lane_fits(self, job: Job) -> bool:
        beside = [other for other in self.prefill if other.lane == job.lane]
        if job.lane == "long":
            return not beside or len(beside) + 1 <= self.limits.long_lane_jobs
        tokens = sum(self.slices[other].tokens for other in beside) + self.slices[job].tokens
        return not beside or tokens <= self.limits.short_lane_tokens

    def seats_fit(self, job: Job) -> bool:
        seats = sum(other.seats for other in self.in_engine) + job.seats
        return not self.in_engine or seats + self.correction.external_seats <= self.limits.max_num_seqs

    def kv_fits(self, job: Job) -> bool:
        limit, reserved = self.limits.kv_tokens, sum(self.reserved.values())
        if limit is None or not reserved or not job.kv_tokens or job in self.reserved:
            return True
        correction = self.correction
        return (reserved + job.kv_tokens) * correction.kv_scale + correction.external_kv_tokens <= limit

    def under_cap(self, flow: str) -> bool:
        cap = self.limits.flow_in_flight
        return cap is None or sum(job.flow == flow for job in self.dispatched) < cap

    def head(self, lane: Lane, *, cache_is_reserved: bool = False) -> Job | None:
        """The policy's choice among those whose flow may have one more in the engine, if it may pass who has begun;
        else of these the one with least left."""
        job = self.admission.queue.policy.peek(lane)
        choice = job if job and self.under_cap(job.flow) else None
        if not self.begun[lane]:
            return choice
        first = min(self.begun[lane], key=self.left.__getitem__)
        passes = choice and not cache_is_reserved and self.may_pass(choice) and self.fits(choice)
        return choice if passes else first

    def may_pass(self, job: Job) -> bool:
        """It is much shorter than any that has begun, and all that pass one come to no more than that one had left."""
        begun = self.begun[job.lane]
        much_shorter = all(job.cost <= MUCH_SHORTER * self.left[other] for other in begun)
        return much_shorter and all(self.passed[other][0] + job.cost <= self.passed[other][1] for other in begun)

    def fits(self, job: Job) -> bool:
        return self.lane_fits(job) and self.seats_fit(job) and self.kv_fits(job)

    # What must hold.

    def judge(self, job: Job) -> None:
        """A dispatch: it is the head's, it fits, and whoever had the first claim could not have used it."""
        lane = job.lane
        other = other_lane(lane)
        earlier = self.head(other) if self.served[other] < self.served[lane] else None
        reserves = earlier is not None and self.lane_fits(earlier)
        assert self.head(lane, cache_is_reserved=reserves) is job
        assert self.fits(job)
        if earlier and reserves:
            # It lacks cache, and whoever has begun takes none of what comes free.
            assert job in self.begun[lane]
            assert not self.kv_fits(earlier)
        if job in self.begun[lane]:
            self.begun[lane].remove(job)
        else:
            self.waiting.remove(job)
            for begun in self.begun[lane]:
                self.passed[begun][0] += job.cost
                assert self.passed[begun][0] <= self.passed[begun][1]
        self.served[lane] = next(self._dispatches)
        self.reserved.setdefault(job, job.kv_tokens)
        self.prefill.append(job)
        self._judged.append(job)

    def _told(self, event: Callable[[], list[Job]]) -> list[Job]:
        dispatched = event()
        assert dispatched == self._judged
        self._judged = []
        self.assert_nothing_idles()
        return dispatched

    def assert_nothing_idles(self) -> None:
        """In the order of their claims: a head that fits would have gone, unless an earlier one reserves."""
        reserved = False
        for lane in sorted(LANES, key=self.served.__getitem__):
            may_go = [job for job in self.waiting if job.lane == lane and self.under_cap(job.flow)]
            head = self.head(lane, cache_is_reserved=reserved)
            assert head or not may_go
            if head and self.lane_fits(head) and (head in self.begun[lane] or not reserved):
                assert not self.fits(head)
                if not self.seats_fit(head):
                    break
                reserved = True  # cache; of which those who have begun take none
        waits = self.waiting or any(self.begun.values())
        assert self.in_engine or not waits

    def assert_counters(self) -> None:
        admission = self.admission
        assert admission.seats == sum(job.seats for job in self.in_engine)
        assert admission.running == len(self.running)
        assert admission.ledger.kv_tokens == sum(self.reserved.values())
        assert admission.ledger.prefill_s == pytest.approx(sum(self.slices[job].cost_s for job in self.prefill))
        assert admission.queue.prefill_s == pytest.approx(sum(job.cost for job in self.waiting))
        for lane in LANES:
            beside = [job for job in self.prefill if job.lane == lane]
            assert admission.prefill_jobs(lane) == len(beside)
            assert admission.prefill_tokens(lane) == sum(self.slices[job].tokens for job in beside)
            queued = sum(job.lane == lane for job in self.waiting)
            assert admission.waiting(lane) == queued + len(self.begun[lane])

    def close(self) -> None:
        """Everything comes to its end: each job has exactly one, and nothing is left."""
        while self.dispatched:
            self.finish(self.dispatched[0], 1.0)
            self.assert_counters()
        assert not self.waiting
        assert len(self.ended) == len(set(self.ended)) == self.arrived
        assert self.admission.held() == {"seats": 0, "kv": 0, "short": 0, "long": 0}
        assert self.admission.ledger.prefill_s == self.admission.queue.prefill_s == self.admission.running == 0
        for lane in LANES:
            assert self.admission.prefill_jobs(lane) == self.admission.waiting(lane) == 0
        assert self.admission.rejects(Job("a", "short", 1, 1.0, 0.0)) is None


def other_lane(lane: Lane) -> Lane:
    return "long" if lane == "short" else "short"


def maybe(values: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.none() | values


def limits() -> st.SearchStrategy[Limits]:
    return st.builds(
        Limits,
        short_lane_tokens=st.integers(1, 200),
        long_lane_jobs=st.integers(1, 3),
        max_num_seqs=st.integers(1, 6),
        kv_tokens=maybe(st.integers(1, 500)),
        flow_in_flight=maybe(st.integers(1, 3)),
    )


def seconds(most: int) -> st.SearchStrategy[float]:
    """Sixteenths: their sums are exact."""
    return st.integers(0, 16 * most).map(lambda sixteenths: sixteenths / 16)


jobs = st.builds(
    Job,
    flow=st.sampled_from("abc"),
    lane=st.sampled_from(LANES),
    tokens=st.integers(1, 300),
    cost=seconds(10),
    arrival=st.just(0.0),
    seats=st.integers(1, 8),
    kv_tokens=st.integers(0, 600),
)
slices = st.builds(Slice, tokens=st.integers(1, 300), cost_s=seconds(5), rest_s=seconds(40))


class Histories(RuleBasedStateMachine):
    """Anything that can happen, in any order."""

    start: ClassVar[NewPolicy]
    # How often a job had more than one slice in the engine, and how often one ended so.
    overlaps: ClassVar[int]
    ends_in_overlap: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.policies = [Witness(type(self).start())]
        self.referee = Referee(self.policies[0], Limits())

    @rule(new=limits())
    def set_limits(self, new: Limits) -> None:
        self.referee.set_limits(new)

    @rule(data=st.data())
    def set_policy(self, data: st.DataObject) -> None:
        self.policies.append(Witness(POLICIES[data.draw(st.sampled_from(sorted(POLICIES)))]()))
        self.referee.set_policy(self.policies[-1])

    @rule(
        correction=st.builds(
            Corrected,
            kv_scale=st.floats(0, 3),
            external_seats=st.integers(0, 8),
            external_kv_tokens=st.integers(0, 500),
        )
    )
    def correct(self, correction: Corrected) -> None:
        self.referee.correct(correction)

    @initialize(ahead=st.lists(st.tuples(jobs, slices, slices), max_size=3))
    def send_slices_ahead(self, ahead: list[tuple[Job, Slice, Slice]]) -> None:
        """Of the first jobs, the second slice is sent, or waits, while the first one is computed."""
        for job, first_slice, following in ahead:
            self.arrive(job, first_slice)
            for job in self.referee.prefill.copy():
                self.referee.has_scheduled(job)
                self.referee.assert_counters()
                self.referee.requeue(job, following)
                self.referee.assert_counters()

    @rule(job=jobs, first_slice=st.none() | slices)
    def arrive(self, job: Job, first_slice: Slice | None) -> None:
        self.referee.arrive(replace(job, arrival=self.referee.arrived), first_slice)

    @precondition(lambda self: self.referee.prefill)
    @rule(data=st.data())
    def scheduled(self, data: st.DataObject) -> None:
        self.referee.has_scheduled(data.draw(st.sampled_from(self.referee.prefill)))

    @precondition(lambda self: self.referee.scheduled)
    @rule(data=st.data(), following=slices)
    def requeue(self, data: st.DataObject, following: Slice) -> None:
        self.referee.requeue(data.draw(st.sampled_from(self.referee.scheduled)), following)

    @precondition(lambda self: self.referee.prefill + self.referee.scheduled)
    @rule(data=st.data(), following=slices)
    def slice_done(self, data: st.DataObject, following: Slice) -> None:
        job = data.draw(st.sampled_from(self.referee.prefill + self.referee.scheduled))
        self.referee.slice_done(job, following)

    @precondition(lambda self: self.referee.has_earlier)
    @rule(data=st.data())
    def earlier_slice_done(self, data: st.DataObject) -> None:
        self.referee.earlier_slice_done(data.draw(st.sampled_from(self.referee.has_earlier)))

    @precondition(lambda self: self.referee.running)
    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        self.referee.first_token(data.draw(st.sampled_from(self.referee.running)))

    @precondition(lambda self: self.referee.dispatched)
    @rule(data=st.data(), cost=st.floats(0, 10), kv_tokens=st.integers(0, 800))
    def progress(self, data: st.DataObject, cost: float, kv_tokens: int) -> None:
        self.referee.progress(data.draw(st.sampled_from(self.referee.dispatched)), cost, kv_tokens)

    @precondition(lambda self: self.referee.dispatched)
    @rule(data=st.data(), cost=st.floats(0, 10))
    def finish(self, data: st.DataObject, cost: float) -> None:
        job = data.draw(st.sampled_from(self.referee.dispatched))
        type(self).ends_in_overlap += self.referee.in_engine.count(job) > 1
        self.referee.finish(job, cost)

    @precondition(lambda self: self.referee.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.referee.leave(data.draw(st.sampled_from(self.referee.waiting)))

    @invariant()
    def counters_are_the_sums_they_stand_for(self) -> None:
        self.referee.assert_counters()
        type(self).overlaps += any(job in self.referee.earlier for job in self.referee.running)

    def teardown(self) -> None:
        self.referee.close()
        for policy in self.policies[:-1]:
            assert not policy.popped  # each was settled by the one that dispatched it
        assert not self.policies[-1].waiting | self.policies[-1].popped


@every_policy
def test_every_rule_holds_in_any_history(new_policy: NewPolicy) -> None:
    class TheirHistories(Histories):
        start = new_policy
        overlaps = 0
        ends_in_overlap = 0

    run_state_machine_as_test(
        TheirHistories, settings=settings(max_examples=120, stateful_step_count=40, deadline=None)
    )
    assert TheirHistories.overlaps > TheirHistories.ends_in_overlap > 0


# Floods.


class Flood:
    """Both lanes are always full of those who wait. At every step the oldest slice in the engine is done, and what went
    is replaced. `overlap`: some slices are sent as soon as the one before them is scheduled."""

    def __init__(self, referee: Referee, most_slices: int, seed: int, *, overlap: bool) -> None:
        self.referee = referee
        self.served = dict.fromkeys(LANES, 0)
        self._random, self._now = Random(seed), count()
        self._most_slices = most_slices
        self._overlap = overlap
        self._left: dict[Job, int] = {}  # slices that are not done, nor followed by the next one
        self._in_engine: list[Job] = []  # a job once for each of its slices that is there

    def step(self) -> None:
        self._arrive()
        if self._overlap:
            self._send_ahead()
        self._oldest_done()

    def _arrive(self) -> None:
        for lane in LANES:
            for flow in "abc":
                while sum(job.lane == lane and job.flow == flow for job in self.referee.waiting) < 2:
                    job = self._job(flow, lane)
                    sliced = self._left[job] > 1
                    self._in_engine += self.referee.arrive(job, self._slice(job) if sliced else None)

    def _job(self, flow: str, lane: Lane) -> Job:
        random, limits = self._random, self.referee.limits
        tokens, seats = random.randint(1, 300), random.randint(1, limits.max_num_seqs + 1)
        kv_tokens = random.randint(1, (limits.kv_tokens or 0) + 10)
        job = Job(flow, lane, tokens, random.randint(1, 16) / 16, next(self._now), seats, kv_tokens=kv_tokens)
        self._left[job] = random.randint(1, self._most_slices)
        return job

    def _slice(self, job: Job) -> Slice:
        random = self._random
        return Slice(random.randint(1, job.tokens), random.randrange(16) / 16, rest_s=random.choice([0, 0, 1, 8]))

    def _send_ahead(self) -> None:
        for job in self.referee.prefill.copy():
            if self._random.random() < 0.5:
                self._in_engine += self.referee.has_scheduled(job)
                if self._left[job] > 1:
                    self._left[job] -= 1
                    self._in_engine += self.referee.requeue(job, self._slice(job))

    def _oldest_done(self) -> None:
        referee, job = self.referee, self._in_engine.pop(0)
        if job in referee.earlier:
            self._in_engine += referee.earlier_slice_done(job)
            return
        self._left[job] -= 1
        if self._left[job]:
            self._in_engine += referee.slice_done(job, self._slice(job))
            return
        if self._random.random() < 0.7:
            self._in_engine += referee.first_token(job)
        self.served[job.lane] += 1
        self._in_engine += referee.finish(job, self._random.random())


@every_policy
@given(limits=limits(), most_slices=st.integers(1, 3), seed=st.integers(0, 2**32), overlap=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_head_starves_while_both_lanes_are_flooded(
    new_policy: NewPolicy, limits: Limits, most_slices: int, seed: int, overlap: bool
) -> None:
    """A head waits for its lane to have room, perhaps for the other lane's turn, and for its seats and cache: what is
    in the engine at each of these is through after so many steps as there are seats. For cache it also waits for
    those who have begun, at most so many as there are seats, and all of their slices.
    """
    referee = Referee(new_policy(), limits)
    flood = Flood(referee, most_slices, seed, overlap=overlap)
    heads: dict[Lane, tuple[Job | None, int, int]] = dict.fromkeys(LANES, (None, 0, 0))
    for step in range(200):
        flood.step()
        for lane in LANES:
            head, turn, since = heads[lane]
            if referee.head(lane) is not head or referee.served[lane] != turn:  # another was, for the while
                heads[lane] = (referee.head(lane), referee.served[lane], step)
            else:
                assert step - since <= 3 * most_slices * limits.max_num_seqs + 1
    assert min(flood.served.values()) > 0


# Copies.

# A step as data: what happens, to which of those that ever came, and how much.
Step = tuple[str, int, float]
KINDS = ("arrive", "arrive", "sliced", "slice_done", "first_token", "progress", "finish", "finish", "leave")
OVERLAPS = ("overlapping", "overlapping", "scheduled", "requeue", "earlier_slice_done")
OTHERS = ("set_limits", "correct", "set_policy")
steps = st.lists(st.tuples(st.sampled_from((*KINDS, *OVERLAPS, *OTHERS)), st.integers(0, 1000), st.floats(0, 8)))
SCARCE = Limits(short_lane_tokens=200, max_num_seqs=3, kv_tokens=500, flow_in_flight=2)


def happen(admission: Admission, jobs: list[Job], step: Step) -> list[Job]:
    """Who is dispatched. KeyError where that cannot happen to the job that is named."""
    kind, which, cost = step
    if kind in ("arrive", "sliced"):
        jobs.append(arriving(len(jobs), which, cost))
        return admission.arrive(jobs[-1], slice_of(which, cost) if kind == "sliced" else None)
    if kind == "overlapping":
        jobs.append(arriving(len(jobs), which, cost))
        return send_next_slice_too(admission, jobs[-1], step)
    if kind == "set_limits":
        return admission.set_limits(
            Limits(200, 1 + which % 200, 1 + which % 2, 1 + which % 5, which or None, 1 + which % 4)
        )
    if kind == "correct":
        return admission.correct(Corrected(kv_scale=cost, external_seats=which % 4))
    if kind == "set_policy":
        return admission.set_policy(list(POLICIES.values())[which % len(POLICIES)]())
    if not jobs:
        raise KeyError
    return happen_to_job(admission, jobs[which % len(jobs)], step)


def send_next_slice_too(admission: Admission, job: Job, step: Step) -> list[Job]:
    """It arrives, and if it is dispatched, its second slice follows while the first one is in the engine."""
    _, which, cost = step
    dispatched = admission.arrive(job, slice_of(which, cost))
    if job not in dispatched:
        return dispatched
    return [*dispatched, *admission.scheduled(job), *admission.requeue(job, slice_of(which, cost))]


def happen_to_job(admission: Admission, job: Job, step: Step) -> list[Job]:
    kind, which, cost = step
    told: dict[str, Callable[[], list[Job]]] = {
        "scheduled": lambda: admission.scheduled(job),
        "requeue": lambda: admission.requeue(job, slice_of(which, cost)),
        "slice_done": lambda: admission.slice_done(job, slice_of(which, cost)),
        "earlier_slice_done": lambda: admission.earlier_slice_done(job),
        "first_token": lambda: admission.first_token(job),
        "progress": lambda: admission.progress(job, cost, which),
        "finish": lambda: admission.finish(job, cost),
        "leave": lambda: admission.leave(job),
    }
    return told[kind]()


def arriving(number: int, which: int, cost: float) -> Job:
    flow, session, lane = "abc"[which % 3], "xy"[which % 5 % 2], LANES[which % 2]
    seats, kv_tokens = 1 + which % 3, which % 400
    return Job(flow, lane, 1 + which % 300, cost, which % 7, seats, str(number), kv_tokens, session=session)


def slice_of(which: int, cost: float) -> Slice:
    return Slice(1 + which % 100, cost / 3, rest_s=cost * (which % 10))


def play(admission: Admission, jobs: list[Job], history: list[Step]) -> list[list[str]]:
    """Who is dispatched at each step, by their ids. The jobs that come are added to the list."""
    told = []
    for step in history:
        try:
            told.append([job.id for job in happen(admission, jobs, step)])
        except KeyError:
            told.append(["cannot happen"])
    return told


def state(admission: Admission, jobs: list[Job]) -> object:
    waiting = [admission.waiting(lane) for lane in LANES]
    sums = admission.ledger.prefill_s, admission.queue.prefill_s
    return admission.held(), admission.running, waiting, sums, [ticket_state(admission, job) for job in jobs]


def ticket_state(admission: Admission, job: Job) -> object:
    try:
        ticket = admission.ticket(job)
    except KeyError:
        return None
    names = {field.name for field in fields(ticket)} - {"job", "charged_by"}
    return {name: getattr(ticket, name) for name in names}


@every_policy
@given(before=steps, after=steps)
@settings(deadline=None)
def test_a_copy_makes_the_same_decisions(new_policy: NewPolicy, before: list[Step], after: list[Step]) -> None:
    original, jobs = Admission(new_policy(), SCARCE), list[Job]()
    play(original, jobs, before)
    copy = original.copy()
    assert state(copy, jobs) == state(original, jobs)
    # Those who arrive after it are others, with the same names.
    copys_jobs, originals_jobs = jobs.copy(), jobs.copy()
    assert play(copy, copys_jobs, after) == play(original, originals_jobs, after)
    assert state(copy, copys_jobs) == state(original, originals_jobs)


@every_policy
@given(before=steps, between=steps, after=steps)
@settings(deadline=None)
def test_changes_to_a_copy_do_not_affect_the_original(
    new_policy: NewPolicy, before: list[Step], between: list[Step], after: list[Step]
) -> None:
    """Two with the same history, one of them copied in its middle."""
    (one, its_jobs), (other, their_jobs) = ((Admission(new_policy(), SCARCE), list[Job]()) for _ in range(2))
    assert play(one, its_jobs, before) == play(other, their_jobs, before)
    play(one.copy(), its_jobs.copy(), between)
    assert state(one, its_jobs) == state(other, their_jobs)
    assert play(one, its_jobs, after) == play(other, their_jobs, after)
    assert state(one, its_jobs) == state(other, their_jobs)
