"""A run as `vllm bench serve --save-result --save-detailed` would have written it, for scripts that read that.

Its rules are that tool's: latencies from send, of the requests that completed; requests in their order, a failed one
with zeros. Null is what we do not know, the spread of the gaps between tokens and the tokens of the busiest second;
missing is what we do not keep, `itls` and `generated_texts`. `queue_times` has how long the client's own cap held
requests back before they were sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

from loadtest.results.records import Outcome, percentile
from loadtest.results.summary import Row, Slo, Stat, Summary

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Nominal:
    """What the tool was asked for. `request_rate` None: the one that came about; `date` is like 20260131-235959."""

    date: str = ""
    request_rate: float | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None


def bench_result(summary: Summary, rows: Sequence[Row], nominal: Nominal | None = None) -> dict[str, Any]:
    asked = sorted((row for row in rows if row.outcome is not Outcome.INTERRUPTED), key=lambda row: row.n)
    done = [row for row in asked if row.outcome is Outcome.COMPLETED]
    return {
        **_head(summary, asked, nominal or Nominal()),
        "duration": summary.duration_s,
        "completed": len(done),
        "failed": len(asked) - len(done),
        "total_input_tokens": summary.input_tokens,
        "total_output_tokens": summary.output_tokens,
        "request_throughput": summary.rps,
        "request_goodput": _rate(sum(_good(row, summary.slo) for row in done), summary.duration_s),
        "output_throughput": summary.output_tps,
        "total_token_throughput": _rate(summary.input_tokens + summary.output_tokens, summary.duration_s),
        **_details(asked),
        "max_output_tokens_per_s": None,
        "max_concurrent_requests": _peak(done),
        **_figures("ttft", [row.ttft_send_ms for row in done]),
        **_figures("tpot", [row.tpot_ms for row in done]),
        **_gaps(summary.itl_ms),
        **_figures("e2el", [1e3 * _latency(row) for row in done]),
    }


def _head(summary: Summary, asked: Sequence[Row], nominal: Nominal) -> dict[str, Any]:
    return {
        "date": nominal.date,
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "label": summary.policy,
        "model_id": summary.model,
        "tokenizer_id": summary.model,
        "num_prompts": len(asked),
        "request_rate": summary.offered_rps if nominal.request_rate is None else nominal.request_rate,
        "burstiness": nominal.burstiness,
        "max_concurrency": nominal.max_concurrency,
    }


def _details(asked: Sequence[Row]) -> dict[str, Any]:
    """Of each request, in their order."""
    return {
        "input_lens": [row.prompt_tokens or 0 for row in asked],
        "output_lens": [_of(row, row.output_tokens) for row in asked],
        "ttfts": [_of(row, _seconds(row.ttft_send_ms)) for row in asked],
        "latencies": [_of(row, _latency(row)) for row in asked],
        "start_times": [row.scheduled if row.sent is None else row.sent for row in asked],
        "queue_times": [0.0 if row.sent is None else round(row.sent - row.scheduled, 6) for row in asked],
        "errors": ["" if row.outcome is Outcome.COMPLETED else row.detail or row.outcome.value for row in asked],
    }


def _figures(name: str, measured: Sequence[float | None]) -> dict[str, float]:
    """Milliseconds; zeros of nothing, as numpy's of the tool's `or 0`."""
    values = [value for value in measured if value is not None] or [0.0]
    mean = fmean(values)
    return {
        f"mean_{name}_ms": mean,
        f"median_{name}_ms": percentile(values, 50),
        f"std_{name}_ms": sqrt(fmean((value - mean) ** 2 for value in values)),
        **{f"p{q}_{name}_ms": percentile(values, q) for q in PERCENTILES},
    }


def _gaps(itl: Stat) -> dict[str, float | None]:
    return {
        "mean_itl_ms": itl.mean,
        "median_itl_ms": itl.p50,
        "std_itl_ms": None,
        **{f"p{q}_itl_ms": getattr(itl, f"p{q}") for q in PERCENTILES},
    }


def _peak(done: Sequence[Row]) -> int:
    """How many were under way at once, at the most; who ends leaves before who begins at that instant."""
    events = [(row.scheduled if row.sent is None else row.sent, 1) for row in done]
    events += [(start + _latency(row), -1) for (start, _), row in zip(events, done, strict=True)]
    most = now = 0
    for _, change in sorted(events):
        now += change
        most = max(most, now)
    return most


def _latency(row: Row) -> float:
    """Seconds from send to the last token."""
    sent = row.scheduled if row.sent is None else row.sent
    return 0.0 if row.last is None else row.last - sent


def _good(row: Row, slo: Slo) -> bool:
    return (slo.ttft is None or _seconds(row.ttft_send_ms) <= slo.ttft) and (
        slo.tpot is None or _seconds(row.tpot_ms) <= slo.tpot
    )


def _of(row: Row, value: float | None) -> float:
    return value or 0 if row.outcome is Outcome.COMPLETED else 0


def _seconds(ms: float | None) -> float:
    return 0.0 if ms is None else ms / 1e3


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 4) if seconds else 0.0
