"""The summary of a run."""

from math import inf

import msgspec
import pytest

from loadtest.results.records import Outcome, Record
from loadtest.results.summary import About, Measurement, Row, Slo, Stat, Summary, jain, row, summarize
from loadtest.workloads.plan import Plan, Point, Request

ABOUT = About("starvation", 7, "virtual", "fair", "gemma-4-26b-bf16")


def record(
    user: str = "ada",
    *tokens: float,
    at: float = 0.0,
    sent: float | None = None,
    outcome: Outcome = Outcome.COMPLETED,
    point: int | None = None,
    after: tuple[int, ...] = (),
    number: int = 0,
) -> Record:
    request = Request(at, user, "chat", 100, max(len(tokens), 1), point=point, after=after)
    return Record(
        request,
        number,
        sent=at if sent is None else sent,
        tokens=list(tokens),
        outcome=outcome,
        prompt_tokens=100,
        output_tokens=len(tokens),
        ended=tokens[-1] if tokens else at + 1,
    )


def summary(*records: Record, points: tuple[Point, ...] = (), slo: Slo | None = None, latency: float = 0.0) -> Summary:
    for number, each in enumerate(records):
        each.number = number
    return summarize(
        ABOUT,
        Measurement(Plan((), points=points), records, alone=lambda tokens: 0.5, slo=slo or Slo(), latency=latency),
    )


def test_the_headline_latency_counts_from_arrival() -> None:
    found = summary(record("ada", 3.0, 4.0, at=1.0, sent=2.0))
    assert (found.ttft_arrival_ms.p50, found.ttft_send_ms.p50) == (2000, 1000)
    assert (found.e2e_ms.p50, found.e2e_send_ms.p50) == (3000, 2000)
    assert (found.tpot_ms.p50, found.itl_ms.max) == (1000, 1000)


def test_failures_count_as_infinite_waits() -> None:
    done = [record("ada", float(n)) for n in (1, 2, 3)]
    found = summary(*done, record("ben", outcome=Outcome.REJECTED))
    assert (found.completed, found.failed, found.rejected) == (3, 1, 1)
    assert found.ttft_arrival_ms.p50 == 2500
    assert (found.ttft_arrival_ms.p90, found.ttft_arrival_ms.max, found.ttft_arrival_ms.mean) == (None, None, None)
    assert found.ttft_send_ms.max == 3000
    assert found.outcomes == {"completed": 3, "rejected": 1}


def test_goodput_is_relative_to_all_offered_requests() -> None:
    quick, slow = record("ada", 1.0, 1.1), record("ada", 5.0, 5.1)
    late_tokens, failed = record("ada", 1.0, 3.0), record("ada", outcome=Outcome.TIMEOUT)
    assert summary(quick, slow, late_tokens, failed, slo=Slo(2.0, 0.15)).goodput == 0.25
    assert summary(quick, slow, late_tokens, failed, slo=Slo(None, 0.15)).goodput == 0.5
    assert summary(quick, slow, late_tokens, failed, slo=Slo(2.0, None)).goodput == 0.5


def test_a_failure_with_counted_tokens_is_still_a_failure() -> None:
    failed = record("ada", outcome=Outcome.STREAM_ERROR)
    failed.output_tokens = 5
    assert summary(failed).goodput == 0


def test_interrupted_requests_are_excluded() -> None:
    found = summary(record("ada", 1.0, 2.0), record("ben", 1.0, outcome=Outcome.INTERRUPTED))
    assert (found.offered, found.completed, found.failed, found.interrupted) == (1, 1, 0, 1)
    assert found.users.keys() == {"ada"}


def test_slowdown_is_relative_to_an_idle_machine_and_failures_are_the_slowest() -> None:
    found = summary(record("ada", 0.5), record("ada", 1.5), record("ben", 5.0), record("cem", outcome=Outcome.TIMEOUT))
    assert {name: user.slowdown for name, user in found.users.items()} == {"ada": 2.0, "ben": 10.0, "cem": 10.0}
    assert found.worst_user in ("ben", "cem")
    assert found.jain == pytest.approx(0.7**2 / (3 * (0.25 + 0.01 + 0.01)), abs=1e-4)


def test_jains_fairness_index_is_computed() -> None:
    assert jain([2.0, 2.0, 2.0]) == 1.0
    assert jain([1.0, inf, inf]) == pytest.approx(1 / 3, abs=1e-4)
    assert jain([]) is None


def test_points_are_computed_as_llama_benchy_does() -> None:
    """Two batches of two; each batch: first tokens at 1 and 2 s, then a token each 0.5 s."""
    first = [record("a", 1.0, 1.5, 2.0, point=0), record("b", 2.0, 2.5, 3.0, point=0)]
    after = (0, 1)
    second = [
        record("a", 4.0, 4.5, 5.0, at=3.0, point=0, after=after),
        record("b", 5.0, 5.5, 6.0, at=3.0, point=0, after=after),
    ]
    (point,) = summary(*first, *second, points=(Point(4096, 256, concurrency=2),)).points
    assert (point.pp, point.tg, point.concurrency, point.requests) == (4096, 256, 2, 4)
    assert point.ttft_ms == 1500
    assert point.decode_tps_per_request == 2.0
    assert point.decode_tps_total == (6 - 2) / 2
    assert point.prefill_tps == 200 / 2


def test_the_servers_latency_is_subtracted_for_a_concurrency_of_one() -> None:
    one = record("a", 1.0, 1.5, point=0)
    (point,) = summary(one, points=(Point(4096, 256, concurrency=1),), latency=0.2).points
    assert point.prefill_tps == 125


def test_client_lag_makes_a_run_invalid() -> None:
    late = record("ada", 0.05, 0.06)
    late.lag = 0.04
    assert not summary(late).schedule_lag.valid
    slow = record("ada", 5.0, 6.0)
    slow.lag = 0.04
    assert summary(slow).schedule_lag.valid


def test_an_empty_run_has_a_summary() -> None:
    found = summary()
    assert (found.offered, found.goodput, found.jain, found.ttft_arrival_ms.p50) == (0, None, None, None)


def test_a_summary_round_trips_through_json() -> None:
    found = summary(record("ada", 1.0, 2.0), record("ben", outcome=Outcome.HTTP_ERROR), points=(Point(1, 2, 3),))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Summary) == found


def test_the_documented_schema_is_kept() -> None:
    promised = (
        "workload seed profile policy offered completed failed rejected duration_s rps output_tps ttft_arrival_ms "
        "ttft_send_ms tpot_ms itl_ms e2e_ms goodput jain users points"
    )
    found = msgspec.to_builtins(summary(record("ada", 1.0, 2.0), points=(Point(1, 2, 1),)))
    assert set(promised.split()) <= found.keys()
    assert found["ttft_arrival_ms"].keys() == {"mean", "p50", "p90", "p95", "p99", "max"}
    assert {"pp", "tg", "concurrency", "ttft_ms", "decode_tps_per_request", "decode_tps_total", "prefill_tps"} <= (
        found["points"][0].keys()
    )


def test_a_row_splits_the_wait_when_the_server_reports_it() -> None:
    told = record("ada", 4.0, 5.0, at=1.0, sent=2.0)
    told.queue = 0.5
    kept = row(told)
    assert (kept.queue_ms, kept.prefill_ms, kept.decode_ms) == (1500, 1500, 1000)
    assert row(record("ada", 4.0, 5.0)).queue_ms is None
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Row) == kept


def test_a_row_of_a_failure_has_no_latency() -> None:
    kept = row(record("ada", 1.0, outcome=Outcome.DISCONNECTED))
    assert (kept.ttft_arrival_ms, kept.e2e_ms, kept.first) == (None, None, 1.0)


def test_statistics_of_an_empty_set_are_null() -> None:
    assert Stat.of([]) == Stat(None, None, None, None, None, None)
