"""The figures that matter: what they are called, and how they are had of a request or of a run.

Latencies from arrival are of all that was asked for, and what failed has waited for ever, so that nobody gains by
refusing; those from send and per token are of the requests that completed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Literal

from loadtest.results.records import Outcome
from loadtest.results.summary import Row, Slo, Summary

Unit = Literal["s", "ms", "/s", "%", ""]


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


def e2e(row: Row) -> float:
    return _seconds(row.e2e_ms) if row.outcome is Outcome.COMPLETED else inf


def ttft_send(row: Row) -> float:
    return _seconds(row.ttft_send_ms)


def tpot(row: Row) -> float:
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


@dataclass(frozen=True)
class _Latency:
    """Something that each request has, and of which percentiles are told."""

    key: str
    title: str
    measure: Measure
    unit: Unit = "s"

    def percentile(self, q: float, plain: str) -> Percentile:
        return Figure(f"{self.key}_p{q:g}", f"{self.title} p{q:g}", plain, self.unit), self.measure, q


_TTFT = _Latency("ttft_arrival", "TTFT from arrival", wait)
_TTFT_SEND = _Latency("ttft_send", "TTFT from send", ttft_send)
_E2E = _Latency("e2e", "E2E from arrival", e2e)
_TPOT = _Latency("tpot", "TPOT", tpot, "ms")

TTFT_P50 = _TTFT.percentile(50, "First word: half came within")
TTFT_P95 = _TTFT.percentile(95, "First word: 95 of 100 within")
E2E_P50 = _E2E.percentile(50, "Whole answer: half within")
E2E_P95 = _E2E.percentile(95, "Whole answer: 95 of 100 within")
TPOT_P50 = _TPOT.percentile(50, "Then a word every")

# Percentiles of requests: of all, and of each kind.
OF_ALL = (
    TTFT_P50,
    TTFT_P95,
    _TTFT.percentile(99, "First word: 99 of 100 within"),
    _TTFT_SEND.percentile(50, "First word, once it was sent: half within"),
    _TTFT_SEND.percentile(95, "First word, once it was sent: 95 of 100 within"),
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
