"""Who is due when: the load generator's rules, driven by the real clock and by the virtual one alike."""

from collections import defaultdict, deque

from loadtest.workloads.plan import Plan

Due = tuple[float, int]  # when, and the number of the request


class Schedule:
    """Of each request, in this order: it is due, it may be sent, it has ended, however it ended.

    With the plan's cap on, those who are due but one too many wait for somebody's end, first come, first served.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._missing = [len(set(request.after)) for request in plan.requests]
        self._waiting_for: defaultdict[int, list[int]] = defaultdict(list)
        for number, request in enumerate(plan.requests):
            for other in set(request.after):
                self._waiting_for[other].append(number)
        self._held: deque[int] = deque()
        self._sent = 0

    def start(self) -> list[Due]:
        """Those who wait for nobody."""
        return [(request.at, number) for number, request in enumerate(self._plan.requests) if not request.after]

    def arrive(self, number: int) -> list[int]:
        """A request is due; whether it may be sent now."""
        self._held.append(number)
        return self._let_go()

    def end(self, number: int, now: float) -> tuple[list[int], list[Due]]:
        """Those who may be sent now, and those who are due by this end."""
        self._sent -= 1
        due = []
        for other in self._waiting_for.pop(number, ()):
            self._missing[other] -= 1
            if not self._missing[other]:
                request = self._plan.requests[other]
                due.append((max(request.at, now + request.delay), other))
        return self._let_go(), due

    def _let_go(self) -> list[int]:
        cap = self._plan.max_concurrency
        sent = []
        while self._held and (cap is None or self._sent < cap):
            self._sent += 1
            sent.append(self._held.popleft())
        return sent
