"""The figures that matter: what they are called, and how they are had of a request or of a run.

Latencies from arrival are of all that was asked for, and what failed has waited for ever, so that nobody gains by
refusing; those from send and per token are of the requests that completed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan

from loadtest.report.units import Unit
from loadtest.results.records import Outcome
from loadtest.results.summary import Row, Slo, Summary


@dataclass(frozen=True)
class Figure:
    """`title` says it to an engineer, `plain` to everybody else."""

    key: str
    title: str
    plain: str
    unit: Unit
    more_is_better: bool = False


# Of a request: NaN where it has none.
Measure = Callable[[Row], float]


def wait(row: Row) -> float:
    """For the first word, from arrival: for ever, if there came none."""
    return _seconds(row.ttft_arrival_ms) if row.outcome is Outcome.COMPLETED else inf


def _e2e(row: Row) -> float:
    return _seconds(row.e2e_ms) if row.outcome is Outcome.COMPLETED else inf


def _ttft_send(row: Row) -> float:
    return _seconds(row.ttft_send_ms)


def _tpot(row: Row) -> float:
    return nan if row.tpot_ms is None else row.tpot_ms


def failed(row: Row) -> float:
    return float(row.outcome is not Outcome.COMPLETED)


def good(slo: Slo) -> Measure:
    def is_good(row: Row) -> float:
        first, token = row.ttft_arrival_ms, row.tpot_ms
        return float(
            row.outcome is Outcome.COMPLETED
            and (slo.ttft is None or (first is not None and first <= 1e3 * slo.ttft))
            and (slo.tpot is None or token is None or token <= 1e3 * slo.tpot)
        )

    return is_good


def _seconds(ms: float | None) -> float:
    return nan if ms is None else ms / 1e3


Percentile = tuple[Figure, Measure, float]


def _stat(key: str, title: str, plain: str, measure: Measure, q: float, unit: Unit = "s") -> Percentile:
    return Figure(f"{key}_p{q:g}", f"{title} p{q:g}", plain, unit), measure, q


TTFT_P50 = _stat("ttft_arrival", "TTFT from arrival", "First word: half came within", wait, 50)
TTFT_P95 = _stat("ttft_arrival", "TTFT from arrival", "First word: 95 of 100 within", wait, 95)
E2E_P50 = _stat("e2e", "E2E from arrival", "Whole answer: half within", _e2e, 50)
E2E_P95 = _stat("e2e", "E2E from arrival", "Whole answer: 95 of 100 within", _e2e, 95)
TPOT_P50 = _stat("tpot", "TPOT", "Then a word every", _tpot, 50, "ms")

# Percentiles of requests: of all, and of each kind.
OF_ALL = (
    TTFT_P50,
    TTFT_P95,
    _stat("ttft_arrival", "TTFT from arrival", "First word: 99 of 100 within", wait, 99),
    _stat("ttft_send", "TTFT from send", "First word, once it was sent: half within", _ttft_send, 50),
    _stat("ttft_send", "TTFT from send", "First word, once it was sent: 95 of 100 within", _ttft_send, 95),
    TPOT_P50,
    E2E_P50,
    E2E_P95,
)
OF_A_PART = (TTFT_P50, TTFT_P95, E2E_P50, TPOT_P50)

GOODPUT = Figure("goodput", "goodput", "Good answers: fast enough, of all asked for", "%", more_is_better=True)
FAILED = Figure("failed", "failed", "Failed, of all asked for", "%")

# What a run has only one of.
OF_A_RUN: tuple[tuple[Figure, Callable[[Summary], float | None]], ...] = (
    (Figure("itl_p99", "ITL p99", "Longest pauses inside an answer", "ms"), lambda run: run.itl_ms.p99),
    (Figure("rps", "throughput", "Requests answered a second", "/s", more_is_better=True), lambda run: run.rps),
    (Figure("output_tps", "output tokens", "Words a second, all together", "/s", True), lambda run: run.output_tps),
    (Figure("jain", "Jain's index", "Evenness between people (1: all alike)", "", True), lambda run: run.jain),
    (Figure("duration", "duration", "Everybody done after", "s"), lambda run: run.duration_s),
)
