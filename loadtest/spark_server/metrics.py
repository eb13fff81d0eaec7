"""vLLM's Prometheus metrics of the simulated engine. What the engine counts itself is read when somebody asks."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadtest.spark.engine import Engine
from loadtest.spark_server.answer import Choice

# vLLM's own.
# fmt: off
_TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)
_ITL_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)
# fmt: on
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5)
_FINISHED = ("stop", "length", "abort", "error", "repetition")
_REJECTED = ("max_num_queued_reqs", "max_num_queued_tokens")


class SimMetrics:
    """Told of each token as it is delivered. As at vLLM, an answer that nobody waits for any more counts nowhere."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineState(engine, model))
        self._labels = {"model_name": model, "engine": "0"}
        self._prompt_tokens = self._counter("prompt_tokens", "Prefill tokens processed.")
        self._generation_tokens = self._counter("generation_tokens", "Generation tokens processed.")
        self._ttft = self._histogram("time_to_first_token_seconds", "Time to first token.", _TTFT_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Inter-token latency.", _ITL_S)
        self._e2e = self._histogram("e2e_request_latency_seconds", "E2E request latency.", _REQUEST_S)
        self._queue = self._histogram("request_queue_time_seconds", "Time in WAITING phase.", _REQUEST_S)
        self._prefill = self._histogram("request_prefill_time_seconds", "Time in PREFILL phase.", _REQUEST_S)
        self._decode = self._histogram("request_decode_time_seconds", "Time in DECODE phase.", _REQUEST_S)
        self._prompts = self._histogram("request_prompt_tokens", "Prefill tokens of a request.", _TOKENS)
        self._answers = self._histogram("request_generation_tokens", "Generation tokens of a request.", _TOKENS)
        success = Counter(
            "vllm:request_success",
            "Successfully processed requests.",
            [*self._labels, "finished_reason"],
            registry=self._registry,
        )
        self._success = {each: success.labels(**self._labels, finished_reason=each) for each in _FINISHED}
        rejections = Counter(
            "vllm:admission_rejections",
            "Requests rejected by admission control.",
            ["model_name", "reason"],
            registry=self._registry,
        )
        self._rejections = {each: rejections.labels(model, each) for each in _REJECTED}

    def token(self, choice: Choice, at: float) -> None:
        """A token of it has come; its timing is still that of the one before."""
        timing = choice.timing
        if timing.tokens:
            self._itl.observe(at - timing.last)
        else:
            self._ttft.observe(at - timing.queued)
            self._prompt_tokens.inc(choice.sequence.prompt_tokens)

    def generated(self, tokens: int) -> None:
        self._generation_tokens.inc(tokens)

    def finished(self, choice: Choice) -> None:
        timing = choice.timing
        self._success[choice.finish_reason].inc()
        self._e2e.observe(timing.last - timing.queued)
        self._queue.observe(timing.queue_s)
        self._prefill.observe(timing.prefill_s)
        self._decode.observe(timing.decode_s)
        self._prompts.observe(choice.sequence.prompt_tokens)
        self._answers.observe(choice.sequence.output_tokens)

    def rejected(self, reason: str) -> None:
        self._rejections[reason].inc()

    def text(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str) -> Counter:
        counter = Counter(f"vllm:{name}", description, [*self._labels], registry=self._registry)
        return counter.labels(**self._labels)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", description, [*self._labels], buckets=buckets, registry=self._registry)
        return histogram.labels(**self._labels)


class _EngineState(Collector):
    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterator[Metric]:
        engine, profile = self._engine, self._engine.profile
        labels, values = ["model_name", "engine"], [self._model, "0"]
        for name, description, value in (
            ("num_requests_running", "Requests in model execution batches.", engine.running),
            ("num_requests_waiting", "Requests waiting to be processed.", engine.waiting),
            ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", engine.kv_usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", description, labels=labels)
            gauge.add_metric(values, value)
            yield gauge
        for name, description, value in (
            ("prefix_cache_queries", "Prefix cache queries, in tokens.", engine.prefix_queries),
            ("prefix_cache_hits", "Prefix cache hits, in tokens.", engine.prefix_hits),
            ("num_preemptions", "Preemptions by the engine.", engine.preemptions),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", description, labels=labels)
            counter.add_metric(values, value)
            yield counter
        capacity = profile.kv_cache_tokens
        config = {
            "block_size": profile.block_size,
            "enable_prefix_caching": profile.enable_prefix_caching,
            "engine": 0,
            "kv_cache_size_tokens": capacity,
            "num_gpu_blocks": None if capacity is None else capacity // profile.block_size,
        }
        info = GaugeMetricFamily("vllm:cache_config_info", "The cache's configuration.", labels=list(config))
        info.add_metric([str(value) for value in config.values()], 1)
        yield info
