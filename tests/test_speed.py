"""How much a decision costs, and how that grows. Figures are printed (`pytest -s`), only ratios are asserted. Times
are this thread's own CPU time, so what else the machine does is not in them.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from statistics import median
from time import thread_time

import pytest

from gateway.scheduling.admission import Admission
from gateway.scheduling.limits import Limits
from policies import POLICIES
from policies.base import Job, Policy

NewPolicy = Callable[[], Policy]
LIMITS = Limits(short_lane_tokens=1000, max_num_seqs=32)


class Stream:
    """Arrivals without end: half of them long, from so many users with three sessions each."""

    def __init__(self, users: int) -> None:
        self._random = Random(1)
        self._users = users
        self._now = 0.0

    def next(self) -> Job:
        random = self._random
        self._now += random.expovariate(1)
        user = f"user {random.randrange(self._users)}"
        session = f"session {random.randrange(3)}"
        if random.random() < 0.5:
            return Job(user, "long", 8000, random.uniform(1, 8), self._now, session=session)
        return Job(user, "short", 200, random.uniform(0.1, 1), self._now, session=session)


class Queue:
    """An admission in which so many wait: each that ends is followed by an arrival."""

    def __init__(self, new_policy: NewPolicy, waiting: int, users: int) -> None:
        self.admission = Admission(new_policy(), LIMITS)
        self._stream = Stream(users)
        self._running: deque[Job] = deque()
        for _ in range(waiting):
            self._running += self.admission.arrive(self._stream.next())

    def turn(self) -> None:
        """Four calls: the oldest gets its first token, goes on, ends, and somebody else comes."""
        job = self._running.popleft()
        self._running += self.admission.first_token(job)
        self._running += self.admission.progress(job, job.cost + 1, 0)
        self._running += self.admission.finish(job, job.cost + 2)
        self._running += self.admission.arrive(self._stream.next())

    def microseconds(self, turns: int) -> float:
        began = thread_time()
        for _ in range(turns):
            self.turn()
        return (thread_time() - began) / turns * 1e6


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("users", [20, None], ids=["20 users", "each a user"])
def test_the_cost_of_a_decision_grows_slowly_with_the_queue(name: str, users: int | None) -> None:
    sizes = (100, 1000, 10_000)
    queues = {waiting: Queue(POLICIES[name], waiting, users or waiting) for waiting in sizes}
    rounds: dict[int, list[float]] = {waiting: [] for waiting in sizes}
    for _ in range(9):  # in turns, so that a change of the processor's speed affects all of them
        for waiting, queue in queues.items():
            rounds[waiting].append(queue.microseconds(300))
    cost = {waiting: median(each) for waiting, each in rounds.items()}
    print(f"\n{name}, {users or 'as many'} users:", ", ".join(f"{n}: {us:.0f} us" for n, us in cost.items()))
    # log2(10 000) is twice log2(100); the rest is caches, and slack.
    assert cost[10_000] < 3 * cost[100]


def test_the_cost_of_a_flood_is_about_linear() -> None:
    """In a flood: half of them arrive before the first ends. Twice as many jobs take about twice as long."""
    took = {}
    for jobs in (25_000, 50_000):
        began = thread_time()
        queue = Queue(POLICIES["fair"], jobs // 2, users=20)
        for _ in range(jobs // 2):
            queue.turn()
        took[jobs] = thread_time() - began
    print(f"\n50 000 jobs: {took[50_000]:.2f} s, {took[50_000] / 50_000 * 1e6:.0f} us a job")
    assert took[50_000] < 3 * took[25_000]
