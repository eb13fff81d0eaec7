"""Prometheus metrics. The budgets' gauges are read from admission's own counters when somebody asks, so they
cannot disagree with it, and cost a request nothing.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gateway.admission import Admission
from gateway.estimator import Estimator
from gateway.exchange import Exchange
from policies.base import LANES

# A long prompt on a busy Spark waits minutes: the usual buckets end where ours have their middle.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class Metrics:
    def __init__(self, admission: Admission, estimator: Estimator) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Budgets(admission, estimator))
        self._requests = Counter(
            "fairlane_requests", "Finished requests by how they ended.", ["outcome"], registry=self._registry
        )
        self._queue = self._histogram("fairlane_queue_seconds", "Waiting for admission.")
        self._ttft = self._histogram("fairlane_time_to_first_token_seconds", "Arrival to first token, of streams.")
        self._e2e = self._histogram("fairlane_request_seconds", "Arrival to the end of the answer.")
        self._prompt_tokens = Counter(
            "fairlane_prompt_tokens", "Prompt tokens, as the engine counted them.", registry=self._registry
        )
        self._output_tokens = Counter(
            "fairlane_output_tokens", "Output tokens, as the engine counted them.", registry=self._registry
        )

    def finish(self, exchange: Exchange) -> None:
        timeline = exchange.timeline
        self._requests.labels(exchange.outcome).inc()
        if exchange.job is None:
            return
        for histogram, seconds in (
            (self._queue, timeline.queue_s),
            (self._ttft, timeline.ttft_s if exchange.stream else None),
            (self._e2e, timeline.e2e_s),
        ):
            if seconds is not None:
                histogram.labels(exchange.job.lane).observe(seconds)
        if exchange.usage is not None:
            self._prompt_tokens.inc(max(0, exchange.usage.prompt_tokens))
            self._output_tokens.inc(max(0, exchange.usage.output_tokens))

    def text(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(name, description, ["lane"], buckets=_SECONDS, registry=self._registry)


class _Budgets(Collector):
    def __init__(self, admission: Admission, estimator: Estimator) -> None:
        self._admission = admission
        self._estimator = estimator

    def collect(self) -> Iterator[GaugeMetricFamily]:
        admission, limits = self._admission, self._admission.limits
        jobs = GaugeMetricFamily("fairlane_queue_jobs", "Requests that wait.", labels=["lane"])
        prefill_jobs = GaugeMetricFamily("fairlane_prefill_jobs", "Requests in prefill.", labels=["lane"])
        prefill_tokens = GaugeMetricFamily(
            "fairlane_prefill_tokens", "Predicted prompt tokens in prefill.", labels=["lane"]
        )
        for lane in LANES:
            jobs.add_metric([lane], admission.waiting(lane))
            prefill_jobs.add_metric([lane], admission.prefill_jobs(lane))
            prefill_tokens.add_metric([lane], admission.prefill_tokens(lane))
        yield from (jobs, prefill_jobs, prefill_tokens)
        yield GaugeMetricFamily("fairlane_seats", "Sequences in the engine.", value=admission.seats)
        yield GaugeMetricFamily(
            "fairlane_seats_limit", "Sequences that may be in the engine.", value=limits.max_num_seqs
        )
        yield GaugeMetricFamily(
            "fairlane_bytes_per_token", "Learned size of a token of text.", value=self._estimator.bytes_per_token
        )
