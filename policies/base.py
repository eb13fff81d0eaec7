"""Who is next: what every queue policy is given, and what it answers.

A policy orders the jobs that wait in two lanes. It decides nothing about room (`gateway.scheduling.admission` does),
reads no clock, and never drops a job: what was pushed is popped or removed, once.
"""

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Self, get_args

Lane = Literal["short", "long"]
LANES: tuple[Lane, ...] = get_args(Lane)

# Seconds of waiting that make up for one second of cost, as HRRN's response ratio weighs them.
AGING = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request as the scheduler sees it. Two jobs are the same only if they are the same object.

    flow        whose turn it takes: the user
    lane        which way into prefill it goes; fixed on arrival
    tokens      uncached prompt tokens that the engine must prefill
    cost        predicted prefill, in engine seconds
    arrival     seconds on the driver's clock; policies compare arrivals, they never ask what time it is
    seats       sequences in the engine: prompts times `n`
    kv_tokens   tokens of cache that it is expected to fill, prompt and answer
    session     a conversation or an agent inside the flow, which shares the flow's part
    weight      of the flow: twice the weight, twice the part
    head_start  priority: as if its flow had been charged so many engine seconds less
    deadline    when its first token should be there, on the driver's clock
    flow_in_flight, flow_queued  caps of its flow, instead of those that hold for all; no policy need know them
    """

    flow: str
    lane: Lane
    tokens: int
    cost: float
    arrival: float
    seats: int = 1
    id: str = ""
    kv_tokens: int = 0
    session: str = ""
    weight: float = 1.0
    head_start: float = 0.0
    deadline: float = inf
    flow_in_flight: int | None = None
    flow_queued: int | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A job is what it is: the copy of a queue holds the same ones."""
        return self


def aged(job: Job) -> float:
    """Shortest first with aging, as a key that never changes: the least goes first."""
    return job.arrival + AGING * job.cost - job.head_start


class Policy(ABC):
    """The seam. `tests/policies/test_conformance.py` holds every implementation to it.

    A job is pushed once and leaves once, by `pop` or by `remove`. `charge` and `settle` are told of popped jobs only.
    """

    @abstractmethod
    def push(self, job: Job) -> None:
        """The job waits, in its lane."""

    @abstractmethod
    def peek(self, lane: Lane) -> Job | None:
        """The job that is next in a lane, None if nobody waits there. Changes nothing."""

    @abstractmethod
    def pop(self, lane: Lane) -> Job:
        """Take the very job that `peek` names. Its flow is charged what was predicted. IndexError if there is none."""

    @abstractmethod
    def remove(self, job: Job) -> None:
        """Take out a job that leaves unserved. Nothing is charged for it."""

    def charge(self, job: Job, cost: float) -> None:  # noqa: B027  # who charges nobody need not say so
        """What a popped job has come to so far, in engine seconds, instead of what it was charged before."""

    def settle(self, job: Job, cost: float) -> None:  # noqa: B027
        """The same for the last time: the job has ended."""

    def copy(self) -> Self:
        """The same jobs in the same state, for whoever wants to know what would happen. Jobs are shared."""
        return deepcopy(self)
