"""The table of transitions, and that admission follows it: what it does not allow is refused and changes nothing.

The cases are generated from the table: each kind of event, told of a job in each place where one can be.
"""

from collections.abc import Callable
from dataclasses import fields
from itertools import count, product
from typing import get_args

import pytest

from gateway.scheduling import events
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event, JobEvent
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Phase, Slice, Ticket
from gateway.scheduling.transitions import TRANSITIONS, after, diagram
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy

NewPolicy = Callable[[], Policy]
every_policy = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)

SLICE = Slice(100, 0.5, rest_s=0.5)
JOB_EVENTS: tuple[type[JobEvent], ...] = get_args(JobEvent)
MAKE: dict[type[JobEvent], Callable[[Job], Event]] = {
    events.Arrived: lambda job: events.Arrived(job, SLICE),
    events.Scheduled: events.Scheduled,
    events.Requeued: lambda job: events.Requeued(job, SLICE),
    events.SliceDone: lambda job: events.SliceDone(job, SLICE),
    events.EarlierSliceDone: events.EarlierSliceDone,
    events.FirstToken: events.FirstToken,
    events.Progressed: lambda job: events.Progressed(job, 5.0, 500),
    events.Finished: lambda job: events.Finished(job, 5.0),
    events.Left: events.Left,
}

# Where a job can be: its phase, and how many of its earlier slices are in the engine.
PLACES = {
    "queued": (Phase.QUEUED, 0),
    "set aside": (Phase.QUEUED, 0),
    "in prefill": (Phase.PREFILL, 0),
    "in prefill, behind a slice": (Phase.PREFILL, 1),
    "scheduled": (Phase.SCHEDULED, 0),
    "scheduled, behind a slice": (Phase.SCHEDULED, 1),
    "between slices": (Phase.REQUEUED, 0),
    "queued again, behind a slice": (Phase.REQUEUED, 1),
    "in decode": (Phase.DECODE, 0),
    "in decode, behind a slice": (Phase.DECODE, 1),
    "ended": (Phase.ENDED, 0),
    "left": (Phase.ENDED, 0),
    "never arrived": (Phase.ENDED, 0),
}


class Scene:
    """A job in each place. No seat is free, so nobody is dispatched by what happens to one of them."""

    def __init__(self, policy: Policy) -> None:
        self.admission = Admission(policy, Limits(long_lane_jobs=8, flow_in_flight=1))
        self.jobs: dict[str, Job] = {}
        self.tickets: dict[str, Ticket] = {}
        self._arrivals = count()
        self._fill_the_engine()
        self.admission.set_limits(Limits(long_lane_jobs=8, flow_in_flight=1, max_num_seqs=1))
        self._fill_the_queue()

    def _fill_the_engine(self) -> None:
        admission = self.admission
        self._arrive("in prefill")
        admission.scheduled(self._arrive("scheduled"))
        admission.first_token(self._arrive("in decode"))
        self._arrive("set aside", flow="in decode", lane="short")
        admission.finish(self._arrive("ended"), 1.0)
        sent_ahead = ("in prefill, behind a slice", "scheduled, behind a slice", "in decode, behind a slice")
        for place in (*sent_ahead, "queued again, behind a slice"):
            admission.scheduled(self._arrive(place, first_slice=SLICE))
        for place in sent_ahead:
            assert admission.requeue(self.jobs[place], SLICE) == [self.jobs[place]]
        admission.scheduled(self.jobs["scheduled, behind a slice"])
        admission.first_token(self.jobs["in decode, behind a slice"])
        self._arrive("between slices", first_slice=SLICE)

    def _fill_the_queue(self) -> None:
        admission = self.admission
        assert admission.slice_done(self.jobs["between slices"], SLICE) == []
        assert admission.requeue(self.jobs["queued again, behind a slice"], SLICE) == []
        self._arrive("queued", lane="short")
        admission.leave(self._arrive("left"))
        self.jobs["never arrived"] = self._job("never arrived", "long")

    def _arrive(
        self, place: str, *, flow: str | None = None, lane: Lane = "long", first_slice: Slice | None = None
    ) -> Job:
        job = self.jobs[place] = self._job(flow or place, lane)
        self.admission.arrive(job, first_slice)
        self.tickets[place] = self.admission.ticket(job)
        return job

    def _job(self, flow: str, lane: Lane) -> Job:
        return Job(flow, lane, 200, 1.0, next(self._arrivals), seats=2, kv_tokens=100)

    def tell(self, place: str, event: type[JobEvent]) -> list[Job]:
        return self.admission.apply(MAKE[event](self.jobs[place]))

    def phase(self, place: str) -> Phase:
        try:
            return self.admission.ticket(self.jobs[place]).phase
        except KeyError:
            return Phase.ENDED

    def state(self) -> object:
        """All that can be seen from outside."""
        admission = self.admission
        budgets = admission.held(), admission.running, admission.ledger.prefill_s
        lanes = [(admission.waiting(lane), admission.prefill_jobs(lane)) for lane in LANES]
        tickets = {
            place: [getattr(ticket, field.name) for field in fields(ticket)] for place, ticket in self.tickets.items()
        }
        phases = {place: self.phase(place) for place in self.jobs}
        return budgets, lanes, admission.queue.prefill_s, tickets, phases

    def end(self) -> list[str]:
        """Let all come to their end; the places of those that are dispatched on the way, in order."""
        order, place_of = [], {job: place for place, job in self.jobs.items()}
        while begun := [place for place in self.jobs if self.phase(place) not in (Phase.QUEUED, Phase.ENDED)]:
            order += [place_of[job] for job in self.admission.finish(self.jobs[begun[0]], 1.0)]
        assert self.admission.held() == {"seats": 0, "kv": 0, "short": 0, "long": 0}
        assert self.admission.running == self.admission.ledger.prefill_s == self.admission.queue.prefill_s == 0
        return order


def name_of(parameter: object) -> str:
    return parameter.__name__ if isinstance(parameter, type) else str(parameter)


def allowed(place: str, event: type) -> bool:
    phase, earlier = PLACES[place]
    if phase is Phase.ENDED:
        return event is events.Arrived  # nobody remembers what has ended
    return event in TRANSITIONS[phase] and (event is not events.EarlierSliceDone or earlier > 0)


EVERYTHING = list(product(PLACES, JOB_EVENTS))
REFUSED = [case for case in EVERYTHING if not allowed(*case)]
IN_THE_ENGINE = [
    place for place, (phase, _) in PLACES.items() if phase in (Phase.PREFILL, Phase.SCHEDULED, Phase.DECODE)
]
TOLD = [case for case in EVERYTHING if allowed(*case)]


@every_policy
def test_the_scene_has_a_job_in_each_place(new_policy: NewPolicy) -> None:
    scene = Scene(new_policy())
    assert {phase for phase, _ in PLACES.values()} == set(Phase)
    assert MAKE.keys() == set(JOB_EVENTS)
    assert scene.jobs.keys() == PLACES.keys()
    assert {place: scene.phase(place) for place in PLACES} == {place: phase for place, (phase, _) in PLACES.items()}
    assert all(ticket.earlier == PLACES[place][1] for place, ticket in scene.tickets.items())
    assert {"queued", "set aside"} <= set(scene.end())


@every_policy
@pytest.mark.parametrize(("place", "event"), REFUSED, ids=name_of)
def test_transitions_outside_the_table_are_refused_and_change_nothing(
    new_policy: NewPolicy, place: str, event: type[JobEvent]
) -> None:
    """After the refusal, all that there is comes to its end as if nothing had been said."""
    scene, undisturbed = Scene(new_policy()), Scene(new_policy())
    before = scene.state()
    with pytest.raises(KeyError):
        scene.tell(place, event)
    assert scene.state() == before
    assert scene.end() == undisturbed.end()


@every_policy
@pytest.mark.parametrize("place", [*IN_THE_ENGINE, "ended"])
def test_a_dispatched_job_is_not_dispatched_again(new_policy: NewPolicy, place: str) -> None:
    scene = Scene(new_policy())
    before = scene.state()
    with pytest.raises(KeyError):
        scene.admission.grant(scene.tickets[place])
    assert scene.state() == before


@every_policy
@pytest.mark.parametrize(("place", "event"), TOLD, ids=name_of)
def test_transitions_lead_to_the_phase_in_the_table(new_policy: NewPolicy, place: str, event: type[JobEvent]) -> None:
    scene = Scene(new_policy())
    phase, _ = PLACES[place]
    scene.tell(place, event)
    assert scene.phase(place) is (Phase.QUEUED if event is events.Arrived else after(phase, event))
    scene.end()


@every_policy
def test_dispatch_leads_where_the_table_says(new_policy: NewPolicy) -> None:
    scene = Scene(new_policy())
    places = [place for place, (phase, _) in PLACES.items() if events.Dispatched in TRANSITIONS[phase]]
    dispatched = scene.admission.set_limits(Limits(short_lane_tokens=10_000, long_lane_jobs=8))
    assert set(dispatched) == {scene.jobs[place] for place in places}
    for place in places:
        assert scene.phase(place) is after(PLACES[place][0], events.Dispatched) is Phase.PREFILL


# The table itself.


def reachable(start: Phase) -> set[Phase]:
    found, new = {start}, [start]
    while new:
        new = [phase for phase in TRANSITIONS[new.pop()].values() if phase not in found] + new
        found |= set(new)
    return found


def test_every_phase_can_be_reached_and_can_end() -> None:
    assert TRANSITIONS.keys() == set(Phase)
    assert reachable(Phase.QUEUED) == set(Phase)
    assert all(Phase.ENDED in reachable(phase) for phase in Phase)


def test_nothing_comes_after_the_end_and_nothing_is_queued_for_the_first_time_twice() -> None:
    assert TRANSITIONS[Phase.ENDED] == {}
    assert not any(following is Phase.QUEUED for table in TRANSITIONS.values() for following in table.values())


def test_the_table_has_every_event_of_a_job_but_its_arrival() -> None:
    told = {event for table in TRANSITIONS.values() for event in table}
    assert told == {*JOB_EVENTS, events.Dispatched} - {events.Arrived}


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, [*JOB_EVENTS, events.Dispatched])), ids=name_of)
def test_events_outside_the_table_have_no_next_phase(phase: Phase, event: type) -> None:
    if event in TRANSITIONS[phase]:
        assert after(phase, event) is TRANSITIONS[phase][event]
    else:
        with pytest.raises(KeyError):
            after(phase, event)


def test_the_diagram_has_each_change_of_phase_once() -> None:
    first, *lines = diagram().splitlines()
    assert first == "stateDiagram-v2"
    changes = [
        f"    {phase} --> {'[*]' if following is Phase.ENDED else following}: {event.__name__}"
        for phase, table in TRANSITIONS.items()
        for event, following in table.items()
        if following is not phase
    ]
    assert sorted(lines) == sorted(["    [*] --> queued: Arrived", *changes])
