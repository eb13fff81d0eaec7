"""The simulated engine in real time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.engine import Engine, Sequence

Tokens = asyncio.Queue[int]  # the index of the sequence that a token is for


class LiveEngine:
    """The engine in real time, `speed` times as fast as life: one task runs it, requests come and go."""

    def __init__(self, engine: Engine, speed: float) -> None:
        self.engine = engine
        self._speed = speed
        self._outboxes: dict[Sequence, tuple[int, Tokens]] = {}
        self._work = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        delivery = self.engine.profile.to_s / self._speed
        while True:
            await self._work.wait()
            self._work.clear()
            due = loop.time()  # steps keep to their own timetable, so that waking late delays nothing after
            while (step := self.engine.begin()) is not None:
                due += step.duration_s / self._speed
                await asyncio.sleep(due - loop.time())
                loop.call_at(due + delivery, self._deliver, self.engine.end().emitted)

    @contextmanager
    def generating(self, sequences: list[Sequence]) -> Iterator[Tokens]:
        """Within this block the sequences are in the engine; the queue says whose token has come."""
        queue: Tokens = asyncio.Queue()
        for index, sequence in enumerate(sequences):
            self._outboxes[sequence] = index, queue
            self.engine.add(sequence)
        self._work.set()
        try:
            yield queue
        finally:
            for sequence in sequences:
                del self._outboxes[sequence]
                self.engine.abort(sequence)

    def _deliver(self, emitted: list[Sequence]) -> None:
        for sequence in emitted:
            if sequence in self._outboxes:  # else it left while its token was on the way
                index, queue = self._outboxes[sequence]
                queue.put_nowait(index)
