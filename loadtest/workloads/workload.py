"""A named load: what it is, where it comes from, and how its plan is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from loadtest.workloads.plan import Plan


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file of a user's: what it is called, and what is in it."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say of a load; None leaves it as the workload has it.

    users     how many people, where people are simulated
    duration  seconds during which new work begins, where people are simulated
    rate      requests a second, where there is one
    dataset   conversations, where they are needed
    """

    seed: int
    users: int | None = None
    duration: float | None = None
    rate: float | None = None
    dataset: Dataset | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """`letter` is the article's; `title` says in one line what it asks of a server.

    loop  "closed": batches in lock-step, measured point by point; "open": arrivals on a timetable; "people":
          users with conversations, who wait for one answer before they ask for the next
    seed  of the article's runs, or the one that we publish
    note  what a reader of its figures has to know
    """

    name: str
    letter: str
    title: str
    loop: Literal["closed", "open", "people"]
    make: Callable[[Options], Plan]
    seed: int = 1
    note: str = ""

    def plan(self, options: Options | None = None) -> Plan:
        return self.make(options or Options(self.seed))
