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
swarm of agents neither gets more than its user nor buries that user's own chat.

Inside a session the order is shortest first with aging, by a key that never changes: arrival + AGING * cost. A job
of cost k is passed only by jobs that arrive within AGING * k seconds after it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, Self, TypeVar

from policies.base import LANES, Job, Lane, Policy

# Seconds of waiting that make up for one second of cost, as HRRN's response ratio weighs them.
AGING = 4.0

# Users, and sessions of a user, that are idle yet remembered. Past it the smallest debts are forgiven, so that state
# stays bounded however many come by once.
MAX_IDLE = 1024

_Entry = tuple[float, int, Job]  # key, push order, job


class Fair(Policy):
    def __init__(self) -> None:
        self._users: _Turns[_User] = _Turns()
        self._pushed: dict[Job, int] = {}
        self._charged: dict[Job, float] = {}
        self._count = count()

    def push(self, job: Job) -> None:
        user = self._users.party(job.flow) or self._users.join(job.flow, _User())
        session = user.sessions.party(job.session) or user.sessions.join(job.session, _Session())
        user.weight = job.weight
        self._users.lift(user)
        user.sessions.lift(session)
        order = self._pushed[job] = next(self._count)
        insort(session.queues[job.lane], (_key(job), order, job))
        user.sessions.rank(session, job.lane)
        self._users.rank(user, job.lane)

    def peek(self, lane: Lane) -> Job | None:
        user = self._users.first(lane)
        return user.head(lane) if user else None

    def pop(self, lane: Lane) -> Job:
        user = self._users.first(lane)
        session = user.sessions.first(lane) if user else None
        if user is None or session is None:
            raise IndexError(f"pop from an empty {lane} lane")
        _, _, job = session.queues[lane].pop(0)
        del self._pushed[job]
        self._charged[job] = job.cost
        turn = next(self._count)
        # The session first: where its user stands depends on what its sessions have waiting.
        user.sessions.serve(session, job, turn)
        self._users.serve(user, job, turn)
        return job

    def remove(self, job: Job) -> None:
        user, session = self._parties(job)
        queue = session.queues[job.lane]
        del queue[bisect_left(queue, (_key(job), self._pushed.pop(job)), key=lambda entry: entry[:2])]
        user.sessions.rank(session, job.lane)
        self._users.rank(user, job.lane)

    def charge(self, job: Job, cost: float) -> None:
        user, session = self._parties(job)
        more = cost - self._charged[job]
        self._charged[job] = cost
        user.sessions.charge(session, more)
        self._users.charge(user, more)

    def settle(self, job: Job, cost: float) -> None:
        self.charge(job, cost)
        del self._charged[job]
        for party in self._parties(job):
            party.in_flight -= 1

    def copy(self) -> Self:
        twin = type(self)()
        twin._users = self._users.copy()
        twin._pushed = self._pushed.copy()
        twin._charged = self._charged.copy()
        twin._count = count(next(self._count))
        return twin

    def _parties(self, job: Job) -> "tuple[_User, _Session]":
        user = self._users.parties[job.flow]
        return user, user.sessions.parties[job.session]


class _Party:
    """Who takes turns: a user, or a session of one.

    tag      engine seconds charged, over its weight
    turn     when it was served last
    entries  in each lane, which of its entries in the heap is the one that holds
    """

    def __init__(self) -> None:
        self.tag = 0.0
        self.turn = -1
        self.weight = 1.0
        self.in_flight = 0
        self.entries: dict[Lane, int] = {}

    def head(self, lane: Lane) -> Job | None:
        raise NotImplementedError

    @property
    def backlogged(self) -> bool:
        return any(self.head(lane) for lane in LANES)

    def copy(self) -> Self:
        twin = type(self)()
        twin.tag, twin.turn, twin.weight, twin.in_flight = self.tag, self.turn, self.weight, self.in_flight
        return twin


class _Session(_Party):
    def __init__(self) -> None:
        super().__init__()
        self.queues: dict[Lane, list[_Entry]] = {lane: [] for lane in LANES}

    def head(self, lane: Lane) -> Job | None:
        queue = self.queues[lane]
        return queue[0][2] if queue else None

    def copy(self) -> Self:
        twin = super().copy()
        twin.queues = {lane: queue.copy() for lane, queue in self.queues.items()}
        return twin


class _User(_Party):
    def __init__(self) -> None:
        super().__init__()
        self.sessions: _Turns[_Session] = _Turns()

    def head(self, lane: Lane) -> Job | None:
        session = self.sessions.first(lane)
        return session.head(lane) if session else None

    def copy(self) -> Self:
        twin = super().copy()
        twin.sessions = self.sessions.copy()
        return twin


_P = TypeVar("_P", bound=_Party)


class _Turns(Generic[_P]):
    """Parties by their S, a heap a lane. An entry that no longer holds stays until it comes to the top."""

    def __init__(self) -> None:
        self.parties: dict[str, _P] = {}
        self._heaps: dict[Lane, list[tuple[float, int, int, _P]]] = {lane: [] for lane in LANES}
        self._last_start = 0.0
        self._entries = count()

    def party(self, name: str) -> _P | None:
        return self.parties.get(name)

    def join(self, name: str, party: _P) -> _P:
        if len(self.parties) >= 2 * MAX_IDLE:
            self._forget_idle()
        self.parties[name] = party
        return party

    def first(self, lane: Lane) -> _P | None:
        heap = self._heaps[lane]
        while heap and not _holds(heap[0], lane):
            heappop(heap)
        return heap[0][3] if heap else None

    def lift(self, party: _P) -> None:
        """A party that comes back starts where the others are."""
        if not party.backlogged:
            party.tag = max(party.tag, self._virtual_time())

    def rank(self, party: _P, lane: Lane) -> None:
        """Put the party where it belongs now."""
        head = party.head(lane)
        entry = party.entries[lane] = next(self._entries)
        if head is None:
            return
        heap = self._heaps[lane]
        heappush(heap, (party.tag - head.head_start, party.turn, entry, party))
        if len(heap) > 2 * len(self.parties) + 16:
            heap[:] = [each for each in heap if _holds(each, lane)]
            heapify(heap)

    def serve(self, party: _P, job: Job, turn: int) -> None:
        self._last_start = max(self._last_start, party.tag)
        party.turn = turn
        party.in_flight += 1
        self.charge(party, job.cost)

    def charge(self, party: _P, cost: float) -> None:
        party.tag += cost / party.weight
        for lane in LANES:
            self.rank(party, lane)

    def copy(self) -> "_Turns[_P]":
        twin: _Turns[_P] = _Turns()
        twin._last_start = self._last_start
        for name, party in self.parties.items():
            twin.parties[name] = party.copy()
            for lane in LANES:
                twin.rank(twin.parties[name], lane)
        return twin

    def _virtual_time(self) -> float:
        firsts = [party.tag for party in map(self.first, LANES) if party]
        return min(firsts, default=self._last_start)

    def _forget_idle(self) -> None:
        idle = sorted(self._idle())
        for _, name in idle[: len(idle) // 2 + 1]:
            del self.parties[name]

    def _idle(self) -> Iterator[tuple[float, str]]:
        for name, party in self.parties.items():
            if not party.in_flight and not party.backlogged:
                yield party.tag, name


def _holds(entry: tuple[float, int, int, _Party], lane: Lane) -> bool:
    return entry[3].entries[lane] == entry[2]


def _key(job: Job) -> float:
    return job.arrival + AGING * job.cost
