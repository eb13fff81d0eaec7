"""First come, first served, in each lane: the baseline every other policy is measured against.

vLLM's own waiting queue is this with one lane (`--scheduling-policy fcfs`).
"""

from policies.base import LANES, Job, Lane


class Fifo:
    def __init__(self) -> None:
        # A dict keeps insertion order and removes from the middle in O(1).
        self._lanes: dict[Lane, dict[Job, None]] = {lane: {} for lane in LANES}

    def push(self, job: Job) -> None:
        self._lanes[job.lane][job] = None

    def peek(self, lane: Lane) -> Job | None:
        return next(iter(self._lanes[lane]), None)

    def pop(self, lane: Lane) -> Job:
        job = self.peek(lane)
        if job is None:
            raise IndexError(f"pop from an empty {lane} lane")
        del self._lanes[lane][job]
        return job

    def remove(self, job: Job) -> None:
        del self._lanes[job.lane][job]

    def settle(self, job: Job, cost: float) -> None:
        """Nobody is charged here, so there is nothing to correct."""

    def waiting(self, lane: Lane) -> int:
        return len(self._lanes[lane])
