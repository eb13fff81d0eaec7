"""What admission can be told of: the one way in, for the gateway, the simulator and whoever replays a log."""

from dataclasses import dataclass
from typing import Literal

from gateway.scheduling.admission import Admission
from gateway.scheduling.ledger import Slice
from gateway.scheduling.limits import Limits
from policies import find
from policies.base import Job

Kind = Literal["arrive", "slice_done", "first_token", "progress", "finish", "leave", "relimit", "use", "correct"]


@dataclass(frozen=True, slots=True)
class Correction:
    """What the engine's own metrics say, beside the gateway's ledger."""

    kv_scale: float = 1.0
    external_seats: int = 0
    external_kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """Of a job: what `gateway.scheduling.admission` calls by that name. Of none: new limits, another policy, a
    correction."""

    kind: Kind
    job: Job | None = None
    cost: float | None = None
    kv_tokens: int | None = None
    part: Slice | None = None
    limits: Limits | None = None
    policy: str | None = None
    correction: Correction | None = None
    max_tokens: int | None = None  # of an arrival: the longest answer
    output_tokens: int | None = None  # of a finish: the answer, if it came to its end
    guessed: bool | None = None  # of a first token, or a slice: nobody saw it, it is taken to have come


def tell(admission: Admission, event: Event) -> list[Job]:
    """Let it happen; the jobs to let go now, in order. Raises KeyError for a job that is not in that phase."""
    match event:
        case Event(kind="arrive", job=Job() as job):
            return admission.arrive(job, event.part)
        case Event(kind="slice_done", job=Job() as job, part=Slice() as part):
            return admission.slice_done(job, part)
        case Event(kind="first_token", job=Job() as job):
            return admission.first_token(job)
        case Event(kind="progress", job=Job() as job, cost=float() | int() as cost, kv_tokens=int(kv_tokens)):
            return admission.progress(job, cost, kv_tokens)
        case Event(kind="finish", job=Job() as job, cost=float() | int() as cost):
            return admission.finish(job, cost)
        case Event(kind="leave", job=Job() as job):
            return admission.leave(job)
        case Event(kind="relimit", limits=Limits() as limits):
            return admission.relimit(limits)
        case Event(kind="use", policy=str(name)):
            return admission.use(find(name)())
        case Event(kind="correct", correction=Correction() as seen):
            return admission.correct(
                kv_scale=seen.kv_scale,
                external_seats=seen.external_seats,
                external_kv_tokens=seen.external_kv_tokens,
            )
    raise ValueError(f"an incomplete event: {event}")
