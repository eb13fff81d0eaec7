"""Who is next: what every queue policy is given, and what it answers.

A policy orders the jobs that wait in two lanes. It decides nothing about room (`gateway.admission` does),
reads no clock, and never drops a job: what was pushed is popped or removed, once.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

Lane = Literal["short", "long"]
LANES: tuple[Lane, ...] = get_args(Lane)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request as the scheduler sees it. Two jobs are the same only if they are the same object.

    flow     whose turn it takes: the user
    lane     which way into prefill it goes; fixed on arrival
    tokens   uncached prompt tokens that the engine must prefill
    cost     predicted prefill, in engine seconds
    arrival  seconds on the driver's clock; policies compare arrivals, they never ask what time it is
    seats    sequences in the engine: prompts times `n`
    """

    flow: str
    lane: Lane
    tokens: int
    cost: float
    arrival: float
    seats: int = 1
    id: str = field(default="", repr=True)


class Policy(Protocol):
    """The seam. `tests/policies/test_conformance.py` holds every implementation to it.

    `peek` names the job that is next in a lane and changes nothing; `pop` takes that very job and charges its
    flow what was predicted; `settle` corrects a popped job's charge to `cost`, the engine seconds it came to,
    once, at its end. `remove` takes out a job that leaves unserved; nothing is charged for it.
    """

    def push(self, job: Job) -> None: ...

    def peek(self, lane: Lane) -> Job | None: ...

    def pop(self, lane: Lane) -> Job: ...

    def remove(self, job: Job) -> None: ...

    def settle(self, job: Job, cost: float) -> None: ...

    def waiting(self, lane: Lane) -> int: ...
