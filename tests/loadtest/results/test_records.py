"""Records of requests, and percentiles."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.results.records import Outcome, Record, percentile
from loadtest.workloads.plan import Request


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [([1.0], 99, 1.0), ([1.0, 2.0], 50, 1.5), ([4.0, 1.0, 3.0, 2.0], 25, 1.75), ([1.0, 2.0, 3.0, 4.0, 5.0], 95, 4.8)],
)
def test_percentiles_equal_numpys(values: list[float], q: float, expected: float) -> None:
    assert percentile(values, q) == pytest.approx(expected)


def test_a_percentile_of_nothing_is_nan() -> None:
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_within_its_values(values: list[float], q: float) -> None:
    assert min(values) <= percentile(values, q) <= max(values)


@pytest.mark.parametrize(("q", "expected"), [(0, 1.0), (50, 2.0), (51, math.inf), (100, math.inf)])
def test_a_percentile_among_failures_is_infinite(q: float, expected: float) -> None:
    assert percentile([1.0, 2.0, math.inf], q) == expected


def test_latencies_count_from_arrival_and_from_send() -> None:
    record = Record(Request(1.0, "ada", "chat", 10, 3), sent=1.5, tokens=[2.0, 2.5, 4.0], outcome=Outcome.COMPLETED)
    assert (record.scheduled, record.ttft, record.ttft_send) == (1.0, 1.0, 0.5)
    assert (record.e2e, record.e2e_send) == (3.0, 2.5)
    assert record.tpot == 1.0
    assert record.itls == [0.5, 1.5]


def test_tpot_uses_the_servers_token_count() -> None:
    """Several tokens may come in one chunk."""
    record = Record(Request(0.0, "ada", "chat", 10, 5), tokens=[1.0, 2.0, 3.0], output_tokens=5)
    assert record.tpot == 0.5
    assert Record(record.request, tokens=[1.0]).tpot is None


def test_an_interrupted_request_has_not_failed() -> None:
    record = Record(Request(0.0, "ada", "chat", 10, 5))
    assert not record.completed
    assert not record.failed
    record.outcome = Outcome.REJECTED
    assert record.failed
