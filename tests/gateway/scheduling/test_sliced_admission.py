"""Prefill in slices: what a job has and has not between them, and who goes first."""

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


def test_a_job_alone_goes_from_slice_to_slice_to_its_answer(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), long()
    assert admission.arrive(job, SLICE) == [job]
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.slice_done(job, Slice(3808, 0.9)) == [job]
    assert admission.first_token(job) == []
    assert (admission.seats, admission.running) == (1, 1)
    admission.finish(job, 3.0)
    assert admission.held() == dict.fromkeys(admission.held(), 0)


def test_budgets_count_the_slice_and_not_the_whole(new_policy: NewPolicy) -> None:
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


def test_a_job_may_be_found_to_need_slices_when_it_runs(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), long(tokens=9000)
    admission.arrive(job)
    assert admission.slice_done(job, SLICE) == [job]
    assert admission.prefill_tokens("long") == 4096
    admission.finish(job, 3.0)
    assert admission.held() == dict.fromkeys(admission.held(), 0)


def test_between_slices_seats_are_others_and_the_cache_is_kept(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=2, kv_tokens=20_000))
    job, wide = long(seats=1, kv_tokens=13_000), short(seats=2, kv_tokens=5)
    admission.arrive(job, SLICE)
    assert admission.arrive(wide) == []
    assert admission.slice_done(job, SLICE) == [wide]
    assert (admission.seats, admission.waiting("long"), admission.running) == (2, 1, 1)
    assert admission.ledger.kv_tokens == 13_005
    assert admission.finish(wide, 0.1) == [job]
    assert admission.ledger.kv_tokens == 13_000


def test_one_that_has_begun_goes_before_all_others_of_its_lane(new_policy: NewPolicy) -> None:
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
def test_of_several_that_have_begun_goes_on_who_has_least_left(
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


def test_equal_ones_end_one_after_the_other(new_policy: NewPolicy) -> None:
    engine = Engine(Admission(new_policy()))
    jobs = [long(flow, cost=5.0) for flow in "abcd"]
    engine.arrive(*jobs)
    assert engine.run() == jobs
    assert engine.order == [job for job in jobs for _ in range(5)]


@pytest.mark.parametrize("slices", [False, True])
def test_a_much_shorter_one_passes_at_the_next_gap(new_policy: NewPolicy, slices: bool) -> None:
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


def test_one_that_is_not_much_shorter_waits(new_policy: NewPolicy) -> None:
    """By what is left: near its end nobody passes any more."""
    engine = Engine(Admission(new_policy()))
    big = long("a", cost=10.0)
    engine.arrive(big)
    for _ in range(8):
        engine.step()
    engine.arrive(small := long("b", cost=1.0), slices=False)
    assert engine.run() == [big, small]


def test_a_flood_of_much_shorter_ones_delays_it_by_what_was_left(new_policy: NewPolicy) -> None:
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


def test_who_passes_a_passer_passes_the_first_one_too(new_policy: NewPolicy) -> None:
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
def test_a_much_shorter_one_that_does_not_fit_holds_up_nobody(new_policy: NewPolicy, limits: Limits) -> None:
    """It passes as soon as it fits."""
    admission = Admission(new_policy(), limits)
    big, busy, small = long(kv_tokens=10_000), short(kv_tokens=9_000), long("c", seats=2, kv_tokens=2_000, cost=0.5)
    piece = Slice(4096, 1.0, rest_s=9.0)
    assert [*admission.arrive(big, piece), *admission.arrive(busy)] == [big, busy]
    assert admission.arrive(small) == []
    assert admission.slice_done(big, piece) == [big]
    assert admission.finish(busy, 0.1) == []
    assert admission.slice_done(big, piece) == [small]


def test_nor_does_one_for_which_the_lane_has_no_room(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(short_lane_tokens=100))
    big, beside, small = short(tokens=1000), short(tokens=60), short(tokens=80)
    piece = Slice(40, 1.0, rest_s=9.0)
    assert [*admission.arrive(big, piece), *admission.arrive(beside)] == [big, beside]
    assert admission.arrive(small) == []
    assert admission.slice_done(big, piece) == [big]


def test_nor_one_that_fits_the_cache_that_another_lane_waits_for(new_policy: NewPolicy) -> None:
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


def test_a_flood_of_short_ones_goes_through_between_slices(new_policy: NewPolicy) -> None:
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


def test_where_there_is_room_the_short_ones_do_not_wait_for_a_gap(new_policy: NewPolicy) -> None:
    admission, job, beside = Admission(new_policy()), long(), short()
    admission.arrive(job, SLICE)
    assert admission.arrive(beside) == [beside]


def test_leaving_between_slices_is_an_end(new_policy: NewPolicy) -> None:
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


def test_leaving_before_the_first_slice_is_not(new_policy: NewPolicy) -> None:
    """Nothing of its slices is remembered: should the same job come again, whole, it counts whole."""
    admission = Admission(new_policy())
    busy, job = long(), long("b", tokens=9000)
    admission.arrive(busy)
    admission.arrive(job, SLICE)
    admission.leave(job)
    admission.finish(busy, 3.0)
    assert admission.arrive(job) == [job]
    assert admission.prefill_tokens("long") == 9000


def test_progress_between_slices_counts(new_policy: NewPolicy) -> None:
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
def test_one_that_has_begun_never_waits_for_the_cache_that_it_holds_itself(new_policy: NewPolicy, lane: Lane) -> None:
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


def test_the_flow_cap_counts_a_job_once_and_never_stops_it_in_the_middle(new_policy: NewPolicy) -> None:
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


def test_a_job_is_charged_once_however_many_slices_it_has(new_policy: NewPolicy) -> None:
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


def test_a_flow_is_charged_as_if_its_job_had_come_in_one(new_policy: NewPolicy) -> None:
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
