"""One request that is queued, top to bottom: the walk that the package's docstring draws."""

import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive, Scope, Send

from gateway.api.base import Api, InferenceRequest
from gateway.api.hints import read_hints
from gateway.api.priority import with_priority
from gateway.api.sse import EventStream
from gateway.engine.client import EngineResponse, forwarded
from gateway.errors import BadUpstream, GatewayError, InternalError, Rejected
from gateway.identity.callers import Caller, hashed
from gateway.identity.keys import KEY_PATTERN
from gateway.identity.missing_users import HINT
from gateway.outcome import Outcome
from gateway.parts import Parts
from gateway.pricing.cost_model import PROGRESS_CHUNKS, Price
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.prompt import Prompt
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.keepalive import send_keepalives
from gateway.proxy.sliced_prefill import SlicedPrefill, finds, sliceable
from gateway.proxy.waiting_room import Permit
from gateway.slicing.planner import SlicePlan
from gateway.telemetry.record import RequestRecord
from gateway.telemetry.timeline import Timeline
from gateway.telemetry.tracing import RequestTrace
from gateway.tokenizers.engine import Ids
from gateway.types import Headers
from policies.base import Job

logger = logging.getLogger("fairlane")

# Tokens are counted from such a part of the long lane's begin, and of the longest prompt, on.
NEAR = 0.75

# An id is echoed into headers, logs and spans: what is longer, or holds a key or anything odd, is replaced.
_MAX_ID = 128


@dataclass(frozen=True, slots=True)
class InferenceEndpoint:
    """`POST` to a route whose work is queued, as a raw ASGI endpoint."""

    route: str
    api: Api
    parts: Parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientConnection(scope, receive, send, self.parts.settings.client_stall)
        exchange = RequestRecord(
            _request_id(client.headers), self.route, Timeline(arrived=perf_counter()), scope["scheme"]
        )
        trace = self.parts.telemetry.start(exchange, client.headers)
        try:
            async with anyio.create_task_group() as tasks:
                # Caught in here, for the group would wrap what leaves it into an ExceptionGroup.
                try:
                    await self._serve(client, exchange, trace, tasks)
                except GatewayError as error:
                    await _tell(client, exchange, error, self.api)
                except Exception:
                    logger.exception("request %s failed", exchange.id)
                    bug = InternalError("The gateway failed; its log has the reason.")
                    await _tell(client, exchange, bug, self.api)
                tasks.cancel_scope.cancel()
            if client.gone:
                exchange.outcome = client.gone.outcome
                exchange.status = exchange.status or client.gone.status
        finally:
            exchange.timeline.ended = perf_counter()
            self.parts.telemetry.finish(exchange, trace)

    async def _serve(
        self, client: ClientConnection, exchange: RequestRecord, trace: RequestTrace, tasks: TaskGroup
    ) -> None:
        caller = self.parts.callers.identify(client.address, client.headers)
        settings = self.parts.settings
        body = await client.body(settings.max_body, settings.body_timeout)
        request = self.api.parse(body, client.headers.get(b"content-type", b""))
        self._check_length(request, max(map(self._least, request.prompts)))
        self._check_named(caller, request)
        tasks.start_soon(client.watch_leaving, tasks.cancel_scope)
        tasks.start_soon(client.watch_reading, tasks.cancel_scope)
        price, ids = await self._price(exchange, request)
        exchange.price = price
        job = exchange.job = self._job(exchange, request, price, caller, client.headers)
        sliced = self._sliced(exchange, request, price, ids)

        exchange.timeline.queued = perf_counter()
        events = EventStream(self.api.read, len(request.prompts), request.n, request.drop_usage)
        if request.stream:
            tasks.start_soon(self._keep_company, client, exchange, events)
        part = sliced.slices.part if sliced else None
        async with self.parts.waiting.admitted(job, request.max_tokens, part) as permit:
            exchange.timeline.dispatched = perf_counter()
            headers = [*forwarded(client.headers), *trace.call_engine(self.parts.upstream.base_url)]

            def sent() -> None:
                if self.api.decodes and not request.stream:
                    tasks.start_soon(_prefill_ends, exchange, permit)

            try:
                if sliced:
                    await sliced.run(self.parts, permit, headers)
                headers.append((b"x-request-id", exchange.id.encode()))
                body = self._ordered(request, permit)
                async with self.parts.upstream.send("POST", self.route, body, headers, sent) as answer:
                    exchange.retried = not answer.first_attempt
                    if not client.started:
                        exchange.status = answer.status
                    if answer.streams:
                        growth = partial(self.parts.cost_model.growth, job.cost, job.kv_tokens, price)
                        prefilled = partial(self.parts.cost_model.insert_prefixes, request.prompts, price)
                        await _relay(client, exchange, permit, answer, events, growth, prefilled)
                    else:
                        await _hand_over(client, exchange, permit, answer, self.api)
            finally:
                usage = exchange.usage or events.usage
                exchange.usage = sliced.own(usage) if sliced and usage else usage
                exchange.times = exchange.times or events.times
                exchange.timeline.ended = perf_counter()
                permit.cost = exchange.charged_s = self._charge(exchange, request, permit, price, events.chunks)
                permit.output_tokens = exchange.counts.output // job.seats if exchange.counts else None
                seen = self._seen(exchange, permit)

        failed = answer.status >= 400 or events.failed
        exchange.engine_failed = answer.status >= 500 or events.failed
        exchange.outcome = Outcome.ENGINE_ERROR if failed else Outcome.COMPLETED
        if exchange.usage and not failed:
            if sliced and usage and exchange.slices:
                sliced.ended(self.parts, usage, exchange.times, seen)
                seen = None
            self._learn(exchange, request, price, seen)

    async def _keep_company(self, client: ClientConnection, exchange: RequestRecord, events: EventStream) -> None:
        parts, settings = self.parts, self.parts.settings
        await send_keepalives(
            *(client, exchange, events, parts.waiting, parts.upstream),
            own_headers=_id_header(exchange),
            grace=settings.silent_grace,
            interval=settings.comment_interval,
        )

    def _least(self, prompt: Prompt) -> int:
        return self.parts.cost_model.estimator.min_tokens(prompt.size)

    def _check_length(self, request: InferenceRequest, min_tokens: int) -> None:
        """What can never fit need not wait to be told so. What might fit is the engine's to judge."""
        limit = self.parts.max_model_len
        if limit is not None and min_tokens > limit and not request.truncatable:
            raise Rejected(
                Outcome.TOO_LONG,
                f"This model's maximum context length is {limit} tokens. "
                f"However, the prompt has at least {min_tokens}.",
            )

    def _check_named(self, caller: Caller, request: InferenceRequest) -> None:
        """Fairness between users needs to know who they are: say so where a front end seems not to tell."""
        named = caller.user(request.user) is not None
        if caller.rights.front_end and self.parts.unnamed.observe(caller.name, named):
            logger.warning(HINT, hashed(caller.name), ", ".join(self.parts.settings.user_headers))

    def _ordered(self, request: InferenceRequest, permit: Permit) -> bytes:
        """The body with the gateway's own order in it, or with none: never the client's."""
        if not request.json:
            return request.body
        return with_priority(request.body, self.parts.settings.engine.order(permit.number))

    async def _price(self, exchange: RequestRecord, request: InferenceRequest) -> tuple[Price, Ids | None]:
        """Counted where something depends on it: which lane, how long a lane is taken, whether it fits at all. With its
        token ids, where it may be cut."""
        parts = self.parts
        price = parts.cost_model.price(request.prompts)
        limit = parts.max_model_len
        long = price.uncached >= NEAR * parts.waiting.admission.limits.long_prompt_tokens
        if parts.tokenizer is None or not self.api.tokenized or not (long or (limit and price.tokens >= NEAR * limit)):
            return price, None
        exchange.timeline.asked = perf_counter()
        ids = None
        if long and self._cuts(request):
            ids = await parts.tokenizer.encode(request)
            counted = len(ids) if ids else None
        else:
            counted = await parts.tokenizer.count(request)
        exchange.timeline.counted = perf_counter()
        if counted is None:
            return price, None
        if len(request.prompts) == 1:
            self._check_length(request, counted)
        parts.cost_model.learn_tokens(request.prompts, counted)
        return parts.cost_model.price(request.prompts, counted), ids

    def _cuts(self, request: InferenceRequest) -> bool:
        return self.parts.slicer is not None and finds(self.parts, request.model or "") and sliceable(request)

    def _sliced(
        self, exchange: RequestRecord, request: InferenceRequest, price: Price, ids: Ids | None
    ) -> SlicedPrefill | None:
        """How its prefill is cut, if it is long enough to be."""
        slicer, job = self.parts.slicer, exchange.job
        if slicer is None or ids is None or job is None or job.lane == "short":
            return None
        slices = SlicePlan(slicer, len(ids), price.cached)
        if slices.last:
            return None
        sliced = SlicedPrefill(slicer, slices, request, ids)
        exchange.slices = sliced.sent
        return sliced

    def _job(
        self,
        exchange: RequestRecord,
        request: InferenceRequest,
        price: Price,
        caller: Caller,
        headers: dict[bytes, bytes],
    ) -> Job:
        parts = self.parts
        arrived, seats = exchange.timeline.arrived, request.seats
        flow = caller.flow(request.user)
        hints, rights = read_hints(headers), caller.rights
        head_start = min(hints.priority, rights.priority)
        session = hints.session or caller.subdivision(request.user) or request.session
        exchange.background = parts.background.matches(caller, request, headers)
        if exchange.background:
            # Behind all who ask within so many seconds of work, not for ever; its user's share stays one.
            head_start = min(head_start, -parts.settings.background_delay)
        exchange.model = request.model
        exchange.prompts = len(request.prompts)
        exchange.stream = request.stream
        exchange.max_tokens = request.max_tokens
        return Job(
            flow=flow,
            lane=parts.waiting.admission.limits.lane(price.uncached),
            tokens=price.uncached,
            cost=price.seconds,
            arrival=arrived,
            seats=seats,
            id=exchange.id,
            kv_tokens=price.tokens + seats * parts.waiting.forecaster.answer_tokens(request.max_tokens),
            session=session,
            weight=parts.settings.weights.get(flow.partition(":")[2], rights.weight),
            head_start=head_start,
            deadline=arrived + hints.deadline,
            flow_in_flight=rights.flow_in_flight,
            flow_queued=rights.flow_queued,
        )

    def _charge(
        self, exchange: RequestRecord, request: InferenceRequest, permit: Permit, price: Price, chunks: int
    ) -> float:
        if exchange.usage:
            exchange.counts = self.parts.cost_model.counts(request.prompts, price, exchange.usage)
            exchange.true_prefill_s = self.parts.cost_model.true_prefill(exchange.counts, exchange.prompts)
            return self.parts.cost_model.true_cost(exchange.counts, exchange.prompts)
        done = sum(each.cost for each in exchange.slices)
        let_go, began = permit.track.let_go, exchange.timeline.first_token is not None
        elapsed = 0.0 if let_go is None else perf_counter() - let_go
        left = max(0.0, permit.job.cost - done)
        return done + self.parts.cost_model.partial_cost(left, elapsed=elapsed, began=began, chunks=chunks)

    def _seen(self, exchange: RequestRecord, permit: Permit) -> PrefillObservation | None:
        """Its prefill, if that can be told from others' work, and from waiting for an engine that was away."""
        if exchange.retried:
            return None
        # Work of others, straight at the engine, is in no ledger.
        if self.parts.waiting.admission.ledger.external_seats:
            return None
        times, ended = exchange.times, exchange.timeline.ended
        if exchange.stream or not times or times.generation_s is None or ended is None:
            return permit.track.seen()
        # Nobody saw the first token come; but the engine tells how long before the end that was.
        return permit.track.seen(ended - times.generation_s)

    def _learn(
        self, exchange: RequestRecord, request: InferenceRequest, price: Price, seen: PrefillObservation | None
    ) -> None:
        assert exchange.usage
        queue_s = exchange.times.queue_s if exchange.times else None
        if self.parts.cost_model.learn(request.prompts, price, exchange.usage, seen, queue_s):
            exchange.seen = seen
        if price.counted and self.parts.tokenizer:
            self.parts.tokenizer.compare(price.tokens, exchange.usage.prompt_tokens)


async def _relay(
    client: ClientConnection,
    exchange: RequestRecord,
    permit: Permit,
    answer: EngineResponse,
    events: EventStream,
    growth: Callable[[int], tuple[float, int]],
    prefilled: Callable[[], None],
) -> None:
    """A stream, chunk by chunk, as it comes. `growth` is what so many chunks have come to: engine seconds, cache."""
    if client.started:
        account = (f"{name.decode()}={value.decode()}" for name, value in _account(exchange))
        await client.comment(" ".join(["dispatched", *account]))
    else:
        await client.start(answer.status, answer.headers + _own_headers(exchange))
    async for chunk in answer.chunks():
        whole = events.feed(chunk)
        permit.track.tokens = events.chunks
        if exchange.timeline.first_token is None and events.first_token:
            exchange.timeline.first_token = perf_counter()
            permit.first_token(guessed=exchange.retried)
            prefilled()
        if events.chunks % PROGRESS_CHUNKS == 0:
            permit.progress(*growth(events.chunks))
        if whole:
            await client.write(whole)
    await client.write(events.end(), more=False)


async def _hand_over(
    client: ClientConnection, exchange: RequestRecord, permit: Permit, answer: EngineResponse, api: Api
) -> None:
    """An answer in one piece. It is read whole first: should the engine break off, the client gets an error that
    says so, and no half of an answer."""
    body = await answer.read()
    if exchange.timeline.first_token is None and answer.status < 400:
        exchange.timeline.first_token = perf_counter()
        exchange.prefill_source = "answer"
        if not api.decodes:
            permit.first_token()  # which is all there is
    said = api.read(body)
    exchange.usage, exchange.times = said.usage, said.times
    if client.started:
        await client.write(api.errors.frame(_engine_error(body)), more=False)
    else:
        await client.respond(answer.status, answer.headers + _own_headers(exchange), body)


async def _prefill_ends(exchange: RequestRecord, permit: Permit) -> None:
    """Nothing shows when the first token of an unstreamed answer is there, so it is taken to come as predicted."""
    await anyio.sleep(permit.predicted_prefill_s)
    if exchange.timeline.first_token is None:
        exchange.timeline.first_token = perf_counter()
        exchange.prefill_source = "predicted"
        permit.first_token(guessed=True)


async def _tell(client: ClientConnection, exchange: RequestRecord, error: GatewayError, api: Api) -> None:
    """Answer with the error: as a response, or, once a stream has begun, as its last event."""
    exchange.outcome = error.outcome
    if client.started:
        await client.write(api.errors.event(error), more=False)
    else:
        exchange.status = error.status
        headers = [(b"content-type", b"application/json"), *error.headers(), *_own_headers(exchange)]
        await client.respond(error.status, headers, api.errors.body(error))


def _engine_error(body: bytes) -> dict[str, Any]:
    """What the engine answered, in one piece and perhaps several lines, to a request whose stream has begun."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if not (isinstance(content, dict) and content.get("error")):
        raise BadUpstream("The engine answered a streamed request with neither a stream nor an error.")
    return content


def _own_headers(exchange: RequestRecord) -> Headers:
    return [*_id_header(exchange), *_account(exchange)]


def _id_header(exchange: RequestRecord) -> Headers:
    return [(b"x-request-id", exchange.id.encode())]


def _account(exchange: RequestRecord) -> Headers:
    """How long it waited, and what it costs, as far as it came."""
    if exchange.job is None or exchange.timeline.queue_s is None:
        return []
    return [
        (b"x-fairlane-queue-ms", b"%.0f" % (1e3 * exchange.timeline.queue_s)),
        (b"x-fairlane-cost-s", b"%.3f" % exchange.job.cost),
        *([(b"x-fairlane-slices", b"%d" % len(exchange.slices))] if exchange.slices else []),
    ]


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    if (
        0 < len(given) <= _MAX_ID
        and given.isascii()
        and given.isprintable()
        and " " not in given
        and not KEY_PATTERN.search(given.encode())
    ):
        return given
    return uuid.uuid4().hex
