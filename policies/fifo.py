"""First come, first served, in each lane: the baseline every other policy is measured against.

vLLM's own waiting queue is this with one lane (`--scheduling-policy fcfs`).
"""

from policies.base import Job
from policies.ordered import Ordered


class Fifo(Ordered):
    def key(self, job: Job) -> float:
        return job.arrival
