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
from gateway.api.priority import with_priority
from gateway.errors import GatewayError
from gateway.parts import Parts
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.usage import EngineTimes, PromptDetails, Usage
from gateway.proxy.waiting_room import Permit
from gateway.slicing.circuit_breaker import hit, hit_by_time
from gateway.slicing.planner import SlicePlan, Slicer
from gateway.telemetry.record import FinishedSlice
from gateway.tokenizers.engine import Ids
from gateway.types import Headers

logger = logging.getLogger("fairlane")

ROUTE = "/v1/completions"

# Of the cache, what prompts and answers may fill before a prompt might lose its own beginning between two slices.
MOST_CACHE = 0.9


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


def finds(parts: Parts, model: str) -> bool:
    """Whether a slice may be expected to find in the engine's cache what was done before it."""
    return parts.cost_model.prefixes.enabled and parts.slice_guard.allows(model, perf_counter())


class SlicedPrefill:
    def __init__(self, slicer: Slicer, slices: SlicePlan, request: InferenceRequest, ids: Ids) -> None:
        """`ids` are of the whole prompt."""
        self.slices = slices
        self.sent: list[FinishedSlice] = []
        self._slicer = slicer
        self._missed = False
        self._model = request.model or ""
        keys = _KEYS.decode(request.body)
        named = ((b"model", keys.model), (b"cache_salt", keys.cache_salt))
        given = b"".join(b',"%s":%s' % (name, bytes(value)) for name, value in named if value)
        self._head = b'{"max_tokens":1,"temperature":0%s,"prompt":[' % given
        # Written once and by blocks, on which slices end: the next one is ready when the last one ends.
        block = self._block = slicer.block
        self._blocks = [",".join(map(str, ids[at : at + block])).encode() for at in range(0, len(ids), block)]

    async def run(self, parts: Parts, permit: Permit, headers: Headers) -> None:
        """All slices but the last one, whose permit is held then. Raises nothing but its cancellation."""
        slices, pace, job = self.slices, parts.waiting.forecaster.pace, permit.job
        slices.begin(perf_counter())
        while not slices.last:
            sent = len(self.sent)
            goes_on = self._pays(parts) and await self._slice(parts, permit, headers)
            company = pace.company(job)
            if goes_on:
                done = self.sent[-1]
                seconds = self._slicer.pause(done.ended - done.started, pace.sequences, done.end - done.start)
                await parts.waiting.pause(seconds)
                company = company or pace.company(job)
                await permit.go_on(slices.go_on(perf_counter(), company=company, sequences=pace.sequences))
            else:
                await permit.go_on(slices.whole(), done=len(self.sent) > sent)

    def own(self, usage: Usage) -> Usage:
        """What the client's request says of itself, with the tokens that were cached before its first slice was sent:
        it found what its slices had done, and that is its own work."""
        if not self.sent or usage.cached is None or self.sent[0].cached is None:
            return usage
        # And with what each slice, and the request, found beyond those before it.
        found = self.sent[0].cached + sum(max(0, (each.cached or 0) - each.start) for each in self.sent[1:])
        found = min(usage.cached, found + max(0, usage.cached - self.sent[-1].end))
        return msgspec.structs.replace(usage, prompt_tokens_details=PromptDetails(found))

    def ended(self, parts: Parts, usage: Usage, times: EngineTimes | None, seen: PrefillObservation | None) -> None:
        """The client's request is answered, with this usage: a slice as the others were."""
        if self.sent and not self._missed:
            self._look(parts, usage.prompt_tokens, usage, times, seen)

    def _pays(self, parts: Parts) -> bool:
        if not finds(parts, self._model):
            return False
        ledger, capacity = parts.waiting.admission.ledger, parts.cost_model.prefixes.capacity
        used = ledger.kv_tokens * ledger.kv_scale + ledger.external_kv_tokens
        return capacity is None or used <= MOST_CACHE * capacity

    async def _slice(self, parts: Parts, permit: Permit, headers: Headers) -> bool:
        """Send one; whether it is done, and found what was done before."""
        slices = self.slices
        name = (b"x-request-id", b"%s-slice-%d" % (permit.job.id.encode(), len(self.sent) + 1))
        started = perf_counter()
        try:
            body = self._next_body(parts, permit)
            async with parts.upstream.send("POST", ROUTE, body, [*headers, name]) as answer:
                content = await answer.read()
        except GatewayError as error:
            # The request itself will meet it, too, and tell its client.
            logger.warning("request %s: slice %d: %s", permit.job.id, len(self.sent) + 1, error)
            return False
        if answer.status != 200:
            logger.warning("request %s: slice %d: HTTP %d", permit.job.id, len(self.sent) + 1, answer.status)
            self._saw(parts, hit=False, why=f"the engine refuses slices (HTTP {answer.status})")
            return False
        ended, said = perf_counter(), read(content)
        seen = permit.track.seen(ended) if answer.first_attempt else None
        cached = said.usage.cached if said.usage else None
        self.sent.append(FinishedSlice(started, ended, slices.done, slices.end, slices.part.cost, cached))
        parts.telemetry.metrics.slice_done(slices.end - slices.done)
        return self._look(parts, slices.end, said.usage, said.times, seen, first=len(self.sent) == 1)

    def _next_body(self, parts: Parts, permit: Permit) -> bytes:
        body = self._head + b",".join(self._blocks[: self.slices.end // self._block]) + b"]}"
        return with_priority(body, parts.settings.engine.order(permit.number))

    def _look(
        self,
        parts: Parts,
        tokens: int,
        usage: Usage | None,
        times: EngineTimes | None,
        seen: PrefillObservation | None,
        *,
        first: bool = False,
    ) -> bool:
        """Learn from a slice that ended at `tokens`; whether it found what was done before."""
        start, cached = self.slices.done, usage.cached if usage else None
        profile = parts.cost_model.profile
        found: bool | None = True
        if not first:
            if cached is not None:
                found = hit(start, cached, self._slicer.block)
                parts.telemetry.metrics.slice_found(start, min(start, cached))
            else:
                parts.cost_model.prefixes.expect(start)
                if seen is not None and not seen.others:
                    found = hit_by_time(seen.seconds, profile.prefill(tokens, start), profile.prefill(tokens))
            if found is not None:
                few = "few" if cached is None else cached
                why = f"slices do not find in the engine's cache what was done before them ({few} of {start} tokens); "
                self._saw(parts, hit=found, why=why + "is --enable-prefix-caching on, and the cache large enough?")
        if found:
            known = cached if cached is not None or first else start
            parts.cost_model.learn_slice(tokens, known, seen, times.queue_s if times else None)
        self._missed = found is False
        return not self._missed

    def _saw(self, parts: Parts, *, hit: bool, why: str) -> None:
        if parts.slice_guard.saw(self._model, hit=hit, now=perf_counter()):
            logger.warning("slicing is off for this model for a while: %s", why)
