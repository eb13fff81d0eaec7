"""Deficit round robin over flows, in engine seconds.

Shreedhar, Varghese, "Efficient Fair Queuing using Deficit Round Robin" (SIGCOMM 1995; ToN 1996). In every round a
flow is given QUANTUM * weight engine seconds. At its turn it sends jobs, first come first served, while its deficit
covers them; what is left it keeps, what it has used beyond (a job that came to more than predicted) it owes.

    deficit_f            = (rounds * QUANTUM - used_f) * weight_f
    used_f at dispatch  += predicted cost / weight_f
    used_f later        += (cost so far - what was charged) / weight_f
    round of f's head    = ceil((used_f + its cost / weight_f - its head start) / QUANTUM)

The head with the smallest round goes first, and in one round the flows take their turns in the order in which they
came. Inside a flow the order is that of arrival, head starts counted. That is what the paper's loop does, without the
loop: nobody is handed quanta one by one, and so `peek` changes nothing, and rounds in which no head is affordable take
no time. (Dynamo's router computes the same rounds and adds them to each class.) A decision is O(log flows).

The paper empties the deficit of a flow that has nothing to send. Here, since used_f serves both lanes and a debt
must not be dropped with it: used_f on return = max(used_f, the least used_f among the backlogged).

Of two flows that use one lane, as do all others, and are both backlogged, neither gets further ahead of the other than
a quantum and the largest job of anybody, over the weight; head starts and what is unsettled come on top. Against
`fair`: bursts of up to a quantum for each user, and no sessions.
"""

from itertools import count
from math import ceil
from typing import Self

from policies.backlog import Backlog
from policies.base import Job, Lane, Policy
from policies.fair_queue import Account, FairQueue

# Engine seconds a round: some short prompts on a Spark, a good part of a long one.
QUANTUM = 1.0


class Drr(Policy):
    def __init__(self) -> None:
        self.flows: FairQueue[Backlog] = FairQueue(
            _round
        )  # a tag is what the flow has used, a turn its place in the ring
        self._pushed: dict[Job, int] = {}
        self._charged: dict[Job, float] = {}
        self._count = count()

    def push(self, job: Job) -> None:
        flow = self.flows.account(job.flow) or self.flows.join(job.flow, Backlog())
        order = self._pushed[job] = next(self._count)
        if not flow.backlogged:
            flow.turn = order
        self.flows.lift(flow)
        flow.add(job, _key(job), order)
        self.flows.rank(flow, job.lane)

    def peek(self, lane: Lane) -> Job | None:
        flow = self.flows.first(lane)
        return flow.head(lane) if flow else None

    def pop(self, lane: Lane) -> Job:
        flow = self.flows.first(lane)
        if flow is None:
            raise IndexError(f"pop from an empty {lane} lane")
        job = flow.take(lane)
        del self._pushed[job]
        self._charged[job] = job.cost
        self.flows.serve(flow, job.cost / job.weight)
        return job

    def remove(self, job: Job) -> None:
        flow = self.flows.accounts[job.flow]
        flow.drop(job, _key(job), self._pushed.pop(job))
        self.flows.rank(flow, job.lane)

    def charge(self, job: Job, cost: float) -> None:
        more = cost - self._charged[job]
        self._charged[job] = cost
        self.flows.charge(self.flows.accounts[job.flow], more / job.weight)

    def settle(self, job: Job, cost: float) -> None:
        self.charge(job, cost)
        del self._charged[job]
        self.flows.accounts[job.flow].in_flight -= 1

    def copy(self) -> Self:
        clone = type(self)()
        clone.flows = self.flows.copy()
        clone._pushed = self._pushed.copy()
        clone._charged = self._charged.copy()
        clone._count = count(next(self._count))
        return clone


def _key(job: Job) -> float:
    return job.arrival - job.head_start


def _round(flow: Account, head: Job) -> float:
    """The round in which the flow's deficit covers its head."""
    # Less a hair, for a sum of floats that should come to whole quanta may lie above.
    return ceil((flow.tag + head.cost / head.weight - head.head_start) / QUANTUM - 1e-9)
