"""Whose turn it is: parties (flows, users, sessions of a user) by what they were charged, a heap a lane.

    tag of a party  += amount            when it is charged; less, when a charge was too high
    tag on return    = max(tag, v)       v = the least tag among the backlogged; when none is, the last start tag

Time spent away earns no credit: that is the lift (VTC, Sheng et al., OSDI 2024). A policy says where a party stands by
its tag and its next job, and among equals the smallest `turn` goes first. O(log n) an operation, amortised: an entry
of a heap that no longer holds stays until it comes to the top, or until half of the heap is such.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Generic, Self, TypeVar

from policies.base import LANES, Job, Lane

# Parties that are idle yet remembered. Past twice as many the smallest debts are forgiven, so that state stays bounded
# however many come by once.
MAX_IDLE = 1024


class Account(ABC):
    """Who takes turns.

    tag        engine seconds charged, over the weight
    turn       among equals, whose is the smallest goes first; then, who joined first
    in_flight  its jobs that were popped and are not settled
    """

    def __init__(self) -> None:
        self.tag = 0.0
        self.turn = -1
        self.in_flight = 0
        self.joined = 0
        # Which entry of each heap is the one that holds.
        self.entries: dict[Lane, int] = {}
        self.tag_entry = -1

    @abstractmethod
    def head(self, lane: Lane) -> Job | None: ...

    @property
    def backlogged(self) -> bool:
        return any(self.head(lane) for lane in LANES)

    @property
    def idle(self) -> bool:
        return not self.in_flight and not self.backlogged

    def copy(self) -> Self:
        clone = type(self)()
        clone.tag, clone.turn, clone.in_flight, clone.joined = self.tag, self.turn, self.in_flight, self.joined
        return clone


P = TypeVar("P", bound=Account)


class FairQueue(Generic[P]):
    def __init__(self, standing: Callable[[Account, Job], float]) -> None:
        self.parties: dict[str, P] = {}
        self._standing = standing
        self._heaps: dict[Lane, list[tuple[float, int, int, int, P]]] = {lane: [] for lane in LANES}
        # Of the backlogged. An entry's tag may be too low, never too high.
        self._tags: list[tuple[float, int, P]] = []
        self._last_start = 0.0
        self._forget_at = 2 * MAX_IDLE
        self._entries = count()
        self._joined = 0

    def party(self, name: str) -> P | None:
        return self.parties.get(name)

    def join(self, name: str, party: P) -> P:
        if len(self.parties) >= self._forget_at:
            self._forget_idle()
        self.parties[name] = party
        party.joined = self._joined
        self._joined += 1
        return party

    def first(self, lane: Lane) -> P | None:
        heap = self._heaps[lane]
        while heap and not _holds(heap[0], lane):
            heappop(heap)
        return heap[0][-1] if heap else None

    def lift(self, party: P) -> None:
        """A party is about to get a job. If it had none, it starts where the others are."""
        if not party.backlogged:
            party.tag = max(party.tag, self.virtual_time())
            self._note(party)

    def rank(self, party: P, lane: Lane) -> None:
        """Put the party where it belongs now."""
        head = party.head(lane)
        entry = party.entries[lane] = next(self._entries)
        if head is None:
            return
        heap = self._heaps[lane]
        heappush(heap, (self._standing(party, head), party.turn, party.joined, entry, party))
        if len(heap) > 2 * len(self.parties) + 16:
            heap[:] = [each for each in heap if _holds(each, lane)]
            heapify(heap)

    def serve(self, party: P, amount: float) -> None:
        self._last_start = max(self._last_start, party.tag)
        party.in_flight += 1
        self.charge(party, amount)

    def charge(self, party: P, amount: float) -> None:
        party.tag += amount
        if amount < 0:
            self._note(party)
        for lane in LANES:
            self.rank(party, lane)

    def virtual_time(self) -> float:
        tags = self._tags
        while tags:
            tag, entry, party = tags[0]
            if entry != party.tag_entry or not party.backlogged:
                heappop(tags)
            elif tag < party.tag:
                party.tag_entry = next(self._entries)
                heapreplace(tags, (party.tag, party.tag_entry, party))
            else:
                return tag
        return self._last_start

    def copy(self) -> Self:
        clone = type(self)(self._standing)
        clone._last_start = self._last_start
        clone._forget_at = self._forget_at
        clone._joined = self._joined
        for name, original in self.parties.items():
            party = clone.parties[name] = original.copy()
            clone._note(party)
            for lane in LANES:
                clone.rank(party, lane)
        return clone

    def _note(self, party: P) -> None:
        tags = self._tags
        party.tag_entry = next(self._entries)
        heappush(tags, (party.tag, party.tag_entry, party))
        if len(tags) > 2 * len(self.parties) + 16:
            tags[:] = [each for each in tags if each[1] == each[2].tag_entry]
            heapify(tags)

    def _forget_idle(self) -> None:
        idle = sorted((party.tag, name) for name, party in self.parties.items() if party.idle)
        for _, name in idle[: max(0, len(idle) - MAX_IDLE)]:
            del self.parties[name]
        # Where most are busy, not to look again at every newcomer.
        self._forget_at = 2 * max(MAX_IDLE, len(self.parties))


def _holds(entry: tuple[float, int, int, int, Account], lane: Lane) -> bool:
    return entry[4].entries[lane] == entry[3]
