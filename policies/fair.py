"""Start-time fair queueing over users, in engine seconds.

Goyal, Vin, Cheng, "Start-time Fair Queuing" (SIGCOMM 1996), with the counter lift of VTC (Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024). It needs no estimate of the server's rate, which
suits a machine whose speed depends on what it runs.

    S(next job of flow f)   = tag_f
    tag_f at dispatch      += predicted cost
    tag_f when it settles  += true cost - predicted cost
    tag_f on return         = max(tag_f, least tag among the backlogged; when none is, the last start tag)

In each lane the backlogged flow with the least tag goes first; there is one tag a flow, so what a user spends
in one lane counts in the other. Time spent away earns no credit: that is the lift. Equal tags take turns,
whoever was served longest ago first.

Inside a flow the order is shortest first with aging, by a key that never changes: arrival + AGING * cost.
One user's swarm of agents thus does not bury that user's own chat, and nothing waits for ever: a job of cost
k is passed only by jobs that arrive within AGING * k seconds after it.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import count

from policies.base import LANES, Job, Lane

# Seconds of waiting that make up for one second of cost, as HRRN's response ratio weighs them.
AGING = 4.0

# Flows that are idle yet remembered. Past it the smallest debts are forgiven, so that state stays bounded
# however many users come by once.
MAX_IDLE_FLOWS = 1024

_Entry = tuple[float, int, Job]  # key, push order, job


@dataclass(slots=True)
class _Flow:
    tag: float = 0.0
    turn: int = -1
    in_flight: int = 0
    queues: dict[Lane, list[_Entry]] = field(default_factory=lambda: {lane: [] for lane in LANES})

    @property
    def backlogged(self) -> bool:
        return any(self.queues.values())

    @property
    def idle(self) -> bool:
        return not self.in_flight and not self.backlogged


class Fair:
    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._pushed: dict[Job, int] = {}
        self._count = count()
        self._last_start = 0.0

    def push(self, job: Job) -> None:
        if job.flow not in self._flows:
            self._forget_idle()
        flow = self._flows.setdefault(job.flow, _Flow())
        if not flow.backlogged:
            flow.tag = max(flow.tag, self._virtual_time())
        order = self._pushed[job] = next(self._count)
        insort(flow.queues[job.lane], (_key(job), order, job))

    def peek(self, lane: Lane) -> Job | None:
        flow = self._first(lane)
        return flow.queues[lane][0][2] if flow else None

    def pop(self, lane: Lane) -> Job:
        flow = self._first(lane)
        if flow is None:
            raise IndexError(f"pop from an empty {lane} lane")
        _, _, job = flow.queues[lane].pop(0)
        del self._pushed[job]
        self._last_start = max(self._last_start, flow.tag)
        flow.tag += job.cost
        flow.turn = next(self._count)
        flow.in_flight += 1
        return job

    def remove(self, job: Job) -> None:
        queue = self._flows[job.flow].queues[job.lane]
        del queue[bisect_left(queue, (_key(job), self._pushed.pop(job)), key=lambda entry: entry[:2])]

    def settle(self, job: Job, cost: float) -> None:
        flow = self._flows[job.flow]
        flow.tag += cost - job.cost
        flow.in_flight -= 1

    def waiting(self, lane: Lane) -> int:
        return sum(len(flow.queues[lane]) for flow in self._flows.values())

    def _first(self, lane: Lane) -> _Flow | None:
        backlogged = (flow for flow in self._flows.values() if flow.queues[lane])
        return min(backlogged, key=lambda flow: (flow.tag, flow.turn), default=None)

    def _virtual_time(self) -> float:
        backlogged = (flow.tag for flow in self._flows.values() if flow.backlogged)
        return min(backlogged, default=self._last_start)

    def _forget_idle(self) -> None:
        idle = [(flow.tag, flow.turn, name) for name, flow in self._flows.items() if flow.idle]
        if len(idle) <= MAX_IDLE_FLOWS:
            return
        for _, _, name in sorted(idle)[: len(idle) // 2]:
            del self._flows[name]


def _key(job: Job) -> float:
    return job.arrival + AGING * job.cost
