"""Decisions taken again: a gateway's decision log through the same admission and policy, without its clock."""

from collections.abc import Iterable
from math import inf

import msgspec

from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Correction, Event, Kind, tell
from gateway.scheduling.ledger import Slice
from gateway.scheduling.limits import Limits
from policies import find
from policies.base import Job, Lane


class Divergence(Exception):
    """What is decided now is not what the log says, or an event cannot be."""


class _Head(msgspec.Struct):
    policy: str
    limits: Limits


class _Line(msgspec.Struct):
    n: int
    event: Kind
    dispatched: list[int]
    held: dict[str, int]
    job: int | None = None
    cost: float | None = None
    kv_tokens: int | None = None
    part: Slice | None = None
    limits: Limits | None = None
    policy: str | None = None
    correction: Correction | None = None
    max_tokens: int | None = None
    output_tokens: int | None = None
    guessed: bool | None = None
    # Of a job that arrives.
    flow: str = ""
    lane: Lane = "short"
    tokens: int = 0
    arrival: float = 0.0
    seats: int = 1
    session: str = ""
    weight: float = 1.0
    head_start: float = 0.0
    deadline: float | None = None
    flow_in_flight: int | None = None
    flow_queued: int | None = None

    def new_job(self) -> Job:
        return Job(
            flow=self.flow,
            lane=self.lane,
            tokens=self.tokens,
            cost=self.cost or 0.0,
            arrival=self.arrival,
            seats=self.seats,
            id=str(self.job),
            kv_tokens=self.kv_tokens or 0,
            session=self.session,
            weight=self.weight,
            head_start=self.head_start,
            deadline=inf if self.deadline is None else self.deadline,
            flow_in_flight=self.flow_in_flight,
            flow_queued=self.flow_queued,
        )


def replay(lines: Iterable[str], policy: str | None = None) -> int:
    """Take a log's decisions again, by its own policy or by another; the number of events.

    Raises Divergence at the first line that differs, ValueError for what is no decision log.
    """
    log = enumerate(lines, start=1)
    try:
        head = msgspec.json.decode(next(log)[1], type=_Head)
    except (StopIteration, msgspec.DecodeError) as error:
        raise ValueError(f"this is no decision log: {error}") from error
    admission = Admission(find(policy or head.policy)(), head.limits)
    jobs: dict[int | None, Job | None] = {None: None}
    number = 1
    for number, text in log:
        line = msgspec.json.decode(text, type=_Line)
        if line.n != number - 1:
            raise Divergence(f"line {number}: event {line.n}, where {number - 1} should be")
        if line.event == "arrive":
            jobs[line.job] = line.new_job()
        if line.event == "use" and policy is not None:
            continue
        try:
            event = Event(
                line.event,
                jobs[line.job],
                line.cost,
                line.kv_tokens,
                line.part,
                line.limits,
                line.policy,
                line.correction,
            )
            dispatched = [int(job.id) for job in tell(admission, event)]
        except KeyError as error:
            raise Divergence(f"line {number}: {line.event} of job {line.job}, which is not in that phase") from error
        if dispatched != line.dispatched:
            raise Divergence(f"line {number}: the log lets go {line.dispatched}, now it is {dispatched}")
        if admission.held() != line.held:
            raise Divergence(f"line {number}: the log holds {line.held}, now it is {admission.held()}")
    return number - 1
