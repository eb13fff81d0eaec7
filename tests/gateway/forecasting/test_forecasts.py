"""What every forecast guarantees, whatever was learned.

Their accuracy is measured in tests/loadtest/simulation/test_forecast_accuracy.py.
"""

from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from random import Random
from time import process_time

import pytest

from gateway.forecasting.outlook import MAX_RETRY_S, MIN_RETRY_S, Outlook, forecast, meets, retry_after
from gateway.forecasting.simulation import Simulation
from gateway.forecasting.speed import EngineSpeed
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.estimators import MIN_ERRORS, WINDOW_SIZE, AnswerLengths, ForecastErrors, Ratio
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Arrived, Event, Finished, FirstToken, SliceDone
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Slice
from policies import POLICIES
from policies.base import LANES, Job, Lane

every_policy = pytest.mark.parametrize("policy", POLICIES)


class Scene:
    """An admission and what was learned of its engine's speed, told of the same events at the same times."""

    def __init__(self, policy: str = "fair", limits: Limits | None = None, *, shares_steps: bool = False) -> None:
        self.admission = Admission(POLICIES[policy](), limits)
        self.speed = EngineSpeed(lambda tokens: 0.004 * tokens, shares_steps=shares_steps)
        self.jobs: list[Job] = []
        self.now = 0.0

    def job(self, flow: str = "ada", lane: Lane = "long", cost: float = 2.0, **more: float) -> Job:
        tokens = 10_000 if lane == "long" else 1_000
        return Job(flow, lane, tokens, cost, self.now, **more)  # type: ignore[arg-type]  # whole numbers, where it matters

    def apply(self, event: Event) -> None:
        self.speed.observe(event, self.admission.apply(event), self.now)

    def arrive(self, flow: str = "ada", lane: Lane = "long", cost: float = 2.0, **more: float) -> Job:
        job = self.job(flow, lane, cost, **more)
        self.jobs.append(job)
        self.apply(Arrived(job))
        return job

    def arrive_sliced(self, first_slice: Slice, flow: str = "ada", cost: float = 2.0) -> Job:
        job = self.job(flow, "long", cost)
        self.jobs.append(job)
        self.apply(Arrived(job, first_slice))
        return job

    def slice_done(self, job: Job, following: Slice) -> None:
        self.apply(SliceDone(job, following))

    def first_token(self, job: Job) -> None:
        self.speed.progress[job].tokens += 1
        self.apply(FirstToken(job))

    def end(self, job: Job, tokens: int = 100) -> None:
        self.apply(Finished(job, job.cost, tokens))

    def outlook(self) -> Outlook:
        return forecast(self.admission, self.now, self.speed)

    def waiting(self) -> list[Job]:
        return [
            job for job in self.jobs if job in self.speed.progress and self.speed.progress[job].dispatched_at is None
        ]


def crowd(seed: int, policy: str = "fair", jobs: int = 60, *, shares_steps: bool = False) -> Scene:
    """A few jobs run and many wait, with weights, priorities, seats and caps."""
    random = Random(seed)
    limits = Limits(
        max_num_seqs=random.choice([2, 8, 64]),
        flow_in_flight=random.choice([None, 1, 2]),
        kv_tokens=random.choice([None, 50_000]),
    )
    scene = Scene(policy, limits, shares_steps=shares_steps)
    weights = [random.choice([0.5, 1.0, 3.0]) for _ in range(5)]
    for _ in range(jobs):
        user, lane = random.randrange(5), random.choice(LANES)
        more = {
            "weight": weights[user],
            "head_start": random.choice([0.0, 2.0]),
            "kv_tokens": random.randint(1, 20_000),
        }
        scene.arrive(f"u{user}", lane, random.uniform(0.1, 5.0), seats=random.randint(1, 3), **more)
        scene.now += random.uniform(0, 0.2)
        if random.random() < 0.2:
            running = [job for job, progress in scene.speed.progress.items() if progress.dispatched_at is not None]
            job = random.choice(running)
            if scene.speed.progress[job].first_token_at is None:
                scene.first_token(job)
            else:
                scene.end(job)
    return scene


def drain(admission: Admission, running: list[Job]) -> list[Job]:
    """The order of dispatch when the jobs end one after the other."""
    order = list(running)
    for job in order:
        order += admission.first_token(job)
        order += admission.finish(job, job.cost)
    return order


def test_a_job_on_an_idle_engine_is_forecast_to_start_at_once() -> None:
    scene = Scene()
    job = scene.arrive(cost=2.0)
    outlook = scene.outlook()
    assert outlook.start(job) == (0.0, 0.0)
    assert outlook.first_token(job).median == pytest.approx(2.0)
    assert outlook.end(job).median > 2.0
    assert outlook.wait_attribution(job) == {}


@every_policy
def test_long_prompts_start_one_after_the_other(policy: str) -> None:
    scene = Scene(policy)
    first, second, third = (scene.arrive(cost=2.0) for _ in range(3))
    outlook = scene.outlook()
    assert [round(outlook.start(job).median, 6) for job in (first, second, third)] == [0.0, 2.0, 4.0]
    assert outlook.first_token(third).median == pytest.approx(6.0)


@every_policy
@pytest.mark.parametrize("seed", range(10))
def test_a_forecast_changes_nothing(policy: str, seed: int) -> None:
    scene, clone = crowd(seed, policy), crowd(seed, policy)
    outlook = scene.outlook()
    retry_after(scene.admission, scene.now, scene.speed, scene.job(deadline=scene.now + 5))
    meets(scene.admission, scene.now, scene.speed, scene.job(deadline=scene.now + 5))
    again = scene.outlook()
    assert [outlook.end(job) for job in scene.speed.progress] == [again.end(job) for job in scene.speed.progress]
    assert scene.admission.held() == clone.admission.held()
    places = [
        [
            each.jobs.index(job)
            for job in drain(each.admission, [j for j in each.speed.progress if j not in each.waiting()])
        ]
        for each in (scene, clone)
    ]
    assert places[0] == places[1]


@every_policy
def test_jobs_are_expected_to_start_in_the_order_of_the_policy(policy: str) -> None:
    """In one lane, one job at a time, so that nothing that the engine does can change the order."""
    random, scene = Random(4), Scene(policy)
    scene.speed.decode_cost = lambda tokens: 0.0
    for _ in range(30):
        scene.arrive(f"u{random.randrange(4)}", "long", random.uniform(1, 9))
        scene.now += random.random() / 10
    outlook = scene.outlook()
    waiting = scene.waiting()
    said = sorted(waiting, key=lambda job: outlook.start(job).median)
    admission, actual = scene.admission, [scene.jobs[0]]
    for job in actual:
        actual += admission.first_token(job)
    assert said == actual[1:]


@every_policy
@pytest.mark.parametrize("shares_steps", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_instants_are_in_order_and_the_wait_attribution_sums_to_the_wait(
    policy: str, shares_steps: bool, seed: int
) -> None:
    scene = crowd(seed, policy, shares_steps=shares_steps)
    outlook = scene.outlook()
    assert scene.waiting()
    for job in scene.speed.progress:
        start, first_token, end = outlook.start(job), outlook.first_token(job), outlook.end(job)
        assert 0 <= start.median <= first_token.median <= end.median < inf
        assert start.p90 >= start.median
        assert first_token.p90 >= first_token.median
        wait_attribution = outlook.wait_attribution(job)
        assert sum(wait_attribution.values()) == pytest.approx(start.median)
        assert all(seconds >= 0 for seconds in wait_attribution.values())
        assert wait_attribution.keys() <= {other.flow for other in scene.jobs}


def test_the_wait_attribution_names_the_flows_that_hold_the_lane() -> None:
    scene = Scene()
    scene.arrive("ben", cost=3.0)
    scene.arrive("cem", cost=2.0)
    job = scene.arrive("dana", cost=1.0)
    assert scene.outlook().wait_attribution(job) == pytest.approx({"ben": 3.0, "cem": 2.0})


def test_the_wait_at_a_flow_cap_is_attributed_to_the_flow_itself() -> None:
    """However many other jobs the lane dispatches meanwhile."""
    scene = Scene(limits=Limits(flow_in_flight=1, max_num_seqs=3))
    first, second = scene.arrive("ada", "short", 1.0), scene.arrive("ada", "short", 1.0)
    others = [scene.arrive(f"u{number}", "short", 0.1) for number in range(20)]
    for job in others:
        scene.speed.progress[job].max_tokens = 5
    outlook = scene.outlook()
    assert sum(outlook.start(job).median < outlook.start(second).median for job in others) > 5
    assert outlook.start(second).median == pytest.approx(outlook.end(first).median, rel=0.5)
    assert outlook.wait_attribution(second) == pytest.approx({"ada": outlook.start(second).median})


@every_policy
@pytest.mark.parametrize("seed", range(5))
def test_an_eta_shrinks_as_time_passes(policy: str, seed: int) -> None:
    scene = Scene(policy)
    scene.arrive(cost=3.0)
    jobs = [scene.arrive(f"u{n % 3}", cost=2.0) for n in range(6)]
    etas = []
    for _ in range(6):
        outlook = scene.outlook()
        etas.append([outlook.first_token(job).median for job in jobs])
        # An outlook that is not made anew counts down with the clock.
        later = outlook.first_token(jobs[0], scene.now + 0.25)
        assert later.median == pytest.approx(etas[-1][0] - 0.25)
        scene.now += 0.5
    for before, after in pairwise(etas):
        assert after == pytest.approx([eta - 0.5 for eta in before])


def test_a_prefill_that_takes_longer_than_predicted_is_expected_to_end_soon() -> None:
    scene = Scene()
    running, job = scene.arrive(cost=3.0), scene.arrive(cost=2.0)
    scene.now = 100.0
    outlook = scene.outlook()
    assert 0 < outlook.first_token(running).median < 1
    assert outlook.start(job).median == pytest.approx(outlook.first_token(running).median)


def test_forecasts_include_slices() -> None:
    """A long job in three slices: the forecast after each one covers the slices that are left."""
    scene = Scene()
    sliced = scene.arrive_sliced(Slice(4_000, 2.4, rest_s=3.6), cost=6.0)
    other = scene.arrive("ben", cost=2.0)
    outlook = scene.outlook()
    assert outlook.first_token(sliced).median == pytest.approx(6.0)
    assert outlook.start(other).median == pytest.approx(6.0)  # a job that has begun goes on before others start
    scene.now = 2.4
    scene.slice_done(sliced, Slice(4_000, 2.4, rest_s=1.2))
    assert scene.outlook().first_token(sliced).median == pytest.approx(3.6)
    scene.now = 4.8
    scene.slice_done(sliced, Slice(2_000, 1.2))
    assert scene.outlook().first_token(sliced).median == pytest.approx(1.2)


def test_a_job_that_waits_between_slices_has_started() -> None:
    scene = Scene(limits=Limits(max_num_seqs=1))
    sliced = scene.arrive_sliced(Slice(5_000, 3.0, rest_s=3.0), cost=6.0)
    between = scene.arrive("ben", "short", 0.5)
    scene.now = 3.0
    scene.slice_done(sliced, Slice(5_000, 3.0))
    assert scene.speed.progress[between].dispatched_at == 3.0
    outlook = scene.outlook()
    assert outlook.start(sliced).median == 0.0
    assert outlook.first_token(sliced).median == pytest.approx(outlook.end(between).median + 3.0)
    assert outlook.wait_attribution(sliced) == {}


@every_policy
@pytest.mark.parametrize("left", [9.0, 0.5], ids=["passes", "waits"])
def test_a_much_shorter_prompt_is_expected_to_run_after_the_current_slice(policy: str, left: float) -> None:
    """By the rule that admission has, from the first slice on as from any later one."""
    scene = Scene(policy)
    sliced = scene.arrive_sliced(Slice(1_000, 1.0, rest_s=left), cost=10.0)
    small = scene.arrive("ben", cost=0.5)
    if left > 1:
        assert scene.outlook().start(small).median == pytest.approx(1.0)
        assert scene.outlook().first_token(sliced).median == pytest.approx(10.5)
    else:
        assert scene.outlook().start(small).median == pytest.approx(1.5)
        assert scene.outlook().first_token(sliced).median == pytest.approx(1.5)


@every_policy
def test_a_flood_of_much_shorter_prompts_is_expected_to_double_what_is_left(policy: str) -> None:
    scene = Scene(policy)
    sliced = scene.arrive_sliced(Slice(1_000, 1.0, rest_s=19.0), cost=20.0)
    for number in range(50):
        scene.arrive(f"u{number % 5}", cost=1.0)
    outlook = scene.outlook()
    assert outlook.first_token(sliced).median == pytest.approx(1.0 + 2 * 19.0, abs=1.0)
    waits = sorted(outlook.start(job).median for job in scene.waiting())
    assert waits[0] == pytest.approx(1.0)
    assert waits[-1] == pytest.approx(20.0 + 49.0)


@pytest.mark.parametrize(
    "first_slice", [Slice(10, 0.0, rest_s=2.0), Slice(10, 3.0, rest_s=0.1), Slice(1, 0.7, rest_s=1.3)]
)
def test_the_first_token_is_expected_after_all_slices_whatever_their_length(first_slice: Slice) -> None:
    scene = Scene()
    sliced = scene.arrive_sliced(first_slice, cost=99.0)
    assert scene.outlook().first_token(sliced).median == pytest.approx(first_slice.cost_s + first_slice.rest_s)


def test_pauses_between_slices_are_learned_and_expected_again() -> None:
    """A driver that pauses reports a slice as done only after the pause, so the lane is learned to be slower."""
    scene = Scene()
    for _ in range(10):
        sliced = scene.arrive_sliced(Slice(5_000, 1.0, rest_s=1.0), cost=2.0)
        scene.now += 3.0
        scene.slice_done(sliced, Slice(5_000, 1.0))
        scene.now += 3.0
        scene.first_token(sliced)
        scene.end(sliced)
    sliced = scene.arrive_sliced(Slice(5_000, 1.0, rest_s=3.0), cost=4.0)
    assert scene.outlook().first_token(sliced).median == pytest.approx(12.0, rel=0.1)


def test_a_short_prompt_does_not_wait_for_a_long_one_where_they_share_steps() -> None:
    etas = []
    for shares_steps in (False, True):
        scene = Scene(shares_steps=shares_steps)
        scene.arrive(cost=8.0)
        short = scene.arrive("ben", "short", 0.3)
        etas.append(scene.outlook().first_token(short).median)
    assert etas[0] == pytest.approx(8.3)
    assert etas[1] < 1.0


def test_a_forecast_takes_time_in_proportion_to_the_jobs() -> None:
    """Four times as many jobs take at most 12 times as long; if the time were quadratic, it would be 16 times."""

    def seconds(jobs: int) -> float:
        scene = Scene(limits=Limits(max_num_seqs=32))
        for number in range(jobs):
            scene.arrive(f"u{number % 25}", "long" if number % 5 == 0 else "short", 0.5)
        times = []
        for _ in range(5):
            before = process_time()
            scene.outlook()
            times.append(process_time() - before)
        return min(times)

    assert seconds(1_600) < 4 * 3 * seconds(400)


class TestRetryAfter:
    def full(self) -> Scene:
        scene = Scene(limits=Limits(max_queued=5))
        for _ in range(6):
            scene.arrive(cost=4.0)
        return scene

    def test_retry_after_is_the_minimum_on_an_idle_engine(self) -> None:
        scene = Scene()
        assert retry_after(scene.admission, 0.0, scene.speed, scene.job(deadline=10.0)) == MIN_RETRY_S

    def test_retry_after_is_when_the_deadline_could_be_met(self) -> None:
        scene = self.full()  # the last of them has its first token after 24 s
        seconds = retry_after(scene.admission, 0.0, scene.speed, scene.job(cost=4.0, deadline=10.0))
        assert 24 + 4 - 10 <= seconds <= (24 + 4 - 10) * 4 / 3 + 1

    @every_policy
    @pytest.mark.parametrize("seed", range(8))
    def test_retry_after_is_close_to_the_first_time_that_would_meet_the_deadline(self, policy: str, seed: int) -> None:
        """Compared with the first second that does, found by trying each."""
        scene = crowd(seed, policy)

        def late(seconds: float) -> float:
            future = Simulation(scene.admission.copy(), scene.now, scene.speed).until(scene.now + seconds)
            job = replace(probe, arrival=future.now, deadline=future.now + 12.0)
            future.arrive(job)
            return future.until(first_token_of=job).times[job].first_token - job.deadline

        probe = scene.job("u1", "long", 4.0, deadline=scene.now + 12.0)
        seconds = retry_after(scene.admission, scene.now, scene.speed, probe)
        assert seconds == MAX_RETRY_S or late(seconds) <= 0
        would_do = [float(each) for each in range(1, 61) if each == MAX_RETRY_S or late(each) <= 0]
        lasting = next(each for each in would_do if {*range(int(each), int(min(60, each * 4 / 3 + 2)))} <= {*would_do})
        assert MIN_RETRY_S <= seconds <= min(MAX_RETRY_S, lasting * 4 / 3 + 1)

    def test_retry_after_is_when_the_queue_has_room(self) -> None:
        scene = self.full()
        assert scene.admission.rejects(scene.job()) is not None
        assert 4 <= retry_after(scene.admission, 0.0, scene.speed, scene.job()) <= 5.5

    def test_retry_after_is_capped_at_the_maximum(self) -> None:
        scene = self.full()
        assert retry_after(scene.admission, 0.0, scene.speed, scene.job(deadline=1.0)) == MAX_RETRY_S

    def test_a_flow_that_is_served_sooner_may_retry_sooner(self) -> None:
        scene = self.full()
        other = scene.job("ben", deadline=10.0)
        assert retry_after(scene.admission, 0.0, scene.speed, other) < 5


class TestMeets:
    def test_an_idle_engine_refuses_no_deadline(self) -> None:
        scene = Scene()
        assert meets(scene.admission, 0.0, scene.speed, scene.job(cost=100.0, deadline=1.0))

    def test_a_deadline_is_met_only_after_the_work_ahead(self) -> None:
        scene = Scene()
        for _ in range(3):
            scene.arrive(cost=4.0)
        assert meets(scene.admission, 0.0, scene.speed, scene.job(cost=4.0, deadline=17.0))
        assert not meets(scene.admission, 0.0, scene.speed, scene.job(cost=4.0, deadline=15.0))
        assert meets(scene.admission, 0.0, scene.speed, scene.job(cost=2.0))


class TestEngineSpeed:
    def test_nothing_is_learned_from_a_first_token_that_was_not_observed(self) -> None:
        """An answer that is not streamed shows no first token: the driver assumes that it comes as predicted."""
        speed = EngineSpeed()
        job = Job("ann", "short", 100, 2.0, 0.0)
        speed.queued(job)
        speed.dispatched([job], 0.0)
        speed.promise(job, 0.0, {"start": 0.0, "first_token": 2.0, "end": 9.0})
        speed.first_token(job, 20.0, observed=False)
        another = Job("ann", "short", 100, 2.0, 21.0)
        speed.queued(another)
        speed.dispatched([another], 21.0)
        speed.first_token(another, 23.0, observed=False)
        assert speed.slowdown["short"].value == 1.0
        assert speed.tokens["short"].value == EngineSpeed().tokens["short"].value
        assert speed.errors["first_token"].factor(10.0) == ForecastErrors(3.0).factor(10.0)
        speed.ended(job, 30.0, 50)
        speed.ended(another, 30.0, 50)
        assert not speed.progress

    def test_a_slice_is_observed_by_its_own_seconds(self) -> None:
        """The client's own request by those since it was dispatched. Neither, where another prefill shared them."""
        scene = Scene()
        job = scene.arrive_sliced(Slice(4_000, 1.0, rest_s=2.0))
        progress = scene.speed.progress[job]
        assert progress.observation() is None
        scene.now = 1.5
        assert progress.observation(1.25) == PrefillObservation(1.25, 0)
        scene.slice_done(job, Slice(4_000, 1.0, rest_s=1.0))
        beside = scene.arrive("ben", "short", 0.5)
        scene.now = 2.75
        assert progress.observation(scene.now) is None
        scene.slice_done(job, Slice(2_000, 1.0))
        scene.first_token(beside)
        scene.now = 4.75
        assert progress.observation(scene.now) is None  # `beside` was still in prefill when the slice was dispatched
        assert scene.speed.progress[beside].observation() is None  # and shared its time with a slice
        scene.slice_done(job, Slice(1_000, 0.5))
        scene.now = 7.0
        scene.first_token(job)
        assert progress.observation() == PrefillObservation(2.25, 1)

    def test_an_observed_slice_names_the_prefill_that_ran_within_its_time(self) -> None:
        scene = Scene()
        job = scene.arrive_sliced(Slice(4_000, 1.0, rest_s=2.0))
        scene.now = 0.5
        beside = scene.arrive("ben", "short", 0.5)
        scene.now = 1.0
        scene.first_token(beside)
        scene.now = 1.5
        assert scene.speed.progress[job].observation(scene.now) == PrefillObservation(1.5, 0, (beside.tokens,))

    def test_a_sliced_job_starts_once(self) -> None:
        """Its promised start is compared with the start of its first slice, not of the others."""
        scene = Scene()
        for _ in range(30):
            scene.arrive(cost=4.0)
            job = scene.arrive_sliced(Slice(4_000, 2.0, rest_s=8.0))
            scene.speed.promise(job, scene.now, {"start": 4.0, "first_token": 20.0, "end": 20.0})
            scene.now += 4.0
            scene.first_token(scene.jobs[-2])
            for _ in range(4):
                scene.now += 2.0
                scene.slice_done(job, Slice(4_000, 2.0))
            scene.first_token(job)
            for each in scene.jobs[-2:]:
                scene.end(each)
        assert scene.speed.errors["start"].factor(4.0) == pytest.approx(1.0)

    def test_a_job_is_contended_by_others_that_are_here_or_were_dispatched_meanwhile(self) -> None:
        scene = Scene()
        job = scene.arrive_sliced(Slice(4_000, 1.0, rest_s=2.0))
        assert not scene.speed.is_contended(job)
        other = scene.arrive("ben", "short")
        assert scene.speed.is_contended(job)
        scene.end(other)
        assert scene.speed.is_contended(job)
        scene.slice_done(job, Slice(4_000, 1.0))
        assert not scene.speed.is_contended(job)
        scene.arrive("ben")
        assert scene.speed.is_contended(job)  # it waits

    def test_sequences_counts_those_that_decode(self) -> None:
        scene = Scene()
        wide = scene.arrive(seats=3)
        sliced = scene.arrive_sliced(Slice(4_000, 1.0))
        assert scene.speed.sequences == 0
        scene.first_token(wide)
        assert scene.speed.sequences == 3
        scene.first_token(sliced)
        assert scene.speed.sequences == 4
        scene.end(wide)
        assert scene.speed.sequences == 1

    def test_a_wrong_profile_is_corrected(self) -> None:
        scene = Scene()
        for _ in range(20):
            job = scene.arrive(cost=1.0)
            scene.now += 3.0
            scene.first_token(job)
            scene.end(job)
        scene.arrive(cost=1.0)
        job = scene.arrive(cost=1.0)
        assert scene.outlook().first_token(job).median == pytest.approx(6.0, rel=0.1)

    @pytest.mark.parametrize("samples", [1, 30])
    def test_the_slowdown_does_not_learn_again_what_the_curve_has_learned(self, samples: int) -> None:
        """Priced at 1 s, prefilled in 3 s; then the curve says 3 s, also for a job that waits at the old price."""
        scene = Scene()
        price = 1.0
        scene.speed.prefill_cost = lambda tokens: price
        for _ in range(samples):
            job = scene.arrive(cost=price)
            scene.now += 3.0
            scene.first_token(job)
            scene.end(job)
        scene.arrive(cost=price)
        waits = scene.arrive(cost=price)
        price = 3.0
        later = scene.arrive(cost=price)
        for job, ahead in ((waits, 2), (later, 3)):
            assert scene.outlook().first_token(job).median == pytest.approx(
                3.0 * ahead, rel=0.15 if samples == 1 else 0.01
            )

    def test_the_decode_step_is_learned_by_the_number_of_sequences(self) -> None:
        scene = Scene()
        for sequences in (1, 4, 16):
            for _ in range(30):
                scene.speed.step.observe(sequences, 0.05 * sequences**0.3)
        assert scene.speed.step.at(8) == pytest.approx(0.05 * 8**0.3, rel=0.1)

    def test_nothing_is_kept_of_a_job_that_has_ended(self) -> None:
        scene = Scene()
        for _ in range(3):
            scene.arrive(cost=1.0)
        for job in scene.jobs:
            scene.end(job)
        assert not scene.speed.progress
        assert not any(scene.speed.prefilling.values())

    def test_the_90th_percentile_learns_from_forecast_errors(self) -> None:
        scene = Scene()
        for _ in range(30):
            scene.arrive(cost=4.0)
            job = scene.arrive(cost=4.0)
            scene.speed.promise(job, scene.now, {"start": 2.0, "first_token": 2.0, "end": 2.0})
            for each in scene.jobs[-2:]:
                scene.now += 4.0
                scene.first_token(each)
            for each in scene.jobs[-2:]:
                scene.end(each)
        assert scene.speed.errors["start"].factor(2.0) == pytest.approx(2.0)
        assert scene.speed.errors["first_token"].factor(2.0) == pytest.approx(4.0)


class TestLearners:
    def test_one_absurd_sample_changes_a_ratio_little(self) -> None:
        ratio = Ratio(1.0, prior_weight=1.0)
        for _ in range(50):
            ratio.observe(1.0, 1.0)
        ratio.observe(1e9, 1.0)
        assert ratio.value < 1.2
        for absurd in ((-5.0, 1.0), (1.0, 0.0), (1.0, -1.0)):
            ratio.observe(*absurd)
        assert 0.8 < ratio.value < 1.2

    def test_the_expected_length_is_of_answers_that_were_longer_than_this_one_so_far(self) -> None:
        lengths = AnswerLengths()
        for tokens in range(100, 400):
            lengths.observe(tokens)
        assert 240 <= lengths.expect(0) <= 300
        assert 340 <= lengths.expect(300) <= 360
        assert lengths.expect(300, max_tokens=320) == 320
        assert lengths.expect(1000) > 1000
        lengths.observe(-1)
        assert lengths.expect(0, quantile=0.0) == 400 - WINDOW_SIZE  # the last WINDOW_SIZE samples; -1 is not one

    def test_errors_start_wide_and_then_follow_what_was_observed(self) -> None:
        errors = ForecastErrors(prior=3.0)
        assert errors.factor(10.0) == 3.0
        for _ in range(MIN_ERRORS - 1):
            errors.observe(10.0, 10.0)
        assert errors.factor(10.0) == 3.0
        for number in range(100):
            errors.observe(10.0, 10.0 * (1 + number / 100))
        assert 1.8 < errors.factor(10.0) < 2.0
        assert errors.factor(100.0) == 3.0  # distant forecasts are learned separately

    @pytest.mark.parametrize("took", [nan, inf, -1.0])
    def test_impossible_errors_leave_the_factor_finite(self, took: float) -> None:
        errors = ForecastErrors(prior=3.0)
        for _ in range(50):
            errors.observe(10.0, took)
        assert 0 <= errors.factor(10.0) < inf


def test_nothing_is_learned_from_a_slice_that_was_not_observed() -> None:
    speed, job = EngineSpeed(), Job("a", "long", 10_000, 6.0, 0.0)
    speed.queued(job, first_slice=Slice(4000, 2.4, 3.6))
    speed.dispatched([job], 0.0)
    speed.slice_done(job, Slice(10_000, 6.0), 0.01, observed=False)
    assert speed.slowdown["long"].value == 1.0
    assert not speed.prefilling["long"]
