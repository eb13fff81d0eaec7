"""Whose turn it is: accounts (flows, users, sessions of a user) by what they were charged, a heap a lane.

    tag of an account  += amount            when it is charged; less, when a charge was too high
    tag on return    = max(tag, v)       v = the least tag among the backlogged; when none is, the last start tag

Time spent away earns no credit: that is the lift (VTC, Sheng et al., OSDI 2024). A policy says where an account stands
by its tag and its next job, and among equals the smallest `turn` goes first. O(log n) an operation, amortised: an
entry of a heap that no longer holds stays until it comes to the top, or until half of the heap is such.
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
        self.accounts: dict[str, P] = {}
        self._standing = standing
        self._heaps: dict[Lane, list[tuple[float, int, int, int, P]]] = {lane: [] for lane in LANES}
        # Of the backlogged. An entry's tag may be too low, never too high.
        self._tags: list[tuple[float, int, P]] = []
        self._last_start = 0.0
        self._forget_at = 2 * MAX_IDLE
        self._entries = count()
        self._joined = 0
        self.clean_ups = 0  # how often the idle were looked for

    def account(self, name: str) -> P | None:
        return self.accounts.get(name)

    def join(self, name: str, account: P) -> P:
        if len(self.accounts) >= self._forget_at:
            self._forget_idle()
        self.accounts[name] = account
        account.joined = self._joined
        self._joined += 1
        return account

    def first(self, lane: Lane) -> P | None:
        heap = self._heaps[lane]
        while heap and not _holds(heap[0], lane):
            heappop(heap)
        return heap[0][-1] if heap else None

    def lift(self, account: P) -> None:
        """An account is about to get a job. If it had none, it starts where the others are."""
        if not account.backlogged:
            account.tag = max(account.tag, self.virtual_time())
            self._note(account)

    def rank(self, account: P, lane: Lane) -> None:
        """Put the account where it belongs now."""
        head = account.head(lane)
        entry = account.entries[lane] = next(self._entries)
        if head is None:
            return
        heap = self._heaps[lane]
        heappush(heap, (self._standing(account, head), account.turn, account.joined, entry, account))
        if len(heap) > 2 * len(self.accounts) + 16:
            heap[:] = [each for each in heap if _holds(each, lane)]
            heapify(heap)

    def serve(self, account: P, amount: float) -> None:
        self._last_start = max(self._last_start, account.tag)
        account.in_flight += 1
        self.charge(account, amount)

    def charge(self, account: P, amount: float) -> None:
        account.tag += amount
        if amount < 0:
            self._note(account)
        for lane in LANES:
            self.rank(account, lane)

    def virtual_time(self) -> float:
        tags = self._tags
        while tags:
            tag, entry, account = tags[0]
            if entry != account.tag_entry or not account.backlogged:
                heappop(tags)
            elif tag < account.tag:
                account.tag_entry = next(self._entries)
                heapreplace(tags, (account.tag, account.tag_entry, account))
            else:
                return tag
        return self._last_start

    @property
    def largest_heap(self) -> int:
        """Entries, those that no longer hold included."""
        return max(len(self._tags), *(len(heap) for heap in self._heaps.values()))

    def copy(self) -> Self:
        clone = type(self)(self._standing)
        clone._last_start = self._last_start
        clone._forget_at = self._forget_at
        clone._joined = self._joined
        for name, original in self.accounts.items():
            account = clone.accounts[name] = original.copy()
            clone._note(account)
            for lane in LANES:
                clone.rank(account, lane)
        return clone

    def _note(self, account: P) -> None:
        tags = self._tags
        account.tag_entry = next(self._entries)
        heappush(tags, (account.tag, account.tag_entry, account))
        if len(tags) > 2 * len(self.accounts) + 16:
            tags[:] = [each for each in tags if each[1] == each[2].tag_entry]
            heapify(tags)

    def _forget_idle(self) -> None:
        self.clean_ups += 1
        idle = sorted((account.tag, name) for name, account in self.accounts.items() if account.idle)
        for _, name in idle[: max(0, len(idle) - MAX_IDLE)]:
            del self.accounts[name]
        # Where most are busy, not to look again at every newcomer.
        self._forget_at = 2 * max(MAX_IDLE, len(self.accounts))


def _holds(entry: tuple[float, int, int, int, Account], lane: Lane) -> bool:
    return entry[4].entries[lane] == entry[3]
