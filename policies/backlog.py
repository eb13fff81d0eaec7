"""An account whose jobs wait in an order of their own, by a key that never changes; of equal keys the first pushed."""

from bisect import bisect_left, insort
from typing import Self

from policies.base import LANES, Job, Lane
from policies.fair_queue import Account


class Backlog(Account):
    def __init__(self) -> None:
        super().__init__()
        self._queues: dict[Lane, list[tuple[float, int, Job]]] = {lane: [] for lane in LANES}

    def head(self, lane: Lane) -> Job | None:
        queue = self._queues[lane]
        return queue[0][2] if queue else None

    def add(self, job: Job, key: float, order: int) -> None:
        insort(self._queues[job.lane], (key, order, job))

    def take(self, lane: Lane) -> Job:
        return self._queues[lane].pop(0)[2]

    def drop(self, job: Job, key: float, order: int) -> None:
        queue = self._queues[job.lane]
        del queue[bisect_left(queue, (key, order), key=lambda entry: entry[:2])]

    def copy(self) -> Self:
        clone = super().copy()
        clone._queues = {lane: queue.copy() for lane, queue in self._queues.items()}
        return clone
