"""Shortest prefill first, aged: the best mean wait, whoever asks.

Shortest job first, Smith, "Various optimizers for single-stage production" (1956), which alone starves long jobs; aged
as HRRN (Brinch Hansen, 1971) weighs waiting against cost, but linearly, so that the key never changes:

    key = arrival + AGING * predicted cost - head start

A job of cost k is passed only by what arrives within AGING * k seconds after it (and what has a head start on it), so
nothing waits for ever. There is no fairness in it: who sends many short jobs gets most of the engine.
"""

from policies.base import Job, aged
from policies.ordered import Ordered


class Shortest(Ordered):
    def key(self, job: Job) -> float:
        return aged(job)
