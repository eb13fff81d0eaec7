"""Prometheus metrics. The budgets' gauges are read from admission's own counters when somebody asks, so they
cannot disagree with it, and cost a request nothing.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gateway.outcome import Outcome
from gateway.pricing.cost_model import CostModel
from gateway.scheduling.admission import Admission
from gateway.scheduling.reconciler import EngineState
from gateway.telemetry.record import RequestRecord
from policies.base import LANES

# A long prompt on a busy Spark waits minutes: the usual buckets end where ours have their middle.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class Metrics:
    def __init__(self, admission: Admission, cost_model: CostModel, slicing_off: Callable[[], int]) -> None:
        """`slicing_off` counts the models whose prompts are not cut."""
        self._registry = CollectorRegistry()
        self._registry.register(_Budgets(admission))
        self._registry.register(_Prices(cost_model))
        off = self._gauge(
            "fairlane_slicing_off", "Models whose long prompts are not cut, for slices do not find their beginnings."
        )
        off.set_function(slicing_off)
        self._count_requests()
        self._watch_engine()
        self._count_tokens()
        self._count_slices()

    def _count_requests(self) -> None:
        self._requests = Counter(
            "fairlane_requests", "Finished requests by how they ended.", ["outcome"], registry=self._registry
        )
        self._queue = self._histogram("fairlane_queue_seconds", "Waiting for admission.")
        self._ttft = self._histogram("fairlane_time_to_first_token_seconds", "Arrival to first token, of streams.")
        self._e2e = self._histogram("fairlane_request_seconds", "Arrival to the end of the answer.")
        self._forecast = Histogram(
            "fairlane_forecast_ratio",
            "Seconds to the first token over those that were forecast on arrival, of requests that waited.",
            buckets=(0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0),
            registry=self._registry,
        )
        self._retried = self._counter(
            "fairlane_engine_asked_again", "Requests sent once more, for a connection that broke before an answer came."
        )

    def _watch_engine(self) -> None:
        self._engine_up = self._gauge(
            "fairlane_engine_metrics_up", "Whether the engine's metrics can be read; if not, the ledger stands alone."
        )
        self._engine_running = self._gauge("fairlane_engine_running", "Sequences that run, as the engine says.")
        self._engine_waiting = self._gauge("fairlane_engine_waiting", "Sequences that wait inside the engine.")
        self._engine_kv = self._gauge("fairlane_engine_kv_usage", "Share of the engine's cache in use.")
        self._engine_preemptions = self._gauge("fairlane_engine_preemptions", "Preemptions in the engine so far.")

    def _count_tokens(self) -> None:
        self._prompt_tokens = self._counter("fairlane_prompt_tokens", "Prompt tokens, as the engine counted them.")
        self._cached_tokens = self._counter("fairlane_cached_tokens", "Of these, found in the engine's prefix cache.")
        self._output_tokens = self._counter("fairlane_output_tokens", "Output tokens, as the engine counted them.")
        self._predicted_tokens = self._counter("fairlane_predicted_prompt_tokens", "Prompt tokens, as predicted.")
        self._predicted_cached_tokens = self._counter("fairlane_predicted_cached_tokens", "Of these, cached.")

    def _count_slices(self) -> None:
        self._slices = self._counter("fairlane_slices", "Slices of long prompts, prefilled.")
        self._sliced = self._counter("fairlane_sliced_tokens", "Prompt tokens that they have prefilled.")
        self._slice_tokens = self._counter(
            "fairlane_slice_tokens", "Tokens that the slices before a slice, or before the request itself, had done."
        )
        self._slice_cached = self._counter("fairlane_slice_cached_tokens", "Of these, found in the engine's cache.")

    def finish(self, record: RequestRecord) -> None:
        timeline = record.timeline
        self._requests.labels(record.outcome).inc()
        if record.job is None:
            return
        for histogram, seconds in (
            (self._queue, timeline.queue_s),
            (self._ttft, timeline.ttft_s if record.stream else None),
            (self._e2e, timeline.e2e_s),
        ):
            if seconds is not None:
                histogram.labels(record.job.lane).observe(seconds)
        if record.counts is not None:
            self._prompt_tokens.inc(record.counts.prompt)
            self._cached_tokens.inc(record.counts.cached)
            self._output_tokens.inc(record.counts.output)
            if record.price is not None:
                self._predicted_tokens.inc(record.price.tokens)
                self._predicted_cached_tokens.inc(record.price.cached)

    def refused(self, outcome: Outcome) -> None:
        """A connection ended before there was a request."""
        self._requests.labels(outcome).inc()

    def forecast_compared(self, ratio: float) -> None:
        """A first token came after `ratio` times the seconds that were forecast."""
        self._forecast.observe(ratio)

    def engine_retried(self) -> None:
        self._retried.inc()

    def slice_done(self, tokens: int) -> None:
        self._slices.inc()
        self._sliced.inc(tokens)

    def slice_found(self, done: int, cached: int) -> None:
        """What came next found so many of the tokens that were done."""
        self._slice_tokens.inc(done)
        self._slice_cached.inc(cached)

    def engine_seen(self, state: EngineState | None) -> None:
        """What the engine's own metrics say, or that there is nothing to read."""
        self._engine_up.set(state is not None)
        if state is not None:
            self._engine_running.set(state.running)
            self._engine_waiting.set(state.waiting)
            self._engine_kv.set(state.kv_usage)
            self._engine_preemptions.set(state.preemptions)

    def text(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str) -> Counter:
        return Counter(name, description, registry=self._registry)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(name, description, registry=self._registry)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(name, description, ["lane"], buckets=_SECONDS, registry=self._registry)


class _Budgets(Collector):
    def __init__(self, admission: Admission) -> None:
        self._admission = admission

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
        ledger = admission.ledger
        for name, description, value in (
            ("fairlane_seats", "Sequences in the engine.", ledger.seats),
            ("fairlane_kv_tokens", "Cache reserved, in tokens.", ledger.kv_tokens),
            ("fairlane_kv_scale", "Share of the reservations that the engine has in use.", ledger.correction.kv_scale),
            ("fairlane_foreign_seats", "Sequences of others in the engine.", ledger.correction.external_seats),
            ("fairlane_queue_prefill_seconds", "Prefill that waits, in engine seconds.", admission.queue.prefill_s),
        ):
            yield GaugeMetricFamily(name, description, value=value)
        yield GaugeMetricFamily(
            "fairlane_seats_limit", "Sequences that may be in the engine.", value=limits.max_num_seqs
        )


class _Prices(Collector):
    """What was learned of the engine, and how right it is."""

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model

    def collect(self) -> Iterator[GaugeMetricFamily]:
        model = self._cost_model
        bias = GaugeMetricFamily(
            "fairlane_prediction_bias", "Median of (predicted - true) / true, of late.", labels=["what"]
        )
        error = GaugeMetricFamily(
            "fairlane_prediction_error", "Size of that, by quantile.", labels=["what", "quantile"]
        )
        for what, accuracy in model.accuracy.items():
            if accuracy.bias is not None:
                bias.add_metric([what], accuracy.bias)
            for quantile in (0.5, 0.95):
                if (size := accuracy.error(quantile)) is not None:
                    error.add_metric([what, str(quantile)], size)
        curve = GaugeMetricFamily(
            "fairlane_prefill_coefficient", "Of c + a n + b n^2 seconds of prefill.", labels=["of"]
        )
        profile = model.profile
        for of, value in (("c", profile.c_s), ("a", profile.a_s_per_token), ("b", profile.b_s_per_token2)):
            curve.add_metric([of], value)
        samples = GaugeMetricFamily("fairlane_samples", "Samples that are kept of each curve.", labels=["of"])
        for of, regression in (
            ("prefill", model.prefill.regression),
            ("step", model.step.regression),
            ("tokens", model.estimator.regression),
        ):
            samples.add_metric([of], len(regression.samples))
        yield from (bias, error, curve, samples)
        for name, description, number in (
            ("fairlane_bytes_per_token", "Learned size of a token of prose.", model.estimator.bytes_per_token),
            ("fairlane_prefixes", "Beginnings of prompts that are remembered.", len(model.prefixes)),
            ("fairlane_prefix_trust", "Of what is expected to be cached, what is.", model.prefixes.trust.value),
        ):
            yield GaugeMetricFamily(name, description, value=number)
