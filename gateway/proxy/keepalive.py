"""SSE comments for a streamed request that waits, so that its client, and whatever is between, does not give it up.

    : queued position=3 eta=4.2s
    : prefill eta=1.1s
    : engine away

One line each and no blank line: openai-go and go-openai stumble over blank lines, and to every other client a comment
in front of an event is a part of that event. Nothing is sent within the silent grace, so that an error that comes
soon keeps its status code. From the first chunk of the answer on there are none: they could fall into an event.
"""

import logging
from collections.abc import Iterator
from math import isfinite
from time import perf_counter

import anyio

from gateway.config.settings import Settings
from gateway.engine.client import EngineClient
from gateway.forecasting.forecaster import Forecaster
from gateway.proxy.call import Call
from gateway.types import Headers

logger = logging.getLogger("fairlane")

# nginx would keep them to itself, and the answer's first tokens with them.
HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Keepalives:
    def __init__(self, settings: Settings, forecaster: Forecaster, engine: EngineClient) -> None:
        self._forecaster = forecaster
        self._engine = engine
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        self.silent_grace = settings.silent_grace
        self.comment_interval = settings.comment_interval

    async def send(self, call: Call) -> None:
        """Until it is cancelled, or the answer's first chunk is there."""
        client, interval = call.client, self.comment_interval
        await anyio.sleep(max(0.0, call.arrived_at + self.silent_grace - perf_counter()))
        while call.events.chunks == 0:
            if not client.started:
                await client.start(200, HEADERS + call.id_header)
            await client.comment(self._text(call))
            await anyio.sleep(interval)

    def _text(self, call: Call) -> str:
        queued = call.dispatched_at is None
        if not queued and self._engine.away_since is not None:
            return "engine away"
        words = ["queued" if queued else "prefill"]
        # Who waits is not to lose more than the words, should the forecast fail.
        try:
            words += self._forecast(call, queued)
        except Exception:
            logger.exception("the forecast for request %s failed", call.id)
        return " ".join(words)

    def _forecast(self, call: Call, queued: bool) -> Iterator[str]:
        if call.life is None:
            return
        position, eta = self._forecaster.position(call.life.job, perf_counter())
        if queued and position is not None:
            yield f"position={position}"
        if isfinite(eta):
            yield f"eta={eta:.1f}s"
