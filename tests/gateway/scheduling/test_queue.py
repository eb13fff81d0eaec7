"""The queue: its limits, flows at their cap, and changing the policy while jobs wait."""

from collections.abc import Callable
from itertools import count
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.outcome import Outcome
from gateway.scheduling.admission import Admission
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Slice
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy
from policies.fifo import Fifo

NewPolicy = Callable[[], Policy]
every_policy = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)

arrivals = count()


def job(flow: str = "a", lane: Lane = "short", cost: float = 1.0, seats: int = 1, **caps: Any) -> Job:
    return Job(flow, lane, 10, cost, next(arrivals), seats, **caps)


def arrive_all(admission: Admission, *jobs: Job) -> list[Job]:
    return [dispatched for each in jobs for dispatched in admission.arrive(each)]


# How many may wait.


@every_policy
@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        (Limits(max_num_seqs=1, flow_queued=3), Outcome.USER_LIMIT),
        (Limits(max_num_seqs=1, max_queued=3), Outcome.QUEUE_FULL),
        (Limits(max_num_seqs=1, max_queued_s=3.5), Outcome.QUEUE_FULL),
        (Limits(max_num_seqs=1, max_queued_s=3.0), Outcome.QUEUE_FULL),
        (Limits(max_num_seqs=1, max_queued=3, flow_queued=3), Outcome.USER_LIMIT),
    ],
)
def test_the_queue_length_is_limited(new_policy: NewPolicy, limits: Limits, outcome: Outcome) -> None:
    admission, running = Admission(new_policy(), limits), job()
    admission.arrive(running)
    for _ in range(3):
        assert admission.rejects(job()) is None
        admission.arrive(job())
    assert admission.rejects(job()) is outcome
    assert admission.rejects(job()) is outcome  # asking changes nothing
    (dispatched,) = admission.finish(running, 1.0)
    assert admission.rejects(job()) is None  # who runs no longer waits
    admission.arrive(leaving := job())
    assert admission.rejects(job()) is outcome
    admission.leave(leaving)
    assert admission.rejects(job()) is None
    assert admission.set_limits(Limits(max_num_seqs=1)) == []
    assert [admission.rejects(job()) for _ in range(2)] == [None, None]
    admission.finish(dispatched, 1.0)


@every_policy
def test_the_queue_limit_counts_per_flow(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=1, flow_queued=1))
    arrive_all(admission, job("a"), job("a"))
    assert admission.rejects(job("a")) is Outcome.USER_LIMIT
    assert admission.rejects(job("b")) is None


@every_policy
def test_without_limits_no_job_is_refused(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=1))
    for _ in range(300):
        assert admission.rejects(job(cost=1e9)) is None
        admission.arrive(job(cost=1e9))


@every_policy
def test_an_empty_queue_accepts_any_job(new_policy: NewPolicy) -> None:
    """Also while others run; only a limit of none at all refuses it."""
    admission = Admission(new_policy(), Limits(max_num_seqs=1, max_queued_s=0.5, max_queued=1, flow_queued=1))
    admission.arrive(job())
    assert admission.rejects(job(cost=1000.0)) is None
    admission.arrive(job(cost=1000.0))
    assert admission.rejects(job("b", cost=0.0)) is Outcome.QUEUE_FULL


@every_policy
def test_a_job_that_has_begun_no_longer_counts_as_queued(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=1, max_queued=1, flow_queued=1, max_queued_s=1.0))
    sliced, beside = job("a", "long"), job("b")
    admission.arrive(sliced, Slice(10, 0.5))
    admission.arrive(beside)
    assert admission.slice_done(sliced, Slice(10, 0.5)) == [beside]
    assert admission.waiting("long") == 1
    assert admission.rejects(job("a", cost=5.0)) is None


@every_policy
def test_queued_seconds_are_summed_exactly(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=1, max_queued_s=1.0))
    admission.arrive(running := job())
    waiting = [job(cost=cost) for cost in (0.1, 0.2, 0.3)]
    arrive_all(admission, *waiting)
    assert admission.queue.prefill_s == pytest.approx(0.6)
    for each in waiting:
        admission.leave(each)
    assert admission.queue.prefill_s == 0.0
    admission.finish(running, 1.0)


# The cap of a flow.


@every_policy
def test_others_pass_a_flow_at_its_concurrency_cap(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(flow_in_flight=2))
    first, second, third, fourth, other = job("a"), job("a"), job("a"), job("a"), job("b")
    assert arrive_all(admission, first, second, third, fourth) == [first, second]
    assert admission.waiting("short") == 2
    assert admission.arrive(other) == [other]
    assert admission.finish(other, 1.0) == []
    assert admission.first_token(first) == []  # it is in the engine until its end
    assert admission.finish(first, 1.0) == [third]
    assert admission.finish(third, 1.0) == [fourth]


@every_policy
def test_new_limits_release_jobs_held_by_the_cap(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(flow_in_flight=1))
    jobs = [job() for _ in range(5)]
    assert arrive_all(admission, *jobs) == jobs[:1]
    assert admission.set_limits(Limits(flow_in_flight=3)) == jobs[1:3]
    assert admission.set_limits(Limits(flow_in_flight=1)) == []
    assert [admission.finish(each, 1.0) for each in jobs[:3]] == [[], [], jobs[3:4]]
    assert admission.set_limits(Limits()) == jobs[4:]


@every_policy
@pytest.mark.parametrize(("own", "for_all"), [(1, None), (1, 3), (2, 1)])
def test_a_flows_own_cap_replaces_the_general_cap(new_policy: NewPolicy, own: int, for_all: int | None) -> None:
    admission = Admission(new_policy(), Limits(flow_in_flight=for_all))
    capped = [job("a", flow_in_flight=own) for _ in range(4)]
    others = [job("b") for _ in range(4)]
    assert arrive_all(admission, *capped) == capped[:own]
    assert arrive_all(admission, *others) == others[:for_all]
    assert admission.finish(capped[0], 1.0) == capped[own : own + 1]


@every_policy
def test_a_flows_own_cap_may_be_raised(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy())
    first, second, third = job("a", flow_in_flight=1), job("a", flow_in_flight=1), job("a", flow_in_flight=2)
    assert arrive_all(admission, first, second, third) == [first, third]
    assert admission.finish(third, 1.0) == []
    assert admission.finish(first, 1.0) == [second]


def test_a_flows_own_queue_limit_replaces_the_general_one() -> None:
    admission = Admission(Fifo(), Limits(max_num_seqs=1, flow_queued=2))
    arrive_all(admission, job("runs"), job("a"), job("b"))
    assert admission.rejects(job("a", flow_queued=1)) is Outcome.USER_LIMIT
    assert admission.rejects(job("b", flow_queued=2)) is None
    assert admission.rejects(job("c", flow_queued=1)) is None


@every_policy
def test_a_job_held_by_the_cap_may_leave(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(flow_in_flight=1))
    running, leaving, last = job(), job(), job()
    arrive_all(admission, running, leaving, last)
    assert admission.leave(leaving) == []
    assert admission.waiting("short") == 1
    assert admission.finish(running, 1.0) == [last]


def served(admission: Admission, jobs: list[Job]) -> list[Job]:
    """The jobs dispatched, one after the other, each when the one before has ended."""
    running, order = arrive_all(admission, *jobs), []
    while running:
        (ended,) = running
        order.append(ended)
        running = admission.finish(ended, ended.cost)
    return order


@every_policy
@given(st.lists(st.sampled_from([0.1, 1.0, 20.0]), min_size=1, max_size=8))
def test_jobs_held_by_the_cap_return_in_the_policys_order(new_policy: NewPolicy, costs: list[float]) -> None:
    """A cap of one serves a flow alone in the order that one seat does."""
    jobs = [Job("a", "short", 10, cost, float(arrival)) for arrival, cost in enumerate(costs)]
    order = served(Admission(new_policy(), Limits(flow_in_flight=1)), jobs)
    assert order == served(Admission(new_policy(), Limits(max_num_seqs=1)), jobs)
    assert len(order) == len(jobs)


def test_under_a_cap_many_agent_jobs_do_not_delay_their_users_chat() -> None:
    swarm = [Job("a", "short", 10, 1.0, float(arrival), session="agents") for arrival in range(6)]
    chat = Job("a", "short", 10, 1.0, 6.0, session="chat")
    order = served(Admission(POLICIES["fair"](), Limits(flow_in_flight=1)), [*swarm, chat])
    assert order.index(chat) == 1


@every_policy
def test_a_place_under_the_cap_goes_to_whichever_lane_has_room(new_policy: NewPolicy) -> None:
    """One of the flow's jobs waits for its lane; the other need not wait for that one."""
    admission = Admission(new_policy(), Limits(flow_in_flight=1))
    busy, running, blocked, free = job("b", "long"), job("a"), job("a", "long"), job("a")
    assert arrive_all(admission, busy, running, blocked, free) == [busy, running]
    assert admission.finish(running, 1.0) == [free]
    assert admission.first_token(busy) == []
    assert admission.finish(free, 1.0) == [blocked]


@every_policy
def test_the_next_held_job_returns_when_the_returned_one_leaves(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(flow_in_flight=1, max_num_seqs=2))
    running, called, left_over, wide = job("a"), job("a"), job("a"), job("b", seats=2)
    arrive_all(admission, running, called, left_over)
    admission.arrive(wide)
    dispatched = admission.finish(running, 1.0)
    if dispatched == [wide]:
        assert admission.leave(called) == []
        assert admission.finish(wide, 1.0) == [left_over]
    else:  # the policy serves a's first, and then b must have its turn
        assert dispatched == [called]
        assert admission.finish(called, 1.0)


# Another policy.


class Books(Fifo):
    """Fifo that says what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.charged: list[tuple[Job, float]] = []
        self.settled: list[tuple[Job, float]] = []

    def charge(self, job: Job, cost: float) -> None:
        self.charged.append((job, cost))

    def settle(self, job: Job, cost: float) -> None:
        self.settled.append((job, cost))


def test_a_running_job_is_settled_by_the_policy_that_dispatched_it() -> None:
    before, after = Books(), Books()
    admission = Admission(before, Limits(max_num_seqs=2))
    sliced, running, waiting = job("b", "long"), job(), job()
    admission.arrive(sliced, Slice(5, 0.5))
    arrive_all(admission, running, waiting)
    assert admission.set_policy(after) == []
    admission.progress(running, 2.0, 0)
    assert admission.slice_done(sliced, Slice(5, 0.5)) == [sliced] or admission.waiting("long")
    admission.finish(running, 3.0)
    admission.finish(sliced, 4.0)
    admission.finish(waiting, 5.0)
    assert before.charged == [(running, 2.0)]
    assert before.settled == [(running, 3.0), (sliced, 4.0)]
    assert (after.charged, after.settled) == ([], [(waiting, 5.0)])


@every_policy
@pytest.mark.parametrize("then", POLICIES.values(), ids=POLICIES)
def test_a_policy_change_loses_no_place_and_no_permit(new_policy: NewPolicy, then: NewPolicy) -> None:
    limits = Limits(max_num_seqs=3, flow_in_flight=2)
    admission = Admission(new_policy(), limits)
    sliced, prefilling, aside, waiting = job("a", "long"), job("a"), job("a"), job("b", seats=2)
    admission.arrive(sliced, Slice(5, 0.5))
    arrive_all(admission, prefilling, aside, waiting)
    before = admission.held()
    assert admission.set_policy(then()) == []
    assert admission.held() == before
    assert [admission.waiting(lane) for lane in LANES] == [2, 0]
    dispatched = [*admission.slice_done(sliced, Slice(5, 0.5))]
    for ended in (prefilling, sliced):
        dispatched += admission.finish(ended, 1.0)
    assert {*dispatched} - {sliced} == {aside, waiting}
    for ended in (aside, waiting):
        admission.finish(ended, 1.0)
    assert admission.held() == dict.fromkeys(before, 0)


class Newest(Policy):
    """The last one first: nobody's choice, and easy to tell from `fifo`."""

    def __init__(self) -> None:
        self.jobs: dict[Lane, list[Job]] = {lane: [] for lane in LANES}

    def push(self, job: Job) -> None:
        self.jobs[job.lane].append(job)

    def peek(self, lane: Lane) -> Job | None:
        return self.jobs[lane][-1] if self.jobs[lane] else None

    def pop(self, lane: Lane) -> Job:
        return self.jobs[lane].pop()

    def remove(self, job: Job) -> None:
        self.jobs[job.lane].remove(job)


def test_queued_jobs_follow_the_order_of_the_new_policy() -> None:
    admission = Admission(Fifo(), Limits(max_num_seqs=1))
    running, *waiting = [job() for _ in range(4)]
    arrive_all(admission, running, *waiting)
    admission.set_policy(Newest())
    order = []
    while dispatched := admission.finish(running, 1.0):
        (running,) = dispatched
        order.append(running)
    assert order == waiting[::-1]


def test_the_new_policy_receives_queued_jobs_in_order_of_arrival() -> None:
    admission = Admission(Newest(), Limits(max_num_seqs=1))
    running, *waiting = [Job("a", "short", 10, 1.0, 0.0) for _ in range(4)]
    arrive_all(admission, running, *waiting)
    admission.set_policy(Fifo())
    assert admission.finish(running, 1.0) == waiting[:1]


# A copy.


class Counted(Fifo):
    """Fifo that counts its copies."""

    copies = 0

    def copy(self) -> Self:
        type(self).copies += 1
        return super().copy()


@pytest.mark.parametrize("running", [0, 1, 50])
def test_a_copy_copies_each_policy_once(running: int) -> None:
    """Forecasts are made of copies: what one costs must not grow with what runs."""
    retired, current = (type("Own", (Counted,), {})() for _ in range(2))
    admission: Any = Admission(retired)
    arrive_all(admission, *(job() for _ in range(running)))
    admission.set_policy(current)
    arrive_all(admission, *(job() for _ in range(running)))
    admission.copy()
    assert current.copies == 1
    assert retired.copies == (running > 0)
