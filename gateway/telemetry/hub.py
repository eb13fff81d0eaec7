"""What is told of a request when it is over: its spans, its metrics, one line of log."""

import logging

from gateway.identity.callers import hashed
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import RequestRecord
from gateway.telemetry.tracing import RequestTrace, Tracing

logger = logging.getLogger("fairlane")
requests = logging.getLogger("fairlane.requests")


class Telemetry:
    def __init__(self, tracing: Tracing, metrics: Metrics) -> None:
        self.tracing = tracing
        self.metrics = metrics

    def start(self, exchange: RequestRecord, headers: dict[bytes, bytes]) -> RequestTrace:
        return self.tracing.start(exchange, headers)

    def finish(self, exchange: RequestRecord, trace: RequestTrace) -> None:
        """Never raises: an answer that was given stays given, whatever becomes of its telemetry."""
        try:
            trace.finish()
            self.metrics.finish(exchange)
            requests.info("%s", _line(exchange))
        except Exception:
            logger.exception("telemetry of request %s failed", exchange.id)


def _line(exchange: RequestRecord) -> str:
    """`key=value` pairs in a fixed order; seconds with milliseconds, `-` for a phase that was not reached."""
    job, price, timeline, usage = exchange.job, exchange.price, exchange.timeline, exchange.usage
    pairs = {
        "id": exchange.id,
        "user": hashed(job.flow) if job else None,
        "lane": job.lane if job else None,
        "class": "background" if exchange.background else None,
        "predicted": price.tokens if price else None,
        "prompt": usage.prompt_tokens if usage else None,
        "cached": usage.cached if usage else None,
        "output": usage.output_tokens if usage else None,
        "slices": len(exchange.slices) or None,
        "queue_s": timeline.queue_s,
        "prefill_s": timeline.prefill_s,
        "decode_s": timeline.decode_s,
        "status": exchange.status or None,
        "outcome": exchange.outcome,
    }
    return " ".join(f"{key}={_value(value)}" for key, value in pairs.items())


def _value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
