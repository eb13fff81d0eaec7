"""Admission of sliced jobs: what a job holds between its slices, and which job goes first."""

from collections.abc import Callable
from itertools import count

import pytest

from gateway.scheduling.admission import Admission
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Slice
from policies import POLICIES
from policies.base import Job, Lane, Policy

NewPolicy = Callable[[], Policy]
pytestmark = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)

arrivals = count()
SLICE = Slice(4096, 1.0)


def long(flow: str = "a", tokens: int = 12_000, seats: int = 1, kv_tokens: int = 0, cost: float = 3.0) -> Job:
    return Job(flow, "long", tokens, cost, next(arrivals), seats, kv_tokens=kv_tokens)


def short(flow: str = "b", tokens: int = 10, seats: int = 1, kv_tokens: int = 0) -> Job:
    return Job(flow, "short", tokens, 0.1, next(arrivals), seats, kv_tokens=kv_tokens)


def test_a_lone_job_runs_slice_after_slice_to_its_answer(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), long()
    assert admission.arrive(job, SLICE) == [job]
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.slice_done(job, Slice(3808, 0.9)) == [job]
    assert admission.first_token(job) == []
    assert (admission.seats, admission.running) == (1, 1)
    admission.finish(job, 3.0)
    assert admission.held() == dict.fromkeys(admission.held(), 0)


def test_budgets_count_the_slice_and_not_the_whole_prompt(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(short_lane_tokens=100))
    sliced, beside = short(tokens=150), short(tokens=60)
    assert admission.arrive(sliced, Slice(40, 0.5)) == [sliced]
    assert (admission.prefill_tokens("short"), admission.ticket(sliced).predicted_prefill_s) == (40, 0.5)
    assert admission.arrive(beside) == [beside]
    assert admission.slice_done(sliced, Slice(41, 0.6)) == []
    assert admission.prefill_tokens("short") == 60
    assert admission.first_token(beside) == [sliced]
    assert admission.prefill_tokens("short") == 41
    assert admission.ticket(sliced).predicted_prefill_s == admission.ledger.prefill_s == 0.6


def test_a_running_job_may_become_sliced(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), long(tokens=9000)
    admission.arrive(job)
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.prefill_tokens("long") == 4096
    admission.finish(job, 3.0)
    assert admission.held() == dict.fromkeys(admission.held(), 0)


def test_between_slices_seats_are_released_and_cache_is_kept(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=2, kv_tokens=20_000))
    job, wide = long(seats=1, kv_tokens=13_000), short(seats=2, kv_tokens=5)
    admission.arrive(job, SLICE)
    assert admission.arrive(wide) == []
    assert admission.slice_done(job, SLICE) == [wide]
    assert (admission.seats, admission.waiting("long"), admission.running) == (2, 1, 1)
    assert admission.ledger.kv_tokens == 13_005
    assert admission.finish(wide, 0.1) == [job]
    assert admission.ledger.kv_tokens == 13_000


def test_a_begun_job_goes_before_all_others_of_its_lane(new_policy: NewPolicy) -> None:
    """Whatever the policy says of them: another flow that was never served, a cheaper job, an earlier one."""
    admission = Admission(new_policy())
    job = long()
    admission.arrive(job, SLICE)
    others = [long("b"), long("c", cost=0.3), Job("d", "long", 3000, 0.3, -100.0)]
    for other in others:
        assert admission.arrive(other) == []
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.slice_done(job, SLICE) == [job]
    (following,) = admission.first_token(job)
    assert following in others


@pytest.mark.parametrize(("left", "first"), [((5.0, 2.0), 1), ((2.0, 5.0), 0), ((3.0, 3.0), 0)])
def test_the_begun_job_with_the_least_left_goes_first(
    new_policy: NewPolicy, left: tuple[float, float], first: int
) -> None:
    """Of two who have as much left, who is back first."""
    admission = Admission(new_policy(), Limits(long_lane_jobs=2, max_num_seqs=3))
    jobs = long("a"), long("b")
    for job in jobs:
        assert admission.arrive(job, SLICE) == [job]
    busy = short(seats=3)
    assert admission.set_limits(Limits(long_lane_jobs=1, max_num_seqs=3)) == []
    admission.arrive(busy)
    assert admission.slice_done(jobs[0], Slice(4096, 1.0, rest_s=left[0] - 1)) == []
    assert admission.slice_done(jobs[1], Slice(4096, 1.0, rest_s=left[1] - 1)) == [busy]
    assert admission.finish(busy, 0.1) == [jobs[first]]
    assert admission.first_token(jobs[first]) == [jobs[1 - first]]


class Engine:
    """One that prefills a slice after the other, and is done with a job at its first token. A slice takes a second."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.order: list[Job] = []  # of slices
        self.ended: list[Job] = []
        self._left: dict[Job, float] = {}
        self._running: list[Job] = []

    def arrive(self, *jobs: Job, slices: bool = True) -> None:
        for job in jobs:
            self._left[job] = job.cost if slices else 0.0
            self._running += self.admission.arrive(job, self._slice(job) if slices else None)

    def step(self) -> bool:
        """One slice, and what comes of it; whether there was any."""
        if not self._running:
            return False
        job = self._running.pop(0)
        self.order.append(job)
        self._left[job] -= 1
        if self._left[job] > 0:
            self._running += self.admission.slice_done(job, self._slice(job))
            return True
        self.ended.append(job)
        self._running += self.admission.first_token(job)
        self._running += self.admission.finish(job, job.cost)
        return True

    def run(self) -> list[Job]:
        """Who has ended, in order."""
        while self.step():
            pass
        return self.ended

    def _slice(self, job: Job) -> Slice:
        return Slice(1000, min(1.0, self._left[job]), rest_s=max(0.0, self._left[job] - 1))


def test_equal_jobs_finish_one_after_the_other(new_policy: NewPolicy) -> None:
    engine = Engine(Admission(new_policy()))
    jobs = [long(flow, cost=5.0) for flow in "abcd"]
    engine.arrive(*jobs)
    assert engine.run() == jobs
    assert engine.order == [job for job in jobs for _ in range(5)]


@pytest.mark.parametrize("slices", [False, True])
def test_a_much_shorter_job_passes_at_the_next_gap(new_policy: NewPolicy, slices: bool) -> None:
    """All of it, if it comes in slices, too: it has less left."""
    engine = Engine(Admission(new_policy()))
    big, equal, small = long("a", cost=20.0), long("c", cost=20.0), long("b", cost=4.0)
    engine.arrive(big)
    engine.step()
    engine.arrive(small, slices=slices)
    engine.step()
    assert engine.order == [big, big]
    engine.arrive(equal)
    assert engine.run() == [small, big, equal]
    assert engine.order[2:].index(big) == (4 if slices else 1)


def test_a_job_that_is_not_much_shorter_waits(new_policy: NewPolicy) -> None:
    """By what is left: near its end nobody passes any more."""
    engine = Engine(Admission(new_policy()))
    big = long("a", cost=10.0)
    engine.arrive(big)
    for _ in range(8):
        engine.step()
    engine.arrive(small := long("b", cost=1.0), slices=False)
    assert engine.run() == [big, small]


def test_a_flood_of_much_shorter_jobs_delays_it_by_at_most_its_remaining_time(new_policy: NewPolicy) -> None:
    engine = Engine(Admission(new_policy()))
    big = long("a", cost=20.0)
    engine.arrive(big)
    engine.step()
    for number in range(100):
        engine.arrive(long(f"u{number % 7}", cost=1.0), slices=False)
    while big not in engine.ended:
        engine.step()
    # All pass that may: as many seconds as were left after the first slice.
    assert len(engine.order) == 20 + 19
    assert engine.order[1:20].count(big) == 1  # the slice that ran when they came
    engine.run()


def test_passing_a_passing_job_also_passes_the_first_one(new_policy: NewPolicy) -> None:
    """The big one is delayed by no more than it had left, however deep the others are nested."""
    engine = Engine(Admission(new_policy()))
    big = long("a", cost=33.0)
    engine.arrive(big)
    engine.step()
    for number in range(12):
        engine.arrive(long(f"m{number}", cost=8.0))
        engine.step()
        for other in range(4):
            engine.arrive(long(f"s{number}{other}", cost=1.0), slices=False)
            engine.step()
    while big not in engine.ended:
        engine.step()
    others = [job for job in engine.order if job is not big]
    assert 8 <= len(others) <= 32
    engine.run()


@pytest.mark.parametrize("limits", [Limits(max_num_seqs=2), Limits(kv_tokens=20_000)], ids=["seats", "cache"])
def test_a_much_shorter_job_that_does_not_fit_blocks_nobody(new_policy: NewPolicy, limits: Limits) -> None:
    """It passes as soon as it fits."""
    admission = Admission(new_policy(), limits)
    big, busy, small = long(kv_tokens=10_000), short(kv_tokens=9_000), long("c", seats=2, kv_tokens=2_000, cost=0.5)
    piece = Slice(4096, 1.0, rest_s=9.0)
    assert [*admission.arrive(big, piece), *admission.arrive(busy)] == [big, busy]
    assert admission.arrive(small) == []
    assert admission.slice_done(big, piece) == [big]
    assert admission.finish(busy, 0.1) == []
    assert admission.slice_done(big, piece) == [small]


def test_a_much_shorter_job_without_room_in_its_lane_blocks_nobody(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(short_lane_tokens=100))
    big, beside, small = short(tokens=1000), short(tokens=60), short(tokens=80)
    piece = Slice(40, 1.0, rest_s=9.0)
    assert [*admission.arrive(big, piece), *admission.arrive(beside)] == [big, beside]
    assert admission.arrive(small) == []
    assert admission.slice_done(big, piece) == [big]


def test_a_much_shorter_job_does_not_take_cache_reserved_for_the_other_lane(new_policy: NewPolicy) -> None:
    """Who has begun holds that cache. It must go on, for nobody else may."""
    admission = Admission(new_policy(), Limits(kv_tokens=100))
    big, small = long(kv_tokens=80), long("c", kv_tokens=10, cost=0.5)
    head = short(kv_tokens=50)
    piece = Slice(4096, 1.0, rest_s=9.0)
    admission.arrive(big, piece)
    assert admission.arrive(head) == []
    assert admission.arrive(small) == []
    assert admission.slice_done(big, piece) == [big]
    admission.first_token(big)
    assert set(admission.finish(big, 10.0)) == {head, small}


def test_a_flood_of_short_jobs_runs_between_slices(new_policy: NewPolicy) -> None:
    """One seat: at each gap one short job goes, for the lanes take turns, and the long one loses no turn by it."""
    admission = Admission(new_policy(), Limits(max_num_seqs=1))
    job = long()
    running = admission.arrive(job, SLICE)
    for _ in range(10):
        admission.arrive(short())
    served = ""
    for _ in range(8):
        (ended,) = running
        served += ended.lane[0]
        running = admission.slice_done(job, SLICE) if ended is job else admission.finish(ended, 0.1)
    assert served == "lslslsls"


def test_short_jobs_that_fit_do_not_wait_for_a_gap(new_policy: NewPolicy) -> None:
    admission, job, beside = Admission(new_policy()), long(), short()
    admission.arrive(job, SLICE)
    assert admission.arrive(beside) == [beside]


def test_leaving_between_slices_ends_the_job(new_policy: NewPolicy) -> None:
    """Its cache comes back and it is charged; another that waited for its lane goes."""
    admission = Admission(new_policy(), Limits(max_num_seqs=1, kv_tokens=20_000))
    job, beside, other = long(kv_tokens=13_000), short(kv_tokens=10), long("c", kv_tokens=13_000)
    admission.arrive(job, SLICE)
    admission.arrive(beside)
    admission.arrive(other)
    assert admission.slice_done(job, SLICE) == [beside]
    with pytest.raises(KeyError):
        admission.leave(job)
    assert admission.finish(job, 1.0) == []
    assert (admission.waiting("long"), admission.ledger.kv_tokens, admission.seats) == (1, 10, 1)
    assert admission.finish(beside, 0.1) == [other]
    admission.finish(other, 3.0)
    assert admission.held() == dict.fromkeys(admission.held(), 0)


def test_leaving_before_the_first_slice_costs_nothing(new_policy: NewPolicy) -> None:
    """Nothing of its slices is remembered: should the same job come again, whole, it counts whole."""
    admission = Admission(new_policy())
    busy, job = long(), long("b", tokens=9000)
    admission.arrive(busy)
    admission.arrive(job, SLICE)
    admission.leave(job)
    admission.finish(busy, 3.0)
    assert admission.arrive(job) == [job]
    assert admission.prefill_tokens("long") == 9000


def test_progress_between_slices_is_charged(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=1, kv_tokens=100))
    job, beside, next_one = long(kv_tokens=50), short(kv_tokens=10), short(kv_tokens=10)
    admission.arrive(job, SLICE)
    admission.arrive(beside)
    admission.slice_done(job, SLICE)
    admission.progress(job, 1.0, 95)
    assert admission.ledger.kv_tokens == 105
    assert admission.finish(beside, 0.1) == [job]  # what it holds it holds, and the other lane lacks nothing yet
    assert admission.arrive(next_one) == []
    admission.first_token(job)
    assert admission.finish(job, 3.0) == [next_one]


@pytest.mark.parametrize("lane", ["short", "long"])
def test_a_begun_job_does_not_wait_for_cache_that_it_holds_itself(new_policy: NewPolicy, lane: Lane) -> None:
    """A head that lacks cache reserves what comes free. If all that could come free is held between slices, those go
    on: else nobody would ever move."""
    admission = Admission(new_policy(), Limits(kv_tokens=100))
    job = long(kv_tokens=80)
    head = Job("b", lane, 10, 0.1, next(arrivals), kv_tokens=50)
    admission.arrive(job, SLICE)
    assert admission.arrive(head) == []
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.first_token(job) == []
    assert admission.finish(job, 3.0) == [head]


def test_the_flow_cap_counts_a_sliced_job_once_and_never_stops_it_midway(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(flow_in_flight=1))
    job, own, others = long("a"), short("a"), short("b")
    admission.arrive(job, SLICE)
    assert admission.arrive(own) == []
    assert admission.arrive(others) == [others]
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.set_limits(Limits(flow_in_flight=1, max_num_seqs=1)) == []
    assert admission.finish(others, 0.1) == []
    assert admission.slice_done(job, SLICE) == [job]
    admission.first_token(job)
    assert admission.finish(job, 3.0) == [own]


def test_a_sliced_job_is_charged_once(new_policy: NewPolicy) -> None:
    told: list[tuple[str, float]] = []

    class Told(type(new_policy())):  # type: ignore[misc]  # whatever the policy is
        def pop(self, lane: Lane) -> Job:
            job: Job = super().pop(lane)
            told.append(("pop", job.cost))
            return job

        def charge(self, job: Job, cost: float) -> None:
            told.append(("charge", cost))

        def settle(self, job: Job, cost: float) -> None:
            told.append(("settle", cost))

    admission, job = Admission(Told()), long()
    admission.arrive(job, SLICE)
    admission.slice_done(job, SLICE)
    admission.slice_done(job, SLICE)
    admission.first_token(job)
    admission.progress(job, 3.5, 0)
    admission.finish(job, 4.0)
    assert told == [("pop", 3.0), ("charge", 3.5), ("settle", 4.0)]


def test_a_sliced_job_is_charged_like_a_whole_one(new_policy: NewPolicy) -> None:
    """In total, once; and settled: from then on the flows are served in the same order, whatever it was cut into."""
    orders = []
    for slices in (False, True):
        engine = Engine(Admission(new_policy()))
        flows = [[long(flow, cost=cost) for cost in (2.0, 7.0, 3.0, 3.0, 5.0)] for flow in "ab"]
        first = long("a", cost=6.0)
        engine.arrive(first, slices=slices)
        for jobs in flows:
            engine.arrive(*jobs, slices=False)
        ended = engine.run()
        assert ended.pop(0) is first  # the others are too long to pass
        places = [job for jobs in flows for job in jobs]
        orders.append([places.index(job) for job in ended])
    assert orders[0] == orders[1]


# Two slices of a prompt in the engine at once.


def overlapping(admission: Admission, job: Job) -> None:
    """Its second slice is in the engine, too."""
    assert admission.arrive(job, SLICE) == [job]
    assert admission.scheduled(job) == []
    assert admission.requeue(job, SLICE) == [job]


def test_a_slice_gives_its_lane_back_when_the_engine_has_scheduled_it(new_policy: NewPolicy) -> None:
    """Its seats it keeps, and the first token gives the lane back no second time."""
    admission, job, others = Admission(new_policy()), long("a"), [long("b"), long("c")]
    admission.arrive(job, SLICE)
    for other in others:
        assert admission.arrive(other) == []
    (following,) = admission.scheduled(job)
    assert (admission.prefill_jobs("long"), admission.seats, admission.running) == (1, 2, 2)
    assert admission.first_token(job) == []
    assert admission.prefill_jobs("long") == 1
    assert admission.scheduled(following) == [other for other in others if other is not following]


def test_a_slice_may_wait_while_the_one_before_it_is_computed(new_policy: NewPolicy) -> None:
    """Where its lane is taken; the one before it keeps its seats meanwhile."""
    admission, job, other = Admission(new_policy()), long("a"), long("b")
    admission.arrive(job, SLICE)
    assert admission.arrive(other) == []
    assert admission.scheduled(job) == [other]
    assert admission.requeue(job, SLICE) == []
    assert (admission.seats, admission.running, admission.waiting("long")) == (2, 1, 1)
    assert admission.earlier_slice_done(job) == []
    assert (admission.seats, admission.running, admission.waiting("long")) == (1, 1, 1)
    assert admission.first_token(other) == [job]
    assert admission.seats == 2


def test_each_of_two_slices_in_the_engine_has_its_own_seats(new_policy: NewPolicy) -> None:
    """The job counts as one of its flow, and its cache is reserved once."""
    admission, job, own = Admission(new_policy(), Limits(flow_in_flight=2)), long(seats=2, kv_tokens=50), short("a")
    overlapping(admission, job)
    assert admission.held() == {"seats": 4, "kv": 50, "short": 0, "long": 4096}
    assert admission.running == 1
    assert admission.arrive(own) == [own]
    assert admission.earlier_slice_done(job) == []
    assert admission.held() == {"seats": 3, "kv": 50, "short": 10, "long": 4096}
    admission.first_token(job)
    admission.finish(job, 3.0)
    assert admission.held() == {"seats": 1, "kv": 0, "short": 10, "long": 0}


def test_a_slice_whose_seats_the_one_before_it_has_waits_for_them(new_policy: NewPolicy) -> None:
    """However few there are: a job never waits for itself for ever."""
    admission, job = Admission(new_policy(), Limits(max_num_seqs=3)), long(seats=2)
    admission.arrive(job, SLICE)
    admission.scheduled(job)
    assert admission.requeue(job, SLICE) == []
    assert admission.earlier_slice_done(job) == [job]
    assert admission.seats == 2


def test_an_earlier_slice_comes_to_its_end_once(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), long()
    overlapping(admission, job)
    admission.earlier_slice_done(job)
    with pytest.raises(KeyError):
        admission.earlier_slice_done(job)
    assert admission.seats == 1


def test_the_next_slice_may_follow_whichever_way(new_policy: NewPolicy) -> None:
    """The one that was sent last is done before it is said of the one before it that it is: its seats stay that
    long."""
    admission, job = Admission(new_policy()), long()
    overlapping(admission, job)
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.seats == 2
    admission.scheduled(job)
    assert admission.requeue(job, SLICE) == [job]
    assert admission.seats == 3
    for seats in (2, 1):
        admission.earlier_slice_done(job)
        assert admission.seats == seats
    assert admission.prefill_jobs("long") == 1


@pytest.mark.parametrize("phase", ["in prefill", "scheduled", "between slices", "in decode"])
def test_leaving_with_two_slices_in_the_engine_releases_each_seat_once(new_policy: NewPolicy, phase: str) -> None:
    admission = Admission(new_policy(), Limits(long_lane_jobs=2))
    job, beside = long(seats=3, kv_tokens=50), long("b", seats=2, kv_tokens=5)
    overlapping(admission, job)
    admission.arrive(beside)
    if phase != "in prefill":
        admission.scheduled(job)
    if phase == "between slices":
        admission.set_limits(Limits(long_lane_jobs=2, max_num_seqs=1))
        assert admission.requeue(job, SLICE) == []
    if phase == "in decode":
        admission.first_token(job)
    assert admission.seats == 8
    admission.finish(job, 2.0)
    assert admission.held() == {"seats": 2, "kv": 5, "short": 0, "long": 12_000}
    admission.finish(beside, 2.0)
    assert admission.held() == dict.fromkeys(admission.held(), 0)
