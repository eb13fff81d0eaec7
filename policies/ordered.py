"""Policies that order jobs by a key which never changes: a heap a lane."""

from abc import abstractmethod
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Self

from policies.base import LANES, Job, Lane, Policy

_Entry = tuple[float, int, Job]  # key, push order, job


class Ordered(Policy):
    """The smallest key goes first; of equal ones the first that came. O(log n) an operation.

    A removed job stays in its heap until it comes to the top, or until half of the heap is such.
    """

    def __init__(self) -> None:
        self._heaps: dict[Lane, list[_Entry]] = {lane: [] for lane in LANES}
        self._waiting: set[Job] = set()
        self._count = count()

    @abstractmethod
    def key(self, job: Job) -> float: ...

    def push(self, job: Job) -> None:
        self._waiting.add(job)
        heappush(self._heaps[job.lane], (self.key(job), next(self._count), job))

    def peek(self, lane: Lane) -> Job | None:
        heap = self._heaps[lane]
        while heap and heap[0][2] not in self._waiting:
            heappop(heap)
        return heap[0][2] if heap else None

    def pop(self, lane: Lane) -> Job:
        job = self.peek(lane)
        if job is None:
            raise IndexError(f"pop from an empty {lane} lane")
        self._waiting.remove(job)
        return job

    def remove(self, job: Job) -> None:
        self._waiting.remove(job)
        heap = self._heaps[job.lane]
        if len(heap) > 2 * len(self._waiting) + 16:
            heap[:] = [entry for entry in heap if entry[2] in self._waiting]
            heapify(heap)

    def copy(self) -> Self:
        clone = type(self)()
        clone._heaps = {lane: heap.copy() for lane, heap in self._heaps.items()}
        clone._waiting = self._waiting.copy()
        clone._count = count(next(self._count))
        return clone
