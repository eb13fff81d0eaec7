"""Who waits: the policy's queue, and what no policy has to know of.

A job whose prefill comes in slices stands before the policy's choice between them: what has begun goes on before
something else starts, so that equal jobs end one after the other and not all at the end. But it cannot hold off a much
shorter one: the policy's choice passes if it costs at most a quarter of what is left of the job that has begun, until
those who have passed come to as much as was left; so a job that has begun takes at most twice as long for their sake.
A job of a flow that has `flow_in_flight` in the engine steps aside when it comes to the head,
until one of its flow's jobs has ended; the flow is charged for what runs, and earns no credit in the meantime.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from gateway.outcome import Outcome
from gateway.scheduling.limits import Limits
from policies.base import LANES, Job, Lane, Policy

# What passes a job that has begun: at most this part of what is left of it.
MUCH_SHORTER = 0.25


@dataclass(slots=True)
class _Flow:
    queued: int = 0  # never let go
    in_flight: int = 0  # in the engine, or between slices


class JobQueue:
    def __init__(self, policy: Policy, limits: Limits) -> None:
        self.policy = policy
        self.limits = limits
        self.cost = 0.0  # engine seconds of prefill that wait
        self._jobs: dict[Job, None] = {}  # never let go, in order of arrival
        self._queued: dict[Lane, int] = dict.fromkeys(LANES, 0)
        # Between slices, with the engine seconds of prefill that are left; and how many of others' may still pass them.
        self._begun: dict[Lane, dict[Job, float]] = {lane: {} for lane in LANES}
        self._may_pass: dict[Job, float] = {}
        self._aside: dict[str, deque[Job]] = {}
        self._flows: dict[str, _Flow] = {}
        # Who charged a job that was let go: after a change of policy, the one before.
        self._charged_by: dict[Job, Policy] = {}

    def __contains__(self, job: Job) -> bool:
        return job in self._jobs

    def waiting(self, lane: Lane) -> int:
        return self._queued[lane] + len(self._begun[lane])

    def refuses(self, job: Job) -> Outcome | None:
        limits, flow = self.limits, self._flows.get(job.flow, _Flow())
        cap = limits.queued(job)
        if cap is not None and flow.queued >= cap:
            return Outcome.USER_LIMIT
        if limits.max_queued is not None and len(self._jobs) >= limits.max_queued:
            return Outcome.QUEUE_FULL
        # Behind nobody, any job may wait: its own size is not what the limit is about.
        if limits.max_queued_s is not None and self._jobs and self.cost + job.cost > limits.max_queued_s:
            return Outcome.QUEUE_FULL
        return None

    def join(self, job: Job) -> None:
        if job in self._jobs or job in self._charged_by:
            raise KeyError(job)
        self._jobs[job] = None
        self._queued[job.lane] += 1
        self.cost += job.cost
        self._flows.setdefault(job.flow, _Flow()).queued += 1
        self.policy.push(job)

    def head(self, lane: Lane, could_go: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """Who is next. What has begun is passed only by who `could_go` now: nobody waits in front of it."""
        begun, choice = self._begun[lane], self._choice(lane)
        if not begun:
            return choice
        first = min(begun, key=lambda job: begun[job])
        return choice if choice and self._may_go_before(first, choice) and could_go(choice) else first

    def has_begun(self, job: Job) -> bool:
        return job in self._charged_by

    def take(self, job: Job) -> None:
        """The head of a lane is let go."""
        if job in self._charged_by:
            del self._begun[job.lane][job]
            return
        for begun in self._begun[job.lane]:
            self._may_pass[begun] -= job.cost
        self.policy.pop(job.lane)
        self._charged_by[job] = self.policy
        self._out(job)
        self._flows[job.flow].in_flight += 1

    def go_on(self, job: Job, left: float) -> None:
        """A slice is done; what is left will take so many engine seconds."""
        self._begun[job.lane][job] = left
        self._may_pass.setdefault(job, left)

    def leave(self, job: Job) -> None:
        """Unserved."""
        self._out(job)
        aside = self._aside.get(job.flow)
        if aside and job in aside:
            aside.remove(job)
        else:
            self.policy.remove(job)
        self._forget(job.flow)

    def charge(self, job: Job, cost: float) -> None:
        self._charged_by[job].charge(job, cost)

    def end(self, job: Job, cost: float) -> None:
        """A job that was let go has ended, in the engine or between slices."""
        self._begun[job.lane].pop(job, None)
        self._may_pass.pop(job, None)
        policy = self._charged_by.pop(job)
        self._flows[job.flow].in_flight -= 1
        # First, for a policy may forget what it knows of a flow that has nothing waiting and nothing running.
        self._step_in(job.flow)
        policy.settle(job, cost)
        self._forget(job.flow)

    def relimit(self, limits: Limits) -> None:
        self.limits = limits
        for flow in list(self._aside):
            self._step_in(flow)

    def use(self, policy: Policy) -> None:
        """Another policy. Who waits goes on waiting; who runs is settled by the policy that let them go."""
        for job in self._jobs:
            if job not in self._aside.get(job.flow, ()):
                policy.push(job)
        self.policy = policy

    def copy(self) -> Self:
        clone = type(self)(self.policy.copy(), self.limits)
        clone.cost = self.cost
        clone._jobs = self._jobs.copy()
        clone._queued = self._queued.copy()
        clone._begun = {lane: begun.copy() for lane, begun in self._begun.items()}
        clone._may_pass = self._may_pass.copy()
        clone._aside = {name: aside.copy() for name, aside in self._aside.items()}
        clone._flows = {name: replace(flow) for name, flow in self._flows.items()}
        others = {id(self.policy): clone.policy}
        for job, policy in self._charged_by.items():
            if id(policy) not in others:
                others[id(policy)] = policy.copy()
            clone._charged_by[job] = others[id(policy)]
        return clone

    def _out(self, job: Job) -> None:
        del self._jobs[job]
        self._queued[job.lane] -= 1
        self._flows[job.flow].queued -= 1
        self.cost = self.cost - job.cost if self._jobs else 0.0

    def _choice(self, lane: Lane) -> Job | None:
        """The policy's, of those whose flow is not at its cap."""
        while (job := self.policy.peek(lane)) and self._at_cap(job):
            self.policy.remove(job)
            self._aside.setdefault(job.flow, deque()).append(job)
        return job

    def _may_go_before(self, first: Job, choice: Job) -> bool:
        begun = self._begun[choice.lane]
        much_shorter = choice.cost <= MUCH_SHORTER * begun[first]
        return much_shorter and all(choice.cost <= self._may_pass[job] for job in begun)

    def _at_cap(self, job: Job) -> bool:
        cap = self.limits.in_flight(job)
        return cap is not None and self._flows[job.flow].in_flight >= cap

    def _step_in(self, flow: str) -> None:
        """Let the flow's jobs stand in line again, if its cap allows one more: which one is the policy's choice."""
        aside = self._aside.get(flow)
        if not aside or not self._at_cap(aside[-1]):
            for job in self._aside.pop(flow, ()):
                self.policy.push(job)

    def _forget(self, name: str) -> None:
        flow = self._flows[name]
        if not flow.queued and not flow.in_flight:
            del self._flows[name]
