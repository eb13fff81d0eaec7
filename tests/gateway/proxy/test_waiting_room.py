"""The waiting room under a real event loop: whatever is cancelled, and whenever, every permit is released once."""

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random
from time import perf_counter

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from gateway.config.settings import Settings
from gateway.errors import Draining, GatewayError, QueueTimeout
from gateway.forecasting.forecaster import Forecaster
from gateway.lifecycle.core import Core
from gateway.lifecycle.lifecycle import Lifecycle, PricedRequest
from gateway.lifecycle.settlement import Answer
from gateway.pricing.cost_model import CostModel, Price
from gateway.pricing.prefix_index import NO_MATCH
from gateway.pricing.profile import Profile
from gateway.pricing.prompt import Prompt, PromptSize
from gateway.pricing.usage import Usage
from gateway.proxy.waiting_room import Observer, WaitingRoom
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Arrived, Event, Finished, JobEvent, Left, event_name
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Phase
from gateway.slicing.planner import SlicePlan, Slicing
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy
from policies.fifo import Fifo

pytestmark = pytest.mark.anyio

# A token of a prompt takes a second, and one of an answer half of that.
PROFILE = Profile(c_s=0.0, a_s_per_token=1.0, b_s_per_token2=0.0, decode_s_per_token=0.5)

# A queue timeout that is over as soon as the wait begins.
NO_TIME = 1e-9


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


arrivals = count()


class TraceableJob(Job):
    """Unlike other jobs, it can be referred to weakly, which shows whether anything still holds it."""


def job(lane: Lane = "long", seats: int = 1, cost: float = 1.0) -> Job:
    number = next(arrivals)
    return TraceableJob("a", lane, 100, cost, number, seats, id=str(number))


class Guest:
    """One request: it enters when it is admitted, and stays until it is told to leave, or is cancelled.

    A sliced one waits for its turn again each time that its slice is done; `answers` once its last one was dispatched.
    """

    def __init__(self, house: "House", job: Job, plan: SlicePlan | None = None) -> None:
        self.job = job
        self.room = house.room
        price = Price(job.tokens, 0, job.cost, ((job.tokens, NO_MATCH),))
        request = PricedRequest((Prompt(PromptSize(tokens=1)),), price, plan=plan)
        self.life = Lifecycle(house.core, job, request, house.room.apply)
        self.scope = anyio.CancelScope()
        self.entered = anyio.Event()
        self.slice_done = anyio.Event()
        self.answers = anyio.Event()
        self.may_leave = anyio.Event()
        self.gone = anyio.Event()
        self.error: GatewayError | None = None
        self.usage: Usage | None = None  # of its answer, where it has one

    async def visit(self) -> None:
        try:
            with self.scope:
                async with self.room.admitted(self.life):
                    self.entered.set()
                    while self.life.slice_is_due:
                        await self.slice_done.wait()
                        self.life.slice_answered(Answer(), perf_counter())
                        await self.room.requeued(self.life)
                    self.answers.set()
                    await self.may_leave.wait()
                    if self.usage is not None:
                        self.life.settle(Answer(self.usage), perf_counter())
        except GatewayError as error:
            self.error = error
        finally:
            self.gone.set()

    async def leave(self) -> None:
        self.may_leave.set()
        await self.gone.wait()

    async def cancel(self) -> None:
        self.scope.cancel()
        await self.gone.wait()

    def first_token(self) -> None:
        self.life.first_token(perf_counter())


class House:
    """A room with one place for long prompts, and a record of all that its observer is told."""

    def __init__(
        self,
        tasks: TaskGroup,
        limits: Limits | None = None,
        queue_timeout: float = 60.0,
        policy: Policy | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.tasks = tasks
        self.told: list[tuple[Event, list[Job]]] = []
        self.core = Core.create(CostModel(PROFILE), policy or Fifo(), limits or Limits(), Slicing())
        self.core.cost_model.prefixes.block = 1
        self.admission = self.core.admission
        self.room = WaitingRoom(
            Settings(queue_timeout=queue_timeout),
            self.admission,
            Forecaster(self.admission, self.core.speed),
            observer or (lambda *event: self.told.append(event)),
        )

    def comes(self, job: Job, plan: SlicePlan | None = None) -> Guest:
        guest = Guest(self, job, plan)
        self.tasks.start_soon(guest.visit)
        return guest

    async def enters(self, job: Job, plan: SlicePlan | None = None) -> Guest:
        guest = self.comes(job, plan)
        await guest.entered.wait()
        return guest

    async def queues(self, job: Job) -> Guest:
        before = self.admission.waiting(job.lane)
        guest = self.comes(job)
        while self.admission.waiting(job.lane) == before:
            await checkpoint()
        return guest

    def two_slices(self) -> SlicePlan:
        """Of a second each."""
        assert self.core.slicer
        plan = SlicePlan(self.core.slicer, 2)
        assert (plan.end, plan.tokens) == (1, 2)
        return plan

    def events(self, job: Job) -> list[str]:
        return [event_name(type(event)) for event, _ in self.told if isinstance(event, JobEvent) and event.job is job]


def assert_empty(admission: Admission) -> None:
    assert (admission.seats, admission.running, admission.ledger.prefill_s) == (0, 0, 0)
    for lane in LANES:
        assert (admission.prefill_jobs(lane), admission.prefill_tokens(lane), admission.waiting(lane)) == (0, 0, 0)


async def test_a_request_that_fits_is_admitted_without_a_wait() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        coming = house.room.admitted(Guest(house, job()).life)
        entering = coming.__aenter__()
        with pytest.raises(StopIteration):
            entering.send(None)  # it ran to its end without giving the event loop a turn
        assert house.admission.running == 1
        await coming.__aexit__(None, None, None)
    assert_empty(house.admission)


async def test_a_request_that_does_not_fit_waits_until_there_is_room() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first = await house.enters(job())
        second = await house.queues(job())
        assert not second.entered.is_set()
        await first.leave()
        await second.entered.wait()
        await second.leave()
    assert_empty(house.admission)


async def test_a_first_token_admits_the_next_request() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first = await house.enters(job())
        second = await house.queues(job())
        first.first_token()
        first.first_token()  # again is harmless
        await second.entered.wait()
        await first.leave()
        await second.leave()
    assert_empty(house.admission)


async def test_a_first_token_after_the_end_is_harmless() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        guest = await house.enters(job())
        await guest.leave()
        guest.first_token()
    assert house.events(guest.job) == ["arrived", "finished"]


async def test_the_predicted_prefill_includes_the_work_ahead() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        guests = [await house.enters(job("long", cost=2.0)), await house.enters(job("short", cost=0.5))]
        assert [guest.life.ticket.predicted_prefill_s for guest in guests] == [2.0, 2.5]
        for guest in guests:
            await guest.leave()


async def test_the_prediction_is_charged_while_nothing_better_is_known() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        guest = await house.enters(job(cost=2.0))
        await guest.leave()
    assert house.told[-1] == (Finished(guest.job, 2.0), [])


async def test_the_settled_charge_replaces_the_prediction() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        guest = await house.enters(job(cost=2.0))
        guest.usage = Usage(prompt_tokens=6, completion_tokens=3)
        await guest.leave()
    assert house.told[-1] == (Finished(guest.job, 7.5, output_tokens=3), [])


async def test_an_exception_inside_gives_the_permit_back() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        with pytest.raises(LookupError):
            async with house.room.admitted(Guest(house, job()).life):
                raise LookupError
    assert_empty(house.admission)


# Cancellation.


async def test_a_request_that_leaves_while_queued_gives_up_its_position() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second, third = await house.enters(job()), await house.queues(job()), await house.queues(job())
        await second.cancel()
        assert house.events(second.job) == ["arrived", "left"]
        assert house.admission.waiting("long") == 1
        await first.leave()
        await third.entered.wait()
        await third.leave()
    assert_empty(house.admission)


async def test_a_request_that_leaves_the_head_of_the_queue_frees_what_was_reserved() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks, Limits(max_num_seqs=2))
        first = await house.enters(job("short"))
        head, behind = await house.queues(job("long", seats=2)), await house.queues(job("short"))
        await head.cancel()
        await behind.entered.wait()
        await behind.leave()
        await first.leave()
    assert_empty(house.admission)


async def test_a_request_that_leaves_while_running_gives_everything_back() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), await house.queues(job())
        await first.cancel()
        await second.entered.wait()
        await second.cancel()
    assert_empty(house.admission)


async def test_a_request_cancelled_between_grant_and_wake_up_leaks_nothing() -> None:
    """Granted and cancelled with no turn of the loop between: never in, and charged nothing.

    A cancel scope of anyio lets a task whose wake-up is on its way run on to its next wait, so this takes asyncio's
    own cancellation.
    """
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), Guest(house, job())
        task = asyncio.ensure_future(second.visit())
        await checkpoint()
        third = await house.queues(job())
        first.first_token()
        assert house.told[-1][-1] == [second.job]
        task.cancel()
        await third.entered.wait()
        assert not second.entered.is_set()
        assert (Finished(second.job, 0.0), [third.job]) in house.told
        await third.leave()
        await first.leave()
    assert task.cancelled()
    assert_empty(house.admission)


async def test_a_request_granted_while_being_cancelled_leaks_nothing() -> None:
    """Cancelled, and granted before it has noticed."""
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second, third = await house.enters(job()), await house.queues(job()), await house.queues(job())
        second.scope.cancel()
        first.first_token()
        assert house.told[-1][-1] == [second.job]
        await third.entered.wait()
        assert not second.entered.is_set()
        assert (Finished(second.job, 0.0), [third.job]) in house.told
        await third.leave()
        await first.leave()
    assert_empty(house.admission)


async def test_a_request_granted_and_then_cancelled_has_entered_and_ended() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), await house.queues(job())
        first.first_token()
        await second.cancel()
        assert house.events(second.job) == ["arrived", "finished"]
        await first.leave()
    assert_empty(house.admission)


# The queue timeout.


async def test_a_request_that_waited_too_long_is_evicted() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks, queue_timeout=NO_TIME)
        first = await house.enters(job())
        second = house.comes(job())
        await second.gone.wait()
        assert isinstance(second.error, QueueTimeout)
        assert house.events(second.job) == ["arrived", "left"]
        await first.leave()
    assert_empty(house.admission)


async def test_a_grant_at_the_moment_of_the_timeout_holds() -> None:
    """Its time is up as it begins to wait, and the grant comes before it wakes up."""
    async with anyio.create_task_group() as tasks:
        house = House(tasks, queue_timeout=NO_TIME)
        first = await house.enters(job())
        second = house.comes(job())
        tasks.start_soon(first.leave)
        await second.entered.wait()
        assert second.error is None
        await second.leave()
    assert_empty(house.admission)


# Draining.


async def test_draining_evicts_queued_requests_refuses_new_ones_and_keeps_running_ones() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        running = await house.enters(job())
        waiting = [await house.queues(job()) for _ in range(3)]
        house.room.drain()
        late = house.comes(job("short"))
        for guest in (*waiting, late):
            await guest.gone.wait()
            assert isinstance(guest.error, Draining)
            assert not guest.entered.is_set()
        assert house.events(late.job) == []
        assert not running.gone.is_set()
        assert house.admission.running == 1
        await running.leave()
        assert running.error is None
    assert_empty(house.admission)


async def test_a_request_granted_before_the_drain_goes_on() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), await house.queues(job())
        first.first_token()
        house.room.drain()
        await second.entered.wait()
        await second.leave()
        await first.leave()
    assert_empty(house.admission)


async def test_a_request_granted_after_it_was_evicted_by_the_drain_does_not_enter() -> None:
    """Its place comes free before it has noticed its eviction; what it is granted comes back."""
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second, third = await house.enters(job()), await house.queues(job()), await house.queues(job())
        house.room.drain()
        first.first_token()
        for guest in (second, third):
            await guest.gone.wait()
            assert isinstance(guest.error, Draining)
        await first.leave()
    assert_empty(house.admission)


async def test_running_requests_can_be_cut_off_and_are_told_why() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        running, waiting = await house.enters(job()), await house.queues(job())
        house.room.drain()
        house.room.cut_off()
        for guest in (running, waiting):
            await guest.gone.wait()
            assert isinstance(guest.error, Draining)
        assert house.events(running.job) == ["arrived", "finished"]
    assert_empty(house.admission)


# The observer.


async def test_an_observer_that_fails_stops_nobody_and_is_not_called_again() -> None:
    told = []

    def full_disk(event: Event, dispatched: list[Job]) -> None:
        told.append(type(event))
        if isinstance(event, Finished):
            raise OSError("No space left on device")

    async with anyio.create_task_group() as tasks:
        house = House(tasks, observer=full_disk)
        first, second = house.comes(job()), house.comes(job())
        await first.entered.wait()
        await first.leave()
        await second.entered.wait()
        await second.leave()
    assert told == [Arrived, Arrived, Finished]
    assert_empty(house.admission)


# Slices.


async def between_slices(house: House) -> tuple[Guest, Guest]:
    """One whose first slice is done, and a much shorter one that has the lane meanwhile."""
    sliced = await house.enters(job(cost=2.0), house.two_slices())
    shorter = await house.queues(job(cost=0.2))
    sliced.slice_done.set()
    await shorter.entered.wait()
    assert sliced.life.ticket.phase is Phase.REQUEUED
    return sliced, shorter


async def test_a_job_waits_for_its_next_slice_while_a_much_shorter_one_runs() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        sliced, shorter = await between_slices(house)
        assert (house.admission.seats, house.admission.waiting("long")) == (1, 1)
        await shorter.leave()
        await sliced.answers.wait()
        await sliced.leave()
    assert house.events(sliced.job) == ["arrived", "slice_done", "finished"]
    assert_empty(house.admission)


async def test_a_request_cancelled_between_slices_gives_everything_back() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        sliced, shorter = await between_slices(house)
        await sliced.cancel()
        assert house.events(sliced.job) == ["arrived", "slice_done", "finished"]
        await shorter.leave()
    assert_empty(house.admission)


async def test_a_drain_keeps_a_job_between_slices_and_a_cut_off_ends_it() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        sliced, shorter = await between_slices(house)
        house.room.drain()
        for _ in range(10):
            await checkpoint()
        assert not sliced.gone.is_set()
        house.room.cut_off()
        for guest in (sliced, shorter):
            await guest.gone.wait()
            assert isinstance(guest.error, Draining)
    assert_empty(house.admission)


async def test_a_pause_ends_when_nothing_decodes_any_more() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        await house.room.pause(60.0)  # nothing decodes, so it is over at once
        decodes = await house.enters(job("short"))
        decodes.first_token()
        await house.room.pause(0.001)
        over = anyio.Event()

        async def pause() -> None:
            await house.room.pause(60.0)
            over.set()

        tasks.start_soon(pause)
        for _ in range(10):
            await checkpoint()
        assert not over.is_set()
        await decodes.leave()
        with anyio.fail_after(10.0):
            await over.wait()


# Any schedule.


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)
async def test_after_any_schedule_everything_is_given_back(new_policy: Callable[[], Policy], seed: int) -> None:
    """Guests come, finish slices, get first tokens, leave and are cancelled, sometimes with the loop turning between,
    mostly not. In the end each has ended once, and nothing holds a job any more."""
    random = Random(seed)
    ends: Counter[str] = Counter()

    def observe(event: Event, dispatched: list[Job]) -> None:
        assert isinstance(event, JobEvent)
        ends[event.job.id] += isinstance(event, Finished | Left)

    jobs: list[weakref.ref[Job]] = []
    async with anyio.create_task_group() as tasks:
        limits = Limits(short_lane_tokens=150, max_num_seqs=4)
        house = House(tasks, limits, random.choice([NO_TIME, 60.0, 60.0]), new_policy(), observe)
        jobs += await any_schedule(house, random, drain=seed % 3 == 0)
    assert_empty(house.admission)
    assert set(ends.values()) == {1}
    house.room.forecaster.outlook(perf_counter())  # the one before still has the jobs that it was about
    gc.collect()
    assert not any(each() for each in jobs)


async def any_schedule(house: House, random: Random, *, drain: bool) -> list["weakref.ref[Job]"]:
    """The jobs that were there."""
    guests: list[Guest] = []
    for step in range(120):
        act = random.choice(["come", "come", "slice_done", "first_token", "leave", "cancel"])
        guest = random.choice(guests) if guests else None
        if act == "come" or guest is None:
            lane, seats = random.choice(LANES), random.randint(1, 3)
            plan = house.two_slices() if random.random() < 0.3 else None
            guests.append(house.comes(job(lane, seats), plan))
        elif act == "slice_done":
            guest.slice_done.set()
        elif act == "first_token" and guest.answers.is_set():
            guest.first_token()
        elif act == "leave":
            guest.may_leave.set()
        elif act == "cancel":
            guest.scope.cancel()
        if step == 100 and drain:
            house.room.drain()
        for _ in range(random.choice([0, 0, 1, 2, 5])):
            await checkpoint()
    for guest in guests:
        guest.slice_done.set()
        guest.may_leave.set()
    return [weakref.ref(guest.job) for guest in guests]
