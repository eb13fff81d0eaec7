"""The simulated engine in real time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from loadtest.spark.engine import Engine, Sequence
from loadtest.spark_server.answer import Choice
from loadtest.spark_server.metrics import SimMetrics
from loadtest.spark_server.timing import Timing

Tokens = asyncio.Queue[Choice]  # whose token has come


@dataclass(slots=True)
class _Outbox:
    choice: Choice
    tokens: Tokens
    only_last: bool


class LiveEngine:
    """The engine in real time, `speed` times as fast as life: one task runs it, requests come and go.

    Times are of the clock itself, not of the loop: uvloop's own stands still while a callback runs.
    """

    def __init__(self, engine: Engine, speed: float, metrics: SimMetrics) -> None:
        self.engine = engine
        self._speed = speed
        self._metrics = metrics
        self._outboxes: dict[Sequence, _Outbox] = {}
        self._unscheduled: dict[Choice, None] = {}
        self._work = asyncio.Event()
        self.requests = 0
        self._prefilling = 0

    @property
    def unfinished(self) -> int:
        return self.engine.running + self.engine.waiting

    @property
    def prefilling(self) -> int:
        """Tokens of the prompts without an answer yet: the whole of each, whatever is done of it, as vLLM counts."""
        return self._prefilling

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        delivery = self.engine.profile.to_s / self._speed
        while True:
            await self._work.wait()
            self._work.clear()
            due = monotonic()  # steps keep to their own timetable, so that waking late delays nothing after
            while (step := self.engine.begin()) is not None:
                self._note_scheduled(due)
                due += step.duration_s / self._speed
                await asyncio.sleep(due - monotonic())
                emitted = self.engine.end().emitted
                loop.call_later(due + delivery - monotonic(), self._deliver, emitted, due)

    @contextmanager
    def generating(self, choices: list[Choice], *, only_last: bool = False) -> Iterator[Tokens]:
        """Within this block their sequences are in the engine; the queue says whose token has come.

        only_last  no token is told of but each choice's last
        """
        tokens: Tokens = asyncio.Queue()
        now = monotonic()
        for choice in choices:
            choice.timing = Timing(queued=now)
            self._outboxes[choice.sequence] = _Outbox(choice, tokens, only_last)
            self._unscheduled[choice] = None
            self._prefilling += choice.sequence.prompt_tokens
            self.engine.add(choice.sequence)
        self.requests += 1
        self._work.set()
        try:
            yield tokens
        finally:
            self.requests -= 1
            for choice in choices:
                del self._outboxes[choice.sequence]
                self._unscheduled.pop(choice, None)
                if not choice.timing.tokens:
                    self._prefilling -= choice.sequence.prompt_tokens
                self.engine.abort(choice.sequence)

    def _note_scheduled(self, now: float) -> None:
        """A prefill's clock runs from when its first part is composed: of this step, or of the next one ahead of it."""
        for choice in [choice for choice in self._unscheduled if choice.sequence.computed]:
            choice.timing.scheduled = max(choice.timing.queued, now)
            del self._unscheduled[choice]

    def _deliver(self, emitted: list[Sequence], at: float) -> None:
        count = 0
        for sequence in emitted:
            outbox = self._outboxes.get(sequence)
            if outbox is None:  # it left while its token was on the way
                continue
            count += 1
            choice, timing = outbox.choice, outbox.choice.timing
            now = max(at, timing.scheduled)
            self._metrics.token(choice, now)
            if not timing.tokens:
                timing.first = now
                self._prefilling -= sequence.prompt_tokens
            timing.last = now
            timing.tokens += 1
            last = timing.tokens == sequence.output_tokens
            if last:
                self._metrics.finished(choice)
            if last or not outbox.only_last:
                outbox.tokens.put_nowait(choice)
        self._metrics.generated(count)
        # uvloop waits for its next timer as if what it runs now took no time: it looks at the clock only before that.
        # So let it go round once more, after those who were woken here.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, _nothing)


def _nothing() -> None:
    pass
