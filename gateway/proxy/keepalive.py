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

from gateway.api.sse import EventStream
from gateway.engine.client import EngineClient
from gateway.forecasting.forecaster import Forecaster
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.waiting_room import WaitingRoom
from gateway.telemetry.record import RequestRecord
from gateway.types import Headers
from policies.base import Job

logger = logging.getLogger("fairlane")

# nginx would keep them to itself, and the answer's first tokens with them.
HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def send_keepalives(
    client: ClientConnection,
    exchange: RequestRecord,
    events: EventStream,
    waiting: WaitingRoom,
    upstream: EngineClient,
    *,
    own_headers: Headers,
    grace: float,
    interval: float,
) -> None:
    """Until it is cancelled, or the answer's first chunk is there."""
    await anyio.sleep(max(0.0, exchange.timeline.arrived + grace - perf_counter()))
    while events.chunks == 0:
        if not client.started:
            exchange.status = 200
            await client.start(200, HEADERS + own_headers)
        await client.comment(_said(exchange, waiting, upstream))
        await anyio.sleep(interval)


def _said(exchange: RequestRecord, waiting: WaitingRoom, upstream: EngineClient) -> str:
    queued = exchange.timeline.dispatched is None
    if not queued and upstream.away_since is not None:
        return "engine away"
    words = ["queued" if queued else "prefill"]
    # Who waits is not to lose more than the words, should the forecast fail.
    try:
        words += _forecast(exchange.job, waiting.forecaster, queued)
    except Exception:
        logger.exception("the forecast for request %s failed", exchange.id)
    return " ".join(words)


def _forecast(job: Job | None, forecaster: Forecaster, queued: bool) -> Iterator[str]:
    if job is None:
        return
    position, eta = forecaster.place(job, perf_counter())
    if queued and position is not None:
        yield f"position={position}"
    if isfinite(eta):
        yield f"eta={eta:.1f}s"
