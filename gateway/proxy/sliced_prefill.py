"""The slices of one prompt, sent: all of its prefill but the last part, which is the client's own request.

Each is a completion of one token from the prompt's first token ids, with whatever else decides which blocks of the
cache are the same. Whatever goes wrong, the request that comes after them is whole, and does what is left.
"""

import logging
from time import perf_counter
from typing import Any

import msgspec

from gateway.api.base import InferenceRequest
from gateway.api.openai import read
from gateway.api.priority import Order, with_priority
from gateway.engine.client import EngineClient, EngineRequest
from gateway.errors import GatewayError
from gateway.lifecycle.lifecycle import Lifecycle
from gateway.lifecycle.settlement import Answer
from gateway.lifecycle.slice_review import SliceResult
from gateway.proxy.waiting_room import WaitingRoom
from gateway.telemetry.metrics import Metrics
from gateway.tokenizers.engine import Ids
from gateway.types import Headers

logger = logging.getLogger("fairlane")

ROUTE = "/v1/completions"


class _Keys(msgspec.Struct):
    """What of a body decides which blocks of the cache are the same, and what forbids the engine to use them."""

    model: msgspec.Raw = msgspec.Raw()
    cache_salt: msgspec.Raw = msgspec.Raw()
    prompt_logprobs: Any = None
    echo: Any = None


_KEYS = msgspec.json.Decoder(_Keys)


def sliceable(request: InferenceRequest) -> bool:
    """Whether it has one prompt, whose cached beginning the engine will use."""
    if not request.json or len(request.prompts) != 1:
        return False
    try:
        keys = _KEYS.decode(request.body)
    except msgspec.MsgspecError:
        return False
    return keys.prompt_logprobs is None and not keys.echo


class SliceBodies:
    """The bodies of a prompt's slices. `ids` are of the whole prompt, whose slices end on blocks of so many tokens."""

    def __init__(self, request: InferenceRequest, ids: Ids, block: int) -> None:
        keys = _KEYS.decode(request.body)
        named = ((b"model", keys.model), (b"cache_salt", keys.cache_salt))
        given = b"".join(b',"%s":%s' % (name, bytes(value)) for name, value in named if value)
        self._head = b'{"max_tokens":1,"temperature":0%s,"prompt":[' % given
        # Written once and by blocks, on which slices end: the next one is ready when the last one ends.
        self._block = block
        self._blocks = [",".join(map(str, ids[at : at + block])).encode() for at in range(0, len(ids), block)]

    def up_to(self, end: int) -> bytes:
        """Of the slice that ends there, with all that comes before it."""
        return self._head + b",".join(self._blocks[: end // self._block]) + b"]}"


class SlicedPrefill:
    def __init__(self, engine: EngineClient, waiting: WaitingRoom, metrics: Metrics) -> None:
        self._engine = engine
        self._waiting = waiting
        self._metrics = metrics

    async def run(self, life: Lifecycle, bodies: SliceBodies, order: Order, headers: Headers) -> None:
        """All slices but the last one, whose permit is held then. Raises nothing but its cancellation."""
        while life.slice_is_due:
            if life.slice_pays(perf_counter()):
                result = await self._send(life, bodies, order, headers)
                self.report(result)
                await self._waiting.pause(result.pause_s)
            await self._waiting.requeued(life)

    def report(self, result: SliceResult) -> None:
        if result.reuse:
            self._metrics.slice_found(result.reuse.done, result.reuse.found)
        if result.tripped:
            logger.warning("slicing is off for this model for a while: %s", result.tripped)

    async def _send(self, life: Lifecycle, bodies: SliceBodies, order: Order, headers: Headers) -> SliceResult:
        plan, number = life.request.plan, len(life.slices) + 1
        assert plan is not None
        name = (b"x-request-id", b"%s-slice-%d" % (life.job.id.encode(), number))
        try:
            body = with_priority(bodies.up_to(plan.end), order(life.ticket.number))
            async with self._engine.send(EngineRequest("POST", ROUTE, body, [*headers, name])) as response:
                content = await response.read()
        except GatewayError as error:
            # The request itself will meet it, too, and tell its client.
            logger.warning("request %s: slice %d: %s", life.job.id, number, error)
            return life.slice_failed(perf_counter())
        if response.status != 200:
            logger.warning("request %s: slice %d: HTTP %d", life.job.id, number, response.status)
            return life.slice_failed(perf_counter(), refused=f"HTTP {response.status}")
        now, said = perf_counter(), read(content)
        self._metrics.slice_done(plan.end - plan.done)
        answer = Answer(said.usage, said.times.queue_s if said.times else None)
        return life.slice_answered(answer, now, first_attempt=response.first_attempt)
