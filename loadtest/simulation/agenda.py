"""The virtual clock: what is still to happen, and what time it is."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Agenda:
    """What falls on one instant happens in the order entered."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._count), act))

    def run(self) -> None:
        while self._events:
            self.now, _, act = heappop(self._events)
            act()
