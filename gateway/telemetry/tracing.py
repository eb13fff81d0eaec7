"""One trace a request: SERVER span; `queue`, `prefill`, `decode` under it; a CLIENT span whose context vLLM gets.

    POST /v1/chat/completions   SERVER    arrived .. ended
    |- tokenize                 INTERNAL  asked .. counted       where tokens were counted
    |- queue                    INTERNAL  queued .. dispatched
    |- chat {model}             CLIENT    dispatched .. ended    vLLM's llm_request span nests here
    |- prefill                  INTERNAL  dispatched .. first token
    |  `- slice                 INTERNAL  sent .. answered       each but the last, which is the client's own request
    `- decode                   INTERNAL  first token .. ended

Spans are drawn after the fact from the record's timeline. Exporting happens on a thread of its own, from a
bounded queue that drops what does not fit: a collector that is slow or dead costs a request nothing.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from gateway.identity.callers import hashed
from gateway.lifecycle.settlement import FinishedSlice
from gateway.telemetry import semconv
from gateway.telemetry.record import RequestRecord
from gateway.types import Headers

_propagator = TraceContextTextMapPropagator()

# The SDK waits for up to 30 s at shutdown for a collector that does not answer; the gateway does not.
SHUTDOWN_TIMEOUT = 3.0


class EngineCall(NamedTuple):
    """What is sent to the engine, as its CLIENT span tells it. `operation` is its gen_ai.operation.name."""

    operation: str
    base_url: str
    model: str | None
    stream: bool
    max_tokens: int | None
    started_at: float | None


class RequestTrace:
    """The spans of one request."""

    def __init__(self, tracer: trace.Tracer, route: str, arrived_at: float, headers: dict[bytes, bytes]) -> None:
        self._tracer = tracer
        # Span times are wall-clock nanoseconds; the timeline's are seconds on a monotonic clock.
        self._epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        self._server = tracer.start_span(
            f"POST {route}",
            context=_propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=self._ns(arrived_at),
        )
        self._context = trace.set_span_in_context(self._server)
        self._client: Span | None = None

    def call_engine(self, call: EngineCall) -> Headers:
        """Begin the CLIENT span; the headers that make the engine's spans its children."""
        engine = urlsplit(call.base_url)
        attributes: dict[str, AttributeValue | None] = {
            semconv.OPERATION: call.operation,
            semconv.PROVIDER: "vllm",
            semconv.REQUEST_MODEL: call.model,
            semconv.REQUEST_STREAM: call.stream,
            semconv.REQUEST_MAX_TOKENS: call.max_tokens,
            semconv.SERVER_ADDRESS: engine.hostname,
            semconv.SERVER_PORT: engine.port,
        }
        self._client = self._tracer.start_span(
            f"{call.operation} {call.model or ''}".strip(),
            context=self._context,
            kind=SpanKind.CLIENT,
            start_time=self._ns(call.started_at),
            attributes=_given(attributes),
        )
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._client))
        return [(name.encode(), value.encode()) for name, value in carrier.items()]

    def finish(self, record: RequestRecord) -> None:
        """Draw the phases and end all spans."""
        timeline = record.timeline
        self._phase("tokenize", timeline.asked, timeline.counted or timeline.ended)
        self._phase("queue", timeline.queued, timeline.dispatched or timeline.ended)
        source = {semconv.TIMING_SOURCE: str(record.timing_source)}
        prefill = self._phase("prefill", timeline.dispatched, timeline.first_token or timeline.ended, source)
        for each in record.slices:
            self._slice(each, prefill)
        self._phase("decode", timeline.first_token, timeline.ended, source)
        if self._client:
            self._client.set_attributes(_given(_usage(record)))
            self._end(self._client, record)
        self._server.set_attributes(_given(_request(record) | _usage(record)))
        self._end(self._server, record)

    def _phase(
        self, name: str, start: float | None, end: float | None, attributes: dict[str, str] | None = None
    ) -> Context:
        """Draw it; the context in which its parts are drawn."""
        if start is None:
            return self._context
        span = self._tracer.start_span(name, self._context, start_time=self._ns(start), attributes=attributes)
        span.end(self._ns(end))
        return trace.set_span_in_context(span)

    def _slice(self, done: FinishedSlice, prefill: Context) -> None:
        attributes: dict[str, AttributeValue | None] = {
            semconv.SLICE_START: done.start,
            semconv.SLICE_END: done.end,
            semconv.CACHED_TOKENS: done.cached,
            semconv.PREDICTED_COST: done.cost_s,
        }
        span = self._tracer.start_span(
            "slice", prefill, start_time=self._ns(done.started), attributes=_given(attributes)
        )
        span.end(self._ns(done.ended))

    def _end(self, span: Span, record: RequestRecord) -> None:
        # A 4xx or a client that left is no failure of the server (semantic conventions for HTTP spans, Status). What
        # went wrong after a stream had begun with 200 is one.
        if record.failed:
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute(semconv.ERROR_TYPE, record.outcome)
        span.end(self._ns(record.timeline.ended))

    def _ns(self, seconds: float | None) -> int | None:
        return None if seconds is None else self._epoch_ns + int(seconds * 1e9)


def _request(record: RequestRecord) -> dict[str, AttributeValue | None]:
    job, price = record.job, record.price
    return {
        semconv.HTTP_METHOD: "POST",
        semconv.HTTP_ROUTE: record.route,
        semconv.URL_PATH: record.route,
        semconv.URL_SCHEME: record.scheme,
        semconv.HTTP_STATUS: record.status or None,
        semconv.REQUEST_ID: record.id,
        semconv.OUTCOME: record.outcome,
        semconv.USER: hashed(job.flow) if job else None,
        semconv.LANE: job.lane if job else None,
        semconv.SEATS: job.seats if job else None,
        semconv.PREDICTED_TOKENS: price.tokens if price else None,
        semconv.PREDICTED_CACHED: price.cached if price else None,
        semconv.PREDICTED_COST: price.seconds if price else None,
        semconv.COUNTED: price.counted if price else None,
        semconv.TRUE_COST: record.true_prefill_s,
        semconv.OBSERVED_PREFILL: record.observation.seconds if record.observation else None,
        semconv.CHARGED: record.charged_s,
        semconv.SLICES: len(record.slices) or None,
        semconv.RETRIED: record.retried or None,
    }


def _usage(record: RequestRecord) -> dict[str, AttributeValue | None]:
    usage = record.usage
    return {
        semconv.INPUT_TOKENS: usage.prompt_tokens if usage else None,
        semconv.OUTPUT_TOKENS: usage.output_tokens if usage else None,
        semconv.CACHED_TOKENS: usage.cached if usage else None,
    }


def _given(attributes: dict[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}


class Tracing:
    """The tracer and what it exports to: OTLP/HTTP where the standard OTEL_* variables name a collector, and a file."""

    def __init__(self, trace_file: Path | None = None) -> None:
        self._provider: TracerProvider | None = None
        exporters = _otlp_exporters()
        if trace_file is not None:
            exporters.append(JsonLinesExporter(trace_file))
        provider: trace.TracerProvider = trace.NoOpTracerProvider()
        if exporters:
            resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "fairlane")})
            provider = self._provider = TracerProvider(resource=resource)
            for exporter in exporters:
                # 1 s instead of 5: the SDK's worker can miss the wake-up of a full batch and sleep it out.
                delay = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else 1000
                size = None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else 8192
                self._provider.add_span_processor(
                    BatchSpanProcessor(exporter, max_queue_size=size, schedule_delay_millis=delay)
                )
        self._tracer = provider.get_tracer("fairlane")

    def start(self, route: str, arrived_at: float, headers: dict[bytes, bytes]) -> RequestTrace:
        return RequestTrace(self._tracer, route, arrived_at, headers)

    def shutdown(self) -> None:
        """Export what is left, for at most SHUTDOWN_TIMEOUT seconds. Blocks: call it off the event loop."""
        if self._provider is not None:
            thread = Thread(target=self._provider.shutdown, daemon=True)
            thread.start()
            thread.join(SHUTDOWN_TIMEOUT)


def _otlp_exporters() -> list[SpanExporter]:
    env = os.environ
    wanted = "OTEL_EXPORTER_OTLP_ENDPOINT" in env or "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" in env
    if not wanted or env.get("OTEL_SDK_DISABLED") == "true" or env.get("OTEL_TRACES_EXPORTER") == "none":
        return []
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    for name in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal"):
        logging.getLogger(name).addFilter(_Once())
    return [OTLPSpanExporter()]


class _Once(logging.Filter):
    """A collector that is down is worth one line, not one for every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if self._said:
            return False
        self._said = True
        logging.getLogger("fairlane").warning(
            "The trace collector cannot be reached; spans are dropped until it can. This is said once. (%s)",
            record.getMessage().splitlines()[0][:200],
        )
        return False


class JsonLinesExporter(SpanExporter):
    """A line of JSON a span: name, kind, trace_id, span_id, parent_id, start and end (seconds since 1970),
    duration_s, status, attributes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            self._file.writelines(json.dumps(_line(span)) + "\n" for span in spans)
            self._file.flush()
        except (OSError, ValueError):
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def _line(span: ReadableSpan) -> dict[str, object]:
    start, end = (span.start_time or 0) / 1e9, (span.end_time or 0) / 1e9
    context = span.get_span_context()
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace_id": trace.format_trace_id(context.trace_id) if context else None,
        "span_id": trace.format_span_id(context.span_id) if context else None,
        "parent_id": trace.format_span_id(span.parent.span_id) if span.parent else None,
        "start": start,
        "end": end,
        "duration_s": round(end - start, 6),
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
    }
