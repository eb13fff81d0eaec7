"""What admission can be told: the one way in, for the gateway, the simulator and the replay of a decision log."""

import re
from dataclasses import dataclass
from typing import get_args

from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Slice
from policies.base import Job


@dataclass(frozen=True, slots=True)
class Arrived:
    """`slice` is the first one, if its prompt is prefilled in slices; `max_tokens` the longest answer it asks for."""

    job: Job
    slice: Slice | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Admission's own answer. Nobody tells it of this one; it has a place in the table of transitions."""

    job: Job


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The engine has scheduled all that it was sent of this job, which comes before the first token."""

    job: Job


@dataclass(frozen=True, slots=True)
class Requeued:
    """The job waits for its next slice while the engine still computes the one before it."""

    job: Job
    slice: Slice


@dataclass(frozen=True, slots=True)
class SliceDone:
    """A slice is prefilled, and the job waits for the next one, which is `slice`. `observed` is False where nobody saw
    it done."""

    job: Job
    slice: Slice
    observed: bool = True


@dataclass(frozen=True, slots=True)
class EarlierSliceDone:
    """A slice is prefilled whose successor was queued, or sent, before."""

    job: Job


@dataclass(frozen=True, slots=True)
class FirstToken:
    """`observed` is False where nobody saw it come, and it is taken to have come."""

    job: Job
    observed: bool = True


@dataclass(frozen=True, slots=True)
class Progressed:
    """A running job has come to `cost_s` engine seconds, and fills or will fill `kv_tokens` of the cache."""

    job: Job
    cost_s: float
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is out of the engine, however it ended.

    cost_s         engine seconds that it is charged
    output_tokens  of each of its answers, if they came to their end
    """

    job: Job
    cost_s: float
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """Out of the queue without having been served: its client left, it waited too long, or the gateway drains."""

    job: Job


@dataclass(frozen=True, slots=True)
class LimitsChanged:
    limits: Limits


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """`policy` is a name, as `policies.find` knows it."""

    policy: str


@dataclass(frozen=True, slots=True)
class Corrected:
    """What the engine's own metrics say beside the ledger.

    kv_scale                          share of our reservations that is in use
    external_seats, external_kv_tokens  what others use of the engine
    """

    kv_scale: float = 1.0
    external_seats: int = 0
    external_kv_tokens: int = 0


JobEvent = Arrived | Scheduled | Requeued | SliceDone | EarlierSliceDone | FirstToken | Progressed | Finished | Left
Event = JobEvent | LimitsChanged | PolicyChanged | Corrected

EVENTS: tuple[type[Event], ...] = get_args(Event)


def event_name(event: type) -> str:
    """As logs have it: `SliceDone` is slice_done."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", event.__name__).lower()
