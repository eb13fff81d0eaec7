"""The engine's answer, passed on: a stream as it comes, chunk by chunk, or an answer in one piece."""

import json
from time import perf_counter
from typing import Any

from gateway.engine.client import EngineResponse
from gateway.errors import BadUpstream
from gateway.lifecycle.lifecycle import Lifecycle
from gateway.lifecycle.settlement import Answer
from gateway.proxy.call import Call


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
        await client.write(api.errors.framed(_engine_error(body)), more=False)
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
