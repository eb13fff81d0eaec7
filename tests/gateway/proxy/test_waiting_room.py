"""The waiting room under a real event loop: whatever is cancelled, and whenever, every permit comes back once."""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from gateway.errors import Draining, GatewayError, QueueTimeout
from gateway.proxy.waiting_room import WaitingRoom
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event
from gateway.scheduling.limits import Limits
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy
from policies.fifo import Fifo

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


arrivals = count()


def job(lane: Lane = "long", seats: int = 1, cost: float = 1.0) -> Job:
    return Job("a", lane, 100, cost, next(arrivals), seats)


class Guest:
    """One request: comes in when it is let in, and stays until it is told to leave, or is cancelled."""

    def __init__(self, room: WaitingRoom, job: Job) -> None:
        self.room = room
        self.job = job
        self.scope = anyio.CancelScope()
        self.entered = anyio.Event()
        self.may_leave = anyio.Event()
        self.gone = anyio.Event()
        self.permit: Permit | None = None
        self.error: GatewayError | None = None
        self.cost: float | None = None

    async def visit(self) -> None:
        try:
            with self.scope:
                async with self.room.admitted(self.job) as self.permit:
                    self.entered.set()
                    await self.may_leave.wait()
                    if self.cost is not None:
                        self.permit.cost = self.cost
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


class House:
    """A room with one place for long prompts, and a record of all that its observer is told."""

    def __init__(self, tasks: TaskGroup, limits: Limits | None = None, queue_timeout: float = 60.0) -> None:
        self.tasks = tasks
        self.told: list[tuple[Event, list[Job]]] = []
        self.admission = Admission(Fifo(), limits)
        self.room = WaitingRoom(self.admission, queue_timeout, lambda *event: self.told.append(event))

    def comes(self, job: Job) -> Guest:
        guest = Guest(self.room, job)
        self.tasks.start_soon(guest.visit)
        return guest

    async def enters(self, job: Job) -> Guest:
        guest = self.comes(job)
        await guest.entered.wait()
        return guest

    async def queues(self, job: Job) -> Guest:
        before = self.admission.waiting(job.lane)
        guest = self.comes(job)
        while self.admission.waiting(job.lane) == before:
            await checkpoint()
        return guest

    def events(self, job: Job) -> list[str]:
        return [event.kind for event, _ in self.told if event.job is job]


def assert_empty(admission: Admission) -> None:
    assert (admission.seats, admission.running, admission.ledger.prefill_cost) == (0, 0, 0)
    for lane in LANES:
        assert (admission.prefill_jobs(lane), admission.prefill_tokens(lane), admission.waiting(lane)) == (0, 0, 0)


async def test_whoever_fits_comes_in_without_a_wait() -> None:
    admission = Admission(Fifo())
    coming = WaitingRoom(admission, 60.0).admitted(job())
    entering = coming.__aenter__()
    with pytest.raises(StopIteration):
        entering.send(None)  # it ran to its end without giving the event loop a turn
    assert admission.running == 1
    await coming.__aexit__(None, None, None)
    assert_empty(admission)


async def test_whoever_does_not_waits_until_there_is_room() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first = await house.enters(job())
        second = await house.queues(job())
        assert not second.entered.is_set()
        await first.leave()
        await second.entered.wait()
        await second.leave()
    assert_empty(house.admission)


async def test_a_first_token_lets_the_next_one_in() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first = await house.enters(job())
        second = await house.queues(job())
        assert first.permit
        first.permit.first_token()
        first.permit.first_token()  # again is harmless
        await second.entered.wait()
        await first.leave()
        await second.leave()
    assert_empty(house.admission)


async def test_a_first_token_after_the_end_is_harmless() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        guest = await house.enters(job())
        await guest.leave()
        assert guest.permit
        guest.permit.first_token()
    assert house.events(guest.job) == ["arrive", "finish"]


async def test_the_permit_knows_its_prefill_with_the_work_ahead() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        guests = [await house.enters(job("long", cost=2.0)), await house.enters(job("short", cost=0.5))]
        assert [guest.permit.predicted_prefill_s for guest in guests if guest.permit] == [2.0, 2.5]
        for guest in guests:
            await guest.leave()


@pytest.mark.parametrize("cost", [None, 7.5])
async def test_what_is_charged_is_the_prediction_until_somebody_knows_better(cost: float | None) -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        guest = await house.enters(job(cost=2.0))
        guest.cost = cost
        await guest.leave()
    assert house.told[-1] == (Event("finish", guest.job, cost or 2.0), [])


async def test_what_fails_inside_gives_the_permit_back() -> None:
    admission = Admission(Fifo())
    with pytest.raises(LookupError):
        async with WaitingRoom(admission, 60.0).admitted(job()):
            raise LookupError
    assert_empty(admission)


# Cancellation.


async def test_one_who_leaves_while_queued_gives_up_the_place() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second, third = await house.enters(job()), await house.queues(job()), await house.queues(job())
        await second.cancel()
        assert house.events(second.job) == ["arrive", "leave"]
        assert house.admission.waiting("long") == 1
        await first.leave()
        await third.entered.wait()
        await third.leave()
    assert_empty(house.admission)


async def test_one_who_leaves_the_head_of_the_queue_frees_what_was_reserved() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks, Limits(max_num_seqs=2))
        first = await house.enters(job("short"))
        head, behind = await house.queues(job("long", seats=2)), await house.queues(job("short"))
        await head.cancel()
        await behind.entered.wait()
        await behind.leave()
        await first.leave()
    assert_empty(house.admission)


async def test_one_who_leaves_while_running_gives_all_back() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), await house.queues(job())
        await first.cancel()
        await second.entered.wait()
        await second.cancel()
    assert_empty(house.admission)


async def test_one_cancelled_between_grant_and_wake_up_leaks_nothing() -> None:
    """Granted and cancelled with no turn of the loop between: never in, and charged nothing.

    A cancel scope of anyio lets a task whose wake-up is on its way run on to its next wait, so this takes asyncio's
    own cancellation.
    """
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), Guest(house.room, job())
        task = asyncio.ensure_future(second.visit())
        await checkpoint()
        third = await house.queues(job())
        assert first.permit
        first.permit.first_token()
        assert house.told[-1][-1] == [second.job]
        task.cancel()
        await third.entered.wait()
        assert not second.entered.is_set()
        assert (Event("finish", second.job, 0.0), [third.job]) in house.told
        await third.leave()
        await first.leave()
    assert task.cancelled()
    assert_empty(house.admission)


async def test_one_granted_while_being_cancelled_leaks_nothing() -> None:
    """Cancelled, and granted before it has noticed."""
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second, third = await house.enters(job()), await house.queues(job()), await house.queues(job())
        assert first.permit
        second.scope.cancel()
        first.permit.first_token()
        assert house.told[-1][-1] == [second.job]
        await third.entered.wait()
        assert not second.entered.is_set()
        assert (Event("finish", second.job, 0.0), [third.job]) in house.told
        await third.leave()
        await first.leave()
    assert_empty(house.admission)


async def test_one_granted_and_then_cancelled_is_in_and_out() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), await house.queues(job())
        assert first.permit
        first.permit.first_token()
        await second.cancel()
        assert house.events(second.job) == ["arrive", "finish"]
        await first.leave()
    assert_empty(house.admission)


# The time limit.


async def test_one_who_waited_too_long_is_sent_away() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks, queue_timeout=0)
        first = await house.enters(job())
        second = house.comes(job())
        await second.gone.wait()
        assert isinstance(second.error, QueueTimeout)
        assert house.events(second.job) == ["arrive", "leave"]
        await first.leave()
    assert_empty(house.admission)


async def test_a_grant_in_the_moment_of_the_time_limit_holds() -> None:
    """The waiter's time is up as it begins to wait, and the grant comes before it is woken to be told so."""
    async with anyio.create_task_group() as tasks:
        house = House(tasks, queue_timeout=0)
        first = await house.enters(job())
        second = house.comes(job())
        tasks.start_soon(first.leave)
        await second.entered.wait()
        assert second.error is None
        await second.leave()
    assert_empty(house.admission)


# Draining.


async def test_draining_sends_away_who_waits_refuses_who_comes_and_keeps_who_runs() -> None:
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


async def test_one_who_was_granted_before_the_drain_goes_on() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second = await house.enters(job()), await house.queues(job())
        assert first.permit
        first.permit.first_token()
        house.room.drain()
        await second.entered.wait()
        await second.leave()
        await first.leave()
    assert_empty(house.admission)


async def test_one_whose_turn_comes_after_the_drain_stays_outside() -> None:
    """The running one ends before those sent away have noticed: a place that is given to them comes back."""
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        first, second, third = await house.enters(job()), await house.queues(job()), await house.queues(job())
        assert first.permit
        house.room.drain()
        first.permit.first_token()
        for guest in (second, third):
            await guest.gone.wait()
            assert isinstance(guest.error, Draining)
        await first.leave()
    assert_empty(house.admission)


async def test_who_runs_can_be_cut_off_and_is_told_why() -> None:
    async with anyio.create_task_group() as tasks:
        house = House(tasks)
        running, waiting = await house.enters(job()), await house.queues(job())
        house.room.drain()
        house.room.cut_off()
        for guest in (running, waiting):
            await guest.gone.wait()
            assert isinstance(guest.error, Draining)
        assert house.events(running.job) == ["arrive", "finish"]
    assert_empty(house.admission)


# The observer.


async def test_an_observer_that_fails_stops_nobody_and_is_not_asked_again() -> None:
    told = []

    def full_disk(event: Event, dispatched: list[Job]) -> None:
        told.append(event.kind)
        if event.kind == "finish":
            raise OSError("No space left on device")

    admission = Admission(Fifo())
    room = WaitingRoom(admission, 60.0, full_disk)
    async with anyio.create_task_group() as tasks:
        first, second = Guest(room, job()), Guest(room, job())
        for guest in (first, second):
            tasks.start_soon(guest.visit)
        await first.entered.wait()
        await first.leave()
        await second.entered.wait()
        await second.leave()
    assert told == ["arrive", "arrive", "finish"]
    assert_empty(admission)


# Any schedule.


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)
async def test_after_any_schedule_all_is_given_back(new_policy: Callable[[], Policy], seed: int) -> None:
    """Guests come, get first tokens, leave and are cancelled, sometimes with the loop turning between, mostly not."""
    random = Random(seed)
    ends: Counter[Job] = Counter()

    def observe(event: Event, dispatched: list[Job]) -> None:
        assert event.job
        ends[event.job] += event.kind in ("finish", "leave")

    admission = Admission(new_policy(), Limits(short_lane_tokens=150, max_num_seqs=4))
    room = WaitingRoom(admission, random.choice([0, 60.0, 60.0]), observe)
    guests: list[Guest] = []
    async with anyio.create_task_group() as tasks:
        for step in range(120):
            act = random.choice(["come", "come", "first_token", "leave", "cancel"])
            guest = random.choice(guests) if guests else None
            if act == "come" or guest is None:
                guests.append(Guest(room, job(random.choice(LANES), random.randint(1, 3))))
                tasks.start_soon(guests[-1].visit)
            elif act == "first_token" and guest.permit:
                guest.permit.first_token()
            elif act == "leave":
                guest.may_leave.set()
            elif act == "cancel":
                guest.scope.cancel()
            if step == 100 and seed % 3 == 0:
                room.drain()
            for _ in range(random.choice([0, 0, 1, 2, 5])):
                await checkpoint()
        for guest in guests:
            guest.may_leave.set()
    assert_empty(admission)
    assert set(ends.values()) == {1}
    assert not room._waiters
