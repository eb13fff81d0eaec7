"""Start-time fair queueing over users, and inside a user over sessions, in engine seconds.

Goyal, Vin, Cheng, "Start-time Fair Queuing" (SIGCOMM 1996), with the counter lift of VTC (Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024). It needs no estimate of the server's rate, which suits a
machine whose speed depends on what it runs.

    S(next job of f)     = tag_f - head start of the job
    tag_f at dispatch   += predicted cost / weight_f
    tag_f later         += (cost so far - what was charged) / weight_f
    tag_f on return      = max(tag_f, v),  v = the least tag among the backlogged; when none is, the last start tag

In each lane the backlogged flow with the least S goes first. A flow has one tag for both lanes: what it spends in
one counts in the other. Time spent away earns no credit: that is the lift. Equal S take turns, whoever was served
longest ago first. The sessions of a user (conversations, agents) share the user's part by the same rule, so that a
swarm of agents neither gets more than its user nor buries that user's own chat. Sessions are remembered for as long as
their user has anything waiting or running.

Inside a session the order is shortest first with aging (`policies.base.aged`), by a key that never changes. A job
of cost k is passed only by jobs that arrive within AGING * k seconds after it, and by what has a head start on it.

The bound: between two flows that use one lane only, where all others do so too, the charges over any interval in
which both are backlogged differ, each over its weight, by at most the largest job of each, their head starts, and what
was in flight unsettled at either end. A flow that comes to one lane while the least tag is in the other is lifted no
higher than that: in its own lane it goes first for the difference.
"""

from itertools import count
from typing import Self

from policies.backlog import Backlog
from policies.base import Job, Lane, Policy, aged
from policies.fair_queue import Account, FairQueue


class Fair(Policy):
    def __init__(self) -> None:
        self.users: FairQueue[_User] = FairQueue(_start)
        self._pushed: dict[Job, int] = {}
        self._charged: dict[Job, float] = {}
        self._count = count()

    def push(self, job: Job) -> None:
        user = self.users.account(job.flow) or self.users.join(job.flow, _User())
        session = user.sessions.account(job.session) or user.sessions.join(job.session, Backlog())
        self.users.lift(user)
        user.sessions.lift(session)
        order = self._pushed[job] = next(self._count)
        session.add(job, aged(job), order)
        user.sessions.rank(session, job.lane)
        self.users.rank(user, job.lane)

    def peek(self, lane: Lane) -> Job | None:
        user = self.users.first(lane)
        return user.head(lane) if user else None

    def pop(self, lane: Lane) -> Job:
        user = self.users.first(lane)
        session = user.sessions.first(lane) if user else None
        if user is None or session is None:
            raise IndexError(f"pop from an empty {lane} lane")
        job = session.take(lane)
        del self._pushed[job]
        self._charged[job] = job.cost
        session.turn = user.turn = next(self._count)
        # The session first: where its user stands depends on what its sessions have waiting.
        user.sessions.serve(session, job.cost)
        self.users.serve(user, job.cost / job.weight)
        return job

    def remove(self, job: Job) -> None:
        user, session = self._accounts(job)
        session.drop(job, aged(job), self._pushed.pop(job))
        user.sessions.rank(session, job.lane)
        self.users.rank(user, job.lane)
        user.rest()

    def charge(self, job: Job, cost: float) -> None:
        user, session = self._accounts(job)
        more = cost - self._charged[job]
        self._charged[job] = cost
        user.sessions.charge(session, more)
        self.users.charge(user, more / job.weight)

    def settle(self, job: Job, cost: float) -> None:
        self.charge(job, cost)
        del self._charged[job]
        user, session = self._accounts(job)
        session.in_flight -= 1
        user.in_flight -= 1
        user.rest()

    def copy(self) -> Self:
        clone = type(self)()
        clone.users = self.users.copy()
        clone._pushed = self._pushed.copy()
        clone._charged = self._charged.copy()
        clone._count = count(next(self._count))
        return clone

    def _accounts(self, job: Job) -> "tuple[_User, Backlog]":
        user = self.users.accounts[job.flow]
        return user, user.sessions.accounts[job.session]


class _User(Account):
    def __init__(self) -> None:
        super().__init__()
        self.sessions: FairQueue[Backlog] = FairQueue(_start)

    def head(self, lane: Lane) -> Job | None:
        session = self.sessions.first(lane)
        return session.head(lane) if session else None

    def rest(self) -> None:
        if self.idle:
            self.sessions = FairQueue(_start)

    def copy(self) -> Self:
        clone = super().copy()
        clone.sessions = self.sessions.copy()
        return clone


def _start(account: Account, head: Job) -> float:
    return account.tag - head.head_start
