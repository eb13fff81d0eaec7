"""One call of a client: what is known of it while it is served, and the record that telemetry gets at its end."""

import uuid
from time import perf_counter

from gateway.api.base import InferenceRequest
from gateway.api.routes import Queued
from gateway.api.sse import EventStream
from gateway.errors import GatewayError
from gateway.identity.keys import KEY_PATTERN
from gateway.lifecycle.lifecycle import Lifecycle
from gateway.lifecycle.settlement import Answer
from gateway.outcome import Outcome
from gateway.pricing.cost_model import Price
from gateway.pricing.curves import PrefillObservation
from gateway.proxy.client_connection import ClientConnection
from gateway.telemetry.record import RequestRecord, Timeline
from gateway.tokenizers.engine import Ids
from gateway.types import Headers

# An id is echoed into headers, logs and spans: what is longer, or holds a key or anything odd, is replaced.
_MAX_ID = 128


class Call:
    """Each attribute is set by the one step that finds it out.

    request             as it was read
    background          it is served last
    price, ids          priced; the ids of its tokens, where it may be sliced
    asked_at, counted_at  when its tokens were counted, if they were
    life                its life, from the queue on
    queued_at           when it began to wait for admission
    events              the stream of its answer
    answer              what the engine says of an answer that came whole
    observation         its prefill, if that was a sample of the curve
    """

    def __init__(self, route: Queued, client: ClientConnection, scheme: str) -> None:
        self.route = route
        self.client = client
        self.scheme = scheme
        self.id = _request_id(client.headers)
        self.arrived_at = perf_counter()
        self.request: InferenceRequest | None = None
        self.background = False
        self.price: Price | None = None
        self.ids: Ids | None = None
        self.asked_at: float | None = None
        self.counted_at: float | None = None
        self.life: Lifecycle | None = None
        self.queued_at: float | None = None
        self.events = EventStream(route.api.read)
        self.answer: Answer | None = None
        self.observation: PrefillObservation | None = None
        self.outcome = Outcome.INTERRUPTED
        self.engine_failed = False

    @property
    def begun(self) -> Lifecycle:
        """Its life, which it has once it is priced."""
        assert self.life is not None, "it is not priced yet"
        return self.life

    @property
    def dispatched_at(self) -> float | None:
        return self.life.dispatched_at if self.life else None

    @property
    def id_header(self) -> Headers:
        return [(b"x-request-id", self.id.encode())]

    @property
    def account(self) -> Headers:
        """How long it waited, and what it costs, as far as it came."""
        life = self.life
        if life is None or life.dispatched_at is None or self.queued_at is None:
            return []
        slices = [(b"x-fairlane-slices", b"%d" % len(life.slices))] if life.slices else []
        return [
            (b"x-fairlane-queue-ms", b"%.0f" % (1e3 * (life.dispatched_at - self.queued_at))),
            (b"x-fairlane-cost-s", b"%.3f" % life.job.cost),
            *slices,
        ]

    @property
    def headers(self) -> Headers:
        """What the gateway adds to the answer's."""
        return [*self.id_header, *self.account]

    @property
    def said(self) -> Answer:
        """What the engine has said of the answer so far, which came whole or as a stream."""
        if self.answer is not None:
            return self.answer
        times = self.events.times
        if times is None:
            return Answer(self.events.usage)
        return Answer(self.events.usage, times.queue_s, times.generation_s)

    async def fail(self, error: GatewayError) -> None:
        """Answer with the error: as a response, or, once a stream has begun, as its last event."""
        self.outcome = error.outcome
        errors, client = self.route.api.errors, self.client
        if client.started:
            await client.write(errors.event(error), more=False)
        else:
            headers = [(b"content-type", b"application/json"), *error.headers(), *self.headers]
            await client.respond(error.status, headers, errors.body(error))

    def record(self) -> RequestRecord:
        """All that telemetry is told, filled in here and nowhere else."""
        life, request, gone = self.life, self.request, self.client.gone
        settlement = life.settlement if life else None
        return RequestRecord(
            id=self.id,
            route=self.route.path,
            scheme=self.scheme,
            timeline=self._timeline(),
            model=request.model if request else None,
            prompts=len(request.prompts) if request else 1,
            stream=request.stream if request else False,
            price=self.price,
            job=life.job if life else None,
            background=self.background,
            status=self.client.status or (gone.status if gone else 0),
            outcome=gone.outcome if gone else self.outcome,
            usage=settlement.usage if settlement else None,
            counts=settlement.counts if settlement else None,
            true_prefill_s=settlement.prefill_s if settlement else None,
            charged_s=settlement.charge_s if settlement and self.dispatched_at is not None else None,
            observation=self.observation,
            timing_source=life.timing_source if life else "observed",
            retried=life.retried if life else False,
            engine_failed=self.engine_failed,
            slices=tuple(life.slices) if life else (),
        )

    def _timeline(self) -> Timeline:
        return Timeline(
            arrived=self.arrived_at,
            asked=self.asked_at,
            counted=self.counted_at,
            queued=self.queued_at,
            dispatched=self.dispatched_at,
            first_token=self.life.first_token_at if self.life else None,
            ended=perf_counter(),
        )


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
