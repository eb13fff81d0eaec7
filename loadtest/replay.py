"""Decisions taken again: a gateway's decision log through the same admission and policy, without its clock."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from gateway.admission import Admission
from gateway.limits import Limits
from policies import POLICIES
from policies.base import Job, Lane


class Divergence(Exception):
    """What is decided now is not what the log says, or an event cannot be."""


class _Head(msgspec.Struct):
    policy: str
    limits: Limits


class _Event(msgspec.Struct):
    n: int
    event: Literal["arrive", "first_token", "finish", "leave"]
    job: int
    dispatched: list[int]
    held: dict[str, int]
    flow: str = ""
    lane: Lane = "short"
    tokens: int = 0
    cost: float = 0.0
    arrival: float = 0.0
    seats: int = 1


def replay(lines: Iterable[str], policy: str | None = None) -> int:
    """Take a log's decisions again, by its own policy or by another; the number of events.

    Raises Divergence at the first line that differs, ValueError for what is no decision log.
    """
    log = enumerate(lines, start=1)
    try:
        head = msgspec.json.decode(next(log)[1], type=_Head)
    except (StopIteration, msgspec.DecodeError) as error:
        raise ValueError(f"this is no decision log: {error}") from error
    admission = Admission(POLICIES[policy or head.policy](), head.limits)
    jobs: dict[int, Job] = {}
    number = 1
    for number, line in log:
        event = msgspec.json.decode(line, type=_Event)
        if event.n != number - 1:
            raise Divergence(f"line {number}: event {event.n}, where {number - 1} should be")
        if event.event == "arrive":
            jobs[event.job] = Job(
                event.flow, event.lane, event.tokens, event.cost, event.arrival, event.seats, str(event.job)
            )
        try:
            dispatched = [int(job.id) for job in _tell(admission, event, jobs[event.job])]
        except KeyError as error:
            raise Divergence(f"line {number}: {event.event} of job {event.job}, which is not in that phase") from error
        if dispatched != event.dispatched:
            raise Divergence(f"line {number}: the log lets go {event.dispatched}, now it is {dispatched}")
        if admission.held() != event.held:
            raise Divergence(f"line {number}: the log holds {event.held}, now it is {admission.held()}")
    return number - 1


def _tell(admission: Admission, event: _Event, job: Job) -> list[Job]:
    if event.event == "arrive":
        return admission.arrive(job)
    if event.event == "first_token":
        return admission.first_token(job)
    if event.event == "finish":
        return admission.finish(job, event.cost)
    return admission.leave(job)
