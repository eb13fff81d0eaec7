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

    def start(self, route: str, arrived_at: float, headers: dict[bytes, bytes]) -> RequestTrace:
        return self.tracing.start(route, arrived_at, headers)

    def finish(self, record: RequestRecord, trace: RequestTrace) -> None:
        """Never raises: an answer that was given stays given, whatever becomes of its telemetry."""
        try:
            trace.finish(record)
            self.metrics.finish(record)
            requests.info("%s", _line(record))
        except Exception:
            logger.exception("telemetry of request %s failed", record.id)


def _line(record: RequestRecord) -> str:
    """`key=value` pairs in a fixed order; seconds with milliseconds, `-` for a phase that was not reached."""
    job, price, timeline, usage = record.job, record.price, record.timeline, record.usage
    pairs = {
        "id": record.id,
        "user": hashed(job.flow) if job else None,
        "lane": job.lane if job else None,
        "class": "background" if record.background else None,
        "predicted": price.tokens if price else None,
        "prompt": usage.prompt_tokens if usage else None,
        "cached": usage.cached if usage else None,
        "output": usage.output_tokens if usage else None,
        "slices": len(record.slices) or None,
        "queue_s": timeline.queue_s,
        "prefill_s": timeline.prefill_s,
        "decode_s": timeline.decode_s,
        "status": record.status or None,
        "outcome": record.outcome,
    }
    return " ".join(f"{key}={_value(value)}" for key, value in pairs.items())


def _value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
