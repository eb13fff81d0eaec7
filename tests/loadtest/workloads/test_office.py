"""The office minute."""

import pytest

from loadtest.results.office_minute import documents_before_second_paster, figures
from loadtest.results.records import Outcome, Record
from loadtest.workloads.office import FIRST_PASTER, MINUTE, SECOND_PASTER, office
from loadtest.workloads.plan import Request


@pytest.mark.parametrize("seed", range(5))
def test_the_office_minute_has_its_documented_load(seed: int) -> None:
    requests = office(seed)
    assert requests == office(seed)
    assert requests != office(seed + 1)
    assert [request.at for request in requests] == sorted(request.at for request in requests)
    short = [request for request in requests if request.kind == "short"]
    assert len({request.user for request in short}) == 8
    assert all(0 <= request.at < MINUTE and request.prompt_tokens < 2048 for request in short)
    long = [(request.user, request.at) for request in requests if request.kind == "long"]
    assert long == [(FIRST_PASTER, 5.0)] * 6 + [(SECOND_PASTER, 10.0)]


def record(user: str, kind: str, at: float, *tokens: float, outcome: Outcome = Outcome.COMPLETED) -> Record:
    return Record(Request(at, user, kind, 10, len(tokens)), tokens=list(tokens), outcome=outcome)


def test_figures_count_from_arrival_and_exclude_failures() -> None:
    records = [
        record("ada", "short", 1.0, 2.0, 2.5, 3.0),
        record("ben", "short", 1.0, 4.0),
        record(FIRST_PASTER, "long", 0.0, 10.0),
        record(FIRST_PASTER, "long", 0.0, 30.0),
        record(SECOND_PASTER, "long", 5.0, 20.0, 21.0),
        record("ada", "short", 0.0, 50.0, outcome=Outcome.DISCONNECTED),
        record("cem", "short", 0.0, outcome=Outcome.UNAVAILABLE),
    ]
    found = figures(records)
    assert found["failed"] == 2
    assert found["short_ttft_p50_s"] == 2.0
    assert found["short_e2e_p50_s"] == 2.5
    assert found["short_tpot_p50_ms"] == 500
    assert found["long_ttft_p50_s"] == 15.0
    assert found["long_ttft_max_s"] == 30.0
    assert found["second_paster_ttft_s"] == 15.0
    assert found["makespan_s"] == 30.0
    assert documents_before_second_paster(records) == 1
