"""What is passed on: a request's headers to the engine, and its answer back, chunk by chunk or in one piece."""

import json
import re
from time import perf_counter
from typing import Any

from gateway.engine.client import HOP_BY_HOP, EngineResponse
from gateway.errors import BadUpstream
from gateway.identity.keys import KEY_PATTERN
from gateway.lifecycle.lifecycle import Lifecycle
from gateway.lifecycle.settlement import Answer
from gateway.proxy.call import Call
from gateway.types import Headers

# The engine's order is the gateway's to decide, and so is which web pages may ask: an engine that is told no origin
# lets none in. And what comes back must not be compressed, for its chunks pass as they are.
_NOT_FORWARDED = HOP_BY_HOP | {
    b"accept-encoding",
    b"content-length",
    b"expect",
    b"host",
    b"origin",
    b"traceparent",
    b"tracestate",
    b"x-api-key",
    b"x-request-id",
    b"x-vllm-priority",
}
# The client's key is for the gateway, not for vLLM, in whatever header it was sent: Authorization, X-Api-Key, Api-Key,
# Cookie, one that another proxy reads. vLLM asks for none but the first, which the gateway sets itself.
_SECRET = re.compile(rb"key|token|auth|secret|cookie|credential|password")


def forwarded(headers: dict[bytes, bytes]) -> Headers:
    not_forwarded = _NOT_FORWARDED | {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")}
    return [
        (name, value)
        for name, value in headers.items()
        if name not in not_forwarded and not _SECRET.search(name) and not KEY_PATTERN.search(value)
    ]


async def relay_stream(call: Call, life: Lifecycle, response: EngineResponse) -> None:
    client, events = call.client, call.events
    if client.started:
        account = (f"{name.decode()}={value.decode()}" for name, value in call.account)
        await client.comment(" ".join(["dispatched", *account]))
    else:
        await client.start(response.status, response.headers + call.headers)
    async for chunk in response.chunks():
        whole = events.feed(chunk)
        life.chunk(events.chunks)
        if life.first_token_at is None and events.first_token:
            life.first_token(perf_counter())
        if whole:
            await client.write(whole)
    await client.write(events.end(), more=False)


async def relay_whole(call: Call, life: Lifecycle, response: EngineResponse) -> None:
    """It is read whole first: should the engine break off, the client gets an error that says so, and no half of an
    answer."""
    api, client = call.route.api, call.client
    body = await response.read()
    if response.status < 400:
        life.answered_whole(perf_counter(), decodes=api.decodes)
    said = api.read(body)
    times = said.times
    call.answer = Answer(said.usage, times.queue_s, times.generation_s) if times else Answer(said.usage)
    if client.started:
        await client.write(api.errors.frame(_engine_error(body)), more=False)
    else:
        await client.respond(response.status, response.headers + call.headers, body)


def _engine_error(body: bytes) -> dict[str, Any]:
    """What the engine answered, in one piece and perhaps several lines, to a request whose stream has begun."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if not (isinstance(content, dict) and content.get("error")):
        raise BadUpstream("The engine answered a streamed request with neither a stream nor an error.")
    return content
