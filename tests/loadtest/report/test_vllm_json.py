"""Results in the JSON schema of vLLM's own benchmark."""

import json

import numpy as np
import pytest

from loadtest.report.vllm_json import Nominal, bench_result
from loadtest.results.records import Outcome, Record
from loadtest.results.result import Result
from loadtest.results.summary import About, Measurement, Slo, row, summarize
from loadtest.workloads.plan import Plan, Request

# What `vllm bench serve --save-result` writes for a text model; figures as the article's runs asked for them.
KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *("max_output_tokens_per_s", "max_concurrent_requests"),
    *(f"{stat}_{name}_ms" for stat in ("mean", "median", "std") for name in ("ttft", "tpot", "itl", "e2el")),
    *(f"p{q}_{name}_ms" for q in (50, 90, 95, 99) for name in ("ttft", "tpot", "itl", "e2el")),
}
DETAILED = {"input_lens", "output_lens", "ttfts", "latencies", "start_times", "queue_times", "errors"}


def record(
    number: int, at: float, held: float, *tokens: float, outcome: Outcome = Outcome.COMPLETED, detail: str = ""
) -> Record:
    """Due at `at`, held back by the client's cap; tokens from send."""
    sent = at + held
    request = Request(at, "ada", "random", 4000, max(1, len(tokens)))
    times = [sent + token for token in tokens]
    count = len(tokens) if outcome is Outcome.COMPLETED else None
    return Record(request, number, at, sent, 0.0, times, sent + 9, outcome, detail, 4000, count)


def result(*records: Record, slo: Slo | None = None) -> Result:
    about = About("monday-burst", 42, "real", "fair", model="gemma")
    summary = summarize(about, Measurement(Plan(()), records, alone=lambda tokens: 1.0, slo=slo or Slo()))
    return Result("fair", summary, tuple(map(row, records)))


RUN = result(
    record(0, 0.0, 0.0, 1.0, 1.5, 3.0),
    record(1, 1.0, 4.0, 0.5, 0.6),
    record(2, 2.0, 0.0, 4.0),
    record(3, 3.0, 0.0, outcome=Outcome.REJECTED, detail="429 queue_full"),
    record(4, 4.0, 0.0, 0.1, outcome=Outcome.INTERRUPTED),
)


def test_the_json_has_the_keys_of_vllms_benchmark() -> None:
    found = bench_result(RUN.summary, RUN.rows)
    assert found.keys() == KEYS | DETAILED
    assert json.loads(json.dumps(found)) == found


def test_latencies_count_from_send_and_use_numpys_percentiles() -> None:
    found = bench_result(RUN.summary, RUN.rows)
    seconds = {"ttft": [1.0, 0.5, 4.0], "tpot": [1.0, 0.1], "e2el": [3.0, 0.6, 4.0]}
    for name, values in seconds.items():
        assert found[f"mean_{name}_ms"] == pytest.approx(1e3 * np.mean(values))
        assert found[f"std_{name}_ms"] == pytest.approx(1e3 * np.std(values))
        assert found[f"median_{name}_ms"] == pytest.approx(1e3 * np.median(values))
        for q in (50, 90, 95, 99):
            assert found[f"p{q}_{name}_ms"] == pytest.approx(1e3 * np.percentile(values, q))
    gaps = [0.5, 1.5, 0.1]
    assert found["mean_itl_ms"] == pytest.approx(1e3 * np.mean(gaps))
    assert found["p95_itl_ms"] == pytest.approx(1e3 * np.percentile(gaps, 95))


def test_arrays_have_all_requests_in_order() -> None:
    found = bench_result(RUN.summary, tuple(reversed(RUN.rows)))
    assert found["num_prompts"] == 4
    assert (found["completed"], found["failed"]) == (3, 1)
    assert found["ttfts"] == [1.0, 0.5, 4.0, 0]
    assert found["latencies"] == pytest.approx([3.0, 0.6, 4.0, 0])
    assert found["output_lens"] == [3, 2, 1, 0]
    assert found["input_lens"] == [4000] * 4
    assert found["start_times"] == [0.0, 5.0, 2.0, 3.0]
    assert found["queue_times"] == [0.0, 4.0, 0.0, 0.0]
    assert found["errors"] == ["", "", "", "429 queue_full"]


def test_truncated_answers_are_excluded() -> None:
    broken = result(record(0, 0.0, 0.0, 1.0, 2.0, outcome=Outcome.DISCONNECTED))
    found = bench_result(broken.summary, broken.rows)
    assert found["ttfts"] == found["latencies"] == found["output_lens"] == [0]
    assert found["max_concurrent_requests"] == 0


def test_rates_count_over_the_whole_run() -> None:
    found = bench_result(RUN.summary, RUN.rows)
    duration = RUN.summary.duration_s
    assert found["duration"] == duration
    assert found["request_throughput"] == pytest.approx(3 / duration, abs=1e-4)
    assert found["output_throughput"] == pytest.approx(6 / duration, abs=1e-4)
    assert found["total_token_throughput"] == pytest.approx((12_000 + 6) / duration, abs=1e-3)
    assert found["request_rate"] == RUN.summary.offered_rps
    assert bench_result(RUN.summary, RUN.rows, Nominal(request_rate=1.5, max_concurrency=25))["request_rate"] == 1.5


def test_goodput_counts_from_send() -> None:
    """Held back for 4 s, the second is late from arrival and in time from send."""
    run = result(record(0, 0.0, 0.0, 1.0, 1.1), record(1, 1.0, 4.0, 0.5, 0.6), slo=Slo(2.0, 0.15))
    assert run.summary.goodput == 0.5
    assert bench_result(run.summary, run.rows)["request_goodput"] == pytest.approx(2 / run.summary.duration_s, abs=1e-4)


def test_the_maximum_concurrency_is_counted() -> None:
    """0 to 3, 2 to 6 and 3 to 4: who ends at an instant is gone before who begins at it."""
    run = result(record(0, 0.0, 0.0, 1.0, 3.0), record(1, 2.0, 0.0, 4.0), record(2, 3.0, 0.0, 1.0))
    assert bench_result(run.summary, run.rows)["max_concurrent_requests"] == 2


def test_an_empty_run_has_zeros() -> None:
    run = result(record(0, 0.0, 0.0, outcome=Outcome.TIMEOUT))
    found = bench_result(run.summary, run.rows)
    assert (found["mean_ttft_ms"], found["p99_e2el_ms"], found["max_concurrent_requests"]) == (0, 0, 0)
    assert found["errors"] == ["timeout"]
