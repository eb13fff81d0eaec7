import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.office import FIRST_PASTER, MINUTE, SECOND_PASTER, Arrival, office
from loadtest.records import Record, documents_before_second_paster, percentile, summarize


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [([1.0], 99, 1.0), ([1.0, 2.0], 50, 1.5), ([4.0, 1.0, 3.0, 2.0], 25, 1.75), ([1.0, 2.0, 3.0, 4.0, 5.0], 95, 4.8)],
)
def test_percentiles_are_numpys(values: list[float], q: float, expected: float) -> None:
    assert percentile(values, q) == pytest.approx(expected)


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_among_its_values(values: list[float], q: float) -> None:
    assert min(values) <= percentile(values, q) <= max(values)


def record(user: str, kind: str, at: float, *tokens: float) -> Record:
    return Record(Arrival(at, user, "short" if kind == "short" else "long", 10, len(tokens)), list(tokens))


def test_a_summary_counts_from_arrival_and_leaves_out_what_failed() -> None:
    failed = record("ada", "short", 0.0, 50.0)
    failed.failure = "status 503"
    records = [
        record("ada", "short", 1.0, 2.0, 2.5, 3.0),
        record("ben", "short", 1.0, 4.0),
        record(FIRST_PASTER, "long", 0.0, 10.0),
        record(FIRST_PASTER, "long", 0.0, 30.0),
        record(SECOND_PASTER, "long", 5.0, 20.0, 21.0),
        failed,
        record("cem", "short", 0.0),
    ]
    figures = summarize(records)
    assert figures["failed"] == 2
    assert figures["short_ttft_p50_s"] == 2.0
    assert figures["short_e2e_p50_s"] == 2.5
    assert figures["short_tpot_p50_ms"] == 500
    assert figures["long_ttft_p50_s"] == 15.0
    assert figures["long_ttft_max_s"] == 30.0
    assert figures["second_paster_ttft_s"] == 15.0
    assert figures["makespan_s"] == 30.0
    assert documents_before_second_paster(records) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_office_is_what_it_says(seed: int) -> None:
    arrivals = office(seed)
    assert arrivals == office(seed)
    assert arrivals != office(seed + 1)
    assert [arrival.at for arrival in arrivals] == sorted(arrival.at for arrival in arrivals)
    short = [arrival for arrival in arrivals if arrival.kind == "short"]
    assert len({arrival.user for arrival in short}) == 8
    assert all(0 <= arrival.at < MINUTE and arrival.prompt_tokens < 2048 for arrival in short)
    long = [(arrival.user, arrival.at) for arrival in arrivals if arrival.kind == "long"]
    assert long == [(FIRST_PASTER, 5.0)] * 6 + [(SECOND_PASTER, 10.0)]
