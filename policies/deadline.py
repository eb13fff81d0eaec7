"""Earliest deadline first.

Liu, Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment" (JACM 1973): if any order
meets all deadlines, this one does. When the engine is overloaded no order does, and this one then misses many.

    key = deadline - head start,  where a job without one counts as due SLACK seconds after its arrival

so that a job without a deadline is passed only by what comes in time to be due before it, and nothing waits for ever.
"""

from math import isinf

from policies.base import Job
from policies.ordered import Ordered

# Seconds. How long somebody at a chat window waits for the first token before they look elsewhere, roughly.
SLACK = 30.0


class Deadline(Ordered):
    def key(self, job: Job) -> float:
        due = job.arrival + SLACK if isinf(job.deadline) else job.deadline
        return due - job.head_start
