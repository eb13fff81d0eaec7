"""One completion request, top to bottom: the walk that the package's docstring draws."""

import logging
import uuid
from dataclasses import dataclass
from time import perf_counter

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive, Scope, Send

from gateway.callers import Callers
from gateway.client import Client
from gateway.completion import Completion, Route, parse
from gateway.cost import CostModel
from gateway.errors import GatewayError, InternalError
from gateway.exchange import Exchange
from gateway.sse import EventStream, read_usage
from gateway.telemetry import Telemetry
from gateway.timeline import Timeline
from gateway.tracing import RequestTrace
from gateway.upstream import Answer, Upstream, forwarded
from gateway.waiting import Permit, WaitingRoom
from policies.base import Job

logger = logging.getLogger("fairlane")

# An id is echoed into headers, logs and spans: what is longer, or holds anything odd, is replaced.
_MAX_ID = 128


@dataclass(frozen=True, slots=True)
class Completions:
    """`POST` to a completion route, as a raw ASGI endpoint."""

    route: Route
    callers: Callers
    cost_model: CostModel
    waiting: WaitingRoom
    upstream: Upstream
    telemetry: Telemetry
    max_body: int
    client_stall: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(scope, receive, send, self.client_stall)
        exchange = Exchange(_request_id(client.headers), self.route, Timeline(arrived=perf_counter()))
        trace = self.telemetry.start(exchange, client.headers)
        try:
            async with anyio.create_task_group() as tasks:
                # Caught in here, for the group would wrap what leaves it into an ExceptionGroup.
                try:
                    await self._serve(client, exchange, trace, tasks)
                except GatewayError as error:
                    await _tell(client, exchange, error)
                except Exception:
                    logger.exception("request %s failed", exchange.id)
                    await _tell(client, exchange, InternalError("The gateway failed; its log has the reason."))
                tasks.cancel_scope.cancel()
            if client.gone:
                exchange.outcome = client.gone.code
                exchange.status = exchange.status or client.gone.status
        finally:
            exchange.timeline.ended = perf_counter()
            self.telemetry.finish(exchange, trace)

    async def _serve(self, client: Client, exchange: Exchange, trace: RequestTrace, tasks: TaskGroup) -> None:
        caller = self.callers.identify(client.address, client.headers)
        completion = parse(self.route, await client.body(self.max_body))
        job = self._job(exchange, completion, caller.flow(completion.user))
        tasks.start_soon(client.watch_leaving, tasks.cancel_scope)
        tasks.start_soon(client.watch_reading, tasks.cancel_scope)

        exchange.timeline.queued = perf_counter()
        async with self.waiting.admitted(job) as permit:
            exchange.timeline.dispatched = perf_counter()
            events = EventStream(len(completion.prompts), completion.n, completion.drop_usage)
            headers = [
                *forwarded(client.headers),
                *trace.call_engine(self.upstream.base_url),
                (b"x-request-id", exchange.id.encode()),
            ]
            if not completion.stream:
                tasks.start_soon(_prefill_ends, exchange, permit)
            try:
                async with self.upstream.post(self.route, completion.body, headers) as answer:
                    exchange.status = answer.status
                    if answer.streams:
                        await _relay(client, exchange, permit, answer, events)
                    else:
                        await _hand_over(client, exchange, answer)
            finally:
                exchange.usage = exchange.usage or events.usage
                exchange.timeline.ended = perf_counter()
                permit.cost = self._cost(exchange, job, events.chunks)

        failed = events.failed or exchange.status >= 400
        exchange.outcome = "engine_error" if failed else "completed"
        if exchange.usage:
            self.cost_model.learn(completion.prompts, exchange.usage)

    def _job(self, exchange: Exchange, completion: Completion, flow: str) -> Job:
        tokens, cost = self.cost_model.predict(completion.prompts)
        lane = self.waiting.admission.limits.lane(tokens)
        exchange.model = completion.model
        exchange.prompts = len(completion.prompts)
        exchange.stream = completion.stream
        exchange.max_tokens = completion.max_tokens
        exchange.job = Job(flow, lane, tokens, cost, exchange.timeline.arrived, completion.seats, exchange.id)
        return exchange.job

    def _cost(self, exchange: Exchange, job: Job, chunks: int) -> float:
        if exchange.usage:
            return self.cost_model.true_cost(exchange.usage, exchange.prompts)
        timeline = exchange.timeline
        elapsed = perf_counter() - (timeline.dispatched or timeline.arrived)
        began = timeline.first_token is not None
        return self.cost_model.partial_cost(job.cost, elapsed=elapsed, began=began, chunks=chunks)


async def _relay(client: Client, exchange: Exchange, permit: Permit, answer: Answer, events: EventStream) -> None:
    """A stream, chunk by chunk, as it comes."""
    await client.start(answer.status, answer.headers + _own_headers(exchange))
    async for chunk in answer.chunks():
        whole = events.feed(chunk)
        if exchange.timeline.first_token is None and events.first_token:
            exchange.timeline.first_token = perf_counter()
            permit.first_token()
        if whole:
            await client.write(whole)
    await client.write(events.end(), more=False)


async def _hand_over(client: Client, exchange: Exchange, answer: Answer) -> None:
    """An answer in one piece. It is read whole first: should the engine break off, the client gets an error that
    says so, and no half of an answer."""
    body = await answer.read()
    if exchange.timeline.first_token is None and answer.status < 400:
        exchange.timeline.first_token = perf_counter()
        exchange.prefill_source = "answer"
    exchange.usage = read_usage(body)
    await client.respond(answer.status, answer.headers + _own_headers(exchange), body)


async def _prefill_ends(exchange: Exchange, permit: Permit) -> None:
    """Nothing shows when the first token of an unstreamed answer is there, so it is taken to come as predicted."""
    await anyio.sleep(permit.predicted_prefill_s)
    if exchange.timeline.first_token is None:
        exchange.timeline.first_token = perf_counter()
        exchange.prefill_source = "predicted"
        permit.first_token()


async def _tell(client: Client, exchange: Exchange, error: GatewayError) -> None:
    """Answer with the error: as a response, or, once a stream has begun, as its last event."""
    exchange.outcome = error.code
    if client.started:
        await client.write(b"data: " + error.body() + b"\n\ndata: [DONE]\n\n", more=False)
    else:
        exchange.status = error.status
        headers = [(b"content-type", b"application/json"), *error.headers(), *_own_headers(exchange)]
        await client.respond(error.status, headers, error.body())


def _own_headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", exchange.id.encode())]
    if exchange.job and exchange.timeline.queue_s is not None:
        headers.append((b"x-fairlane-queue-ms", b"%.0f" % (1e3 * exchange.timeline.queue_s)))
        headers.append((b"x-fairlane-cost-s", b"%.3f" % exchange.job.cost))
    return headers


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    if 0 < len(given) <= _MAX_ID and given.isascii() and given.isprintable() and " " not in given:
        return given
    return uuid.uuid4().hex
