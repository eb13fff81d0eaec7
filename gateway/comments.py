"""SSE comments for a streamed request that waits, so that its client, and whatever is between, does not give it up.

    : queued position=3 eta=4.2s
    : prefill eta=1.1s
    : engine away

One line each and no blank line: openai-go and go-openai stumble over blank lines, and to every other client a comment
in front of an event is a part of that event. Nothing is sent within the silent grace, so that an error that comes
soon keeps its status code. From the first chunk of the answer on there are none: they could fall into an event.
"""

from math import isfinite
from time import perf_counter

import anyio

from gateway.client import Client, Headers
from gateway.exchange import Exchange
from gateway.sse import EventStream
from gateway.upstream import Upstream
from gateway.waiting import WaitingRoom

# nginx would keep them to itself, and the answer's first tokens with them.
HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def keep_company(
    client: Client,
    exchange: Exchange,
    events: EventStream,
    waiting: WaitingRoom,
    upstream: Upstream,
    *,
    own_headers: Headers,
    grace: float,
    interval: float,
) -> None:
    """Until it is cancelled, or the answer's first chunk is there."""
    await anyio.sleep(exchange.timeline.arrived + grace - perf_counter())
    while events.chunks == 0:
        if not client.started:
            exchange.status = 200
            await client.start(200, HEADERS + own_headers)
        await client.comment(_said(exchange, waiting, upstream))
        await anyio.sleep(interval)


def _said(exchange: Exchange, waiting: WaitingRoom, upstream: Upstream) -> str:
    job, now = exchange.job, perf_counter()
    if exchange.timeline.dispatched is None:
        phase, position = "queued", waiting.forecaster.position(job, now) if job else None
    else:
        if upstream.away_since is not None:
            return "engine away"
        phase, position = "prefill", None
    outlook = waiting.forecaster.outlook(now)
    eta = outlook.first_token(job, now).median if job and job in outlook else float("inf")
    return (
        phase
        + (f" position={position}" if position is not None else "")
        + (f" eta={eta:.1f}s" if isfinite(eta) else "")
    )
