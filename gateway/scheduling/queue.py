"""Who waits: the policy's queue, and what no policy has to know of.

A job whose prefill comes in slices stands before the policy's choice between them: what has begun goes on before
something else starts, so that equal jobs end one after the other and not all at the end. But it cannot hold off a much
shorter one: the policy's choice passes if it costs at most a quarter of what is left of the job that has begun, until
those who have passed come to as much as was left; so a job that has begun takes at most twice as long for their sake.
A job of a flow that has `flow_in_flight` in the engine is set aside when it comes to the head,
until one of its flow's jobs has ended; the flow is charged for what runs, and earns no credit in the meantime.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from gateway.outcome import Outcome
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Ticket
from policies.base import LANES, Job, Lane, Policy

# What passes a job that has begun: at most this share of what is left of it.
MUCH_SHORTER = 0.25

Tickets = dict[Job, Ticket]


@dataclass(slots=True)
class _Flow:
    queued: int = 0  # never dispatched
    in_flight: int = 0  # in the engine, or between slices


class JobQueue:
    """`prefill_s` is the prefill that waits and has not begun, in engine seconds."""

    def __init__(self, policy: Policy, limits: Limits) -> None:
        self.policy = policy
        self.limits = limits
        self.prefill_s = 0.0
        self._queued: Tickets = {}  # never dispatched, in order of arrival
        self._queued_in: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._requeued: dict[Lane, Tickets] = {lane: {} for lane in LANES}
        self._set_aside: dict[str, deque[Job]] = {}
        self._flows: dict[str, _Flow] = {}

    def waiting(self, lane: Lane) -> int:
        return self._queued_in[lane] + len(self._requeued[lane])

    def rejects(self, job: Job) -> Outcome | None:
        limits, flow = self.limits, self._flows.get(job.flow, _Flow())
        cap = limits.queued(job)
        if cap is not None and flow.queued >= cap:
            return Outcome.USER_LIMIT
        if limits.max_queued is not None and len(self._queued) >= limits.max_queued:
            return Outcome.QUEUE_FULL
        # Behind nobody, any job may wait: its own size is not what the limit is about.
        if limits.max_queued_s is not None and self._queued and self.prefill_s + job.cost > limits.max_queued_s:
            return Outcome.QUEUE_FULL
        return None

    def enqueue(self, ticket: Ticket) -> None:
        job = ticket.job
        self._queued[job] = ticket
        self._queued_in[job.lane] += 1
        self.prefill_s += job.cost
        self._flows.setdefault(job.flow, _Flow()).queued += 1
        self.policy.push(job)

    def head(self, lane: Lane, could_go: Callable[[Ticket], bool] = lambda ticket: True) -> Ticket | None:
        """Who is next. What has begun is passed only by who `could_go` now: nobody waits in front of it."""
        requeued, choice = self._requeued[lane].values(), self._choice(lane)
        if not requeued:
            return choice
        first = min(requeued, key=lambda ticket: ticket.remaining_s)
        return choice if choice and self._may_pass(choice, first) and could_go(choice) else first

    def dispatch(self, ticket: Ticket) -> None:
        """The head of a lane goes."""
        job = ticket.job
        if ticket.begun:
            del self._requeued[job.lane][job]
            return
        for other in self._requeued[job.lane].values():
            other.may_pass_s = (other.may_pass_s or 0.0) - job.cost
        self.policy.pop(job.lane)
        ticket.charged_by = self.policy
        self._remove(job)
        self._flows[job.flow].in_flight += 1

    def requeue(self, ticket: Ticket) -> None:
        """It waits for its next slice."""
        ticket.remaining_s = ticket.slice.cost_s + ticket.slice.rest_s
        if ticket.may_pass_s is None:
            ticket.may_pass_s = ticket.remaining_s
        self._requeued[ticket.job.lane][ticket.job] = ticket

    def leave(self, ticket: Ticket) -> None:
        """Unserved."""
        job = ticket.job
        self._remove(job)
        set_aside = self._set_aside.get(job.flow)
        if set_aside and job in set_aside:
            set_aside.remove(job)
        else:
            self.policy.remove(job)
        self._forget(job.flow)

    def charge(self, ticket: Ticket, cost_s: float) -> None:
        if ticket.charged_by is not None:
            ticket.charged_by.charge(ticket.job, cost_s)

    def complete(self, ticket: Ticket, cost_s: float) -> None:
        """A job that was dispatched has ended, in the engine or between slices."""
        job = ticket.job
        self._requeued[job.lane].pop(job, None)
        self._flows[job.flow].in_flight -= 1
        # First, for a policy may forget what it knows of a flow that has nothing waiting and nothing running.
        self._call_back(job.flow)
        if ticket.charged_by is not None:
            ticket.charged_by.settle(job, cost_s)
        self._forget(job.flow)

    def set_limits(self, limits: Limits) -> None:
        self.limits = limits
        for flow in list(self._set_aside):
            self._call_back(flow)

    def set_policy(self, policy: Policy) -> None:
        """Who waits goes on waiting; who runs is settled by the policy that dispatched them."""
        for job in self._queued:
            if job not in self._set_aside.get(job.flow, ()):
                policy.push(job)
        self.policy = policy

    def copy(self, tickets: Tickets) -> Self:
        """`tickets` are copies of all there are, which the copy takes for its own."""
        clone = type(self)(self.policy.copy(), self.limits)
        clone.prefill_s = self.prefill_s
        clone._queued = {job: tickets[job] for job in self._queued}
        clone._queued_in = self._queued_in.copy()
        clone._requeued = {lane: {job: tickets[job] for job in jobs} for lane, jobs in self._requeued.items()}
        clone._set_aside = {name: jobs.copy() for name, jobs in self._set_aside.items()}
        clone._flows = {name: replace(flow) for name, flow in self._flows.items()}
        policies = {id(self.policy): clone.policy}
        for ticket in tickets.values():
            if (policy := ticket.charged_by) is not None:
                if id(policy) not in policies:
                    policies[id(policy)] = policy.copy()
                ticket.charged_by = policies[id(policy)]
        return clone

    def _remove(self, job: Job) -> None:
        """It is no longer among those that never went."""
        del self._queued[job]
        self._queued_in[job.lane] -= 1
        self._flows[job.flow].queued -= 1
        self.prefill_s = self.prefill_s - job.cost if self._queued else 0.0

    def _choice(self, lane: Lane) -> Ticket | None:
        """The policy's, of those whose flow is not at its cap."""
        while (job := self.policy.peek(lane)) and self._at_cap(job):
            self.policy.remove(job)
            self._set_aside.setdefault(job.flow, deque()).append(job)
        return self._queued[job] if job else None

    def _may_pass(self, choice: Ticket, first: Ticket) -> bool:
        cost_s = choice.job.cost
        if cost_s > MUCH_SHORTER * first.remaining_s:
            return False
        return all(cost_s <= (other.may_pass_s or 0.0) for other in self._requeued[choice.job.lane].values())

    def _at_cap(self, job: Job) -> bool:
        cap = self.limits.in_flight(job)
        return cap is not None and self._flows[job.flow].in_flight >= cap

    def _call_back(self, flow: str) -> None:
        """Let the flow's jobs stand in line again, if its cap allows one more: which one is the policy's choice."""
        set_aside = self._set_aside.get(flow)
        if not set_aside or not self._at_cap(set_aside[-1]):
            for job in self._set_aside.pop(flow, ()):
                self.policy.push(job)

    def _forget(self, name: str) -> None:
        flow = self._flows[name]
        if not flow.queued and not flow.in_flight:
            del self._flows[name]
