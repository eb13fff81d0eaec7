"""From the queue to the end of the answer: one request's permit, its slices, the engine's answer, what is learned."""

from time import perf_counter

import anyio
from anyio.abc import TaskGroup

from gateway.api.base import InferenceRequest
from gateway.api.priority import with_priority
from gateway.api.sse import EventStream
from gateway.config.settings import Settings
from gateway.engine.client import EngineClient, EngineRequest
from gateway.lifecycle.lifecycle import Lifecycle
from gateway.lifecycle.slice_review import SliceResult
from gateway.outcome import Outcome
from gateway.proxy.call import Call
from gateway.proxy.keepalive import Keepalives
from gateway.proxy.relay import forwarded, relay_stream, relay_whole
from gateway.proxy.sliced_prefill import SliceBodies, SlicedPrefill
from gateway.proxy.waiting_room import WaitingRoom
from gateway.telemetry.tracing import EngineCall, RequestTrace
from gateway.types import Headers


class Dispatcher:
    def __init__(
        self,
        settings: Settings,
        waiting: WaitingRoom,
        engine: EngineClient,
        slices: SlicedPrefill,
        keepalives: Keepalives,
    ) -> None:
        self._waiting = waiting
        self._engine = engine
        self._slices = slices
        self._keepalives = keepalives
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        self.order = settings.engine.order

    async def serve(self, call: Call, request: InferenceRequest, trace: RequestTrace, tasks: TaskGroup) -> None:
        """Raises GatewayError."""
        life = call.begun
        plan = life.request.plan
        bodies = SliceBodies(request, call.ids, plan.block) if plan and call.ids is not None else None
        call.events = EventStream(call.route.api.read, len(request.prompts), request.n, request.drop_usage)
        call.queued_at = perf_counter()
        if request.stream:
            tasks.start_soon(self._keepalives.send, call)
        async with self._waiting.admitted(life):
            try:
                headers = [*forwarded(call.client.headers), *trace.call_engine(self._engine_call(call, request))]
                if bodies:
                    await self._slices.run(life, bodies, self.order, headers)
                await self._ask(call, request, headers, tasks)
            finally:
                life.settle(call.said, perf_counter())
        self._learn(call, life)

    def _engine_call(self, call: Call, request: InferenceRequest) -> EngineCall:
        return EngineCall(
            call.route.api.operation,
            self._engine.base_url,
            request.model,
            request.stream,
            request.max_tokens,
            call.dispatched_at,
        )

    async def _ask(self, call: Call, request: InferenceRequest, headers: Headers, tasks: TaskGroup) -> None:
        """The request itself."""
        life = call.begun

        def sent() -> None:
            if call.route.api.decodes and not request.stream:
                tasks.start_soon(_predict_first_token, life, life.ticket.predicted_prefill_s)

        body = with_priority(request.body, self.order(life.ticket.number)) if request.json else request.body
        wanted = EngineRequest("POST", call.route.path, body, [*headers, *call.id_header], on_sent=sent)
        async with self._engine.send(wanted) as response:
            life.retried = not response.first_attempt
            if response.streams:
                await relay_stream(call, life, response)
            else:
                await relay_whole(call, life, response)
        failed = response.status >= 400 or call.events.failed
        call.engine_failed = response.status >= 500 or call.events.failed
        call.outcome = Outcome.ENGINE_ERROR if failed else Outcome.COMPLETED

    def _learn(self, call: Call, life: Lifecycle) -> None:
        if call.outcome is not Outcome.COMPLETED:
            return
        learned = life.learn(call.said)
        self._slices.report(SliceResult(tripped=learned.tripped, reuse=learned.reuse))
        if learned.curve:
            call.observation = life.settlement.observation


async def _predict_first_token(life: Lifecycle, seconds: float) -> None:
    """Nothing shows when the first token of an answer that comes whole is there, so it is taken to come as
    predicted."""
    await anyio.sleep(seconds)
    life.predict_first_token(perf_counter())
