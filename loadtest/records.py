"""What was measured of one request, and what many of them come to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from loadtest.office import FIRST_PASTER, SECOND_PASTER, Arrival


@dataclass(slots=True)
class Record:
    """Seconds from the start of the run, on the clock of the machine under test; latency counts from arrival."""

    arrival: Arrival
    tokens: list[float] = field(default_factory=list)  # when each token came
    failure: str | None = None

    @property
    def failed(self) -> bool:
        return self.failure is not None or not self.tokens

    @property
    def first_token(self) -> float:
        return self.tokens[0]

    @property
    def ttft(self) -> float:
        return self.tokens[0] - self.arrival.at

    @property
    def e2e(self) -> float:
        return self.tokens[-1] - self.arrival.at

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None for an answer of one."""
        if len(self.tokens) < 2:
            return None
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)

    @property
    def itls(self) -> list[float]:
        return [after - before for before, after in pairwise(self.tokens)]


def percentile(values: Iterable[float], q: float) -> float:
    """The q-th percentile (0 to 100) with linear interpolation, as numpy gives it; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    position = (len(ordered) - 1) * q / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(records: Sequence[Record]) -> dict[str, float]:
    """The demo's figures. Keys end in their unit; `failed` counts."""
    done = [record for record in records if not record.failed]
    short = [record for record in done if record.arrival.kind == "short"]
    long = [record for record in done if record.arrival.kind == "long"]
    tpots = [record.tpot for record in short if record.tpot is not None]
    return {
        "short_ttft_p50_s": percentile((record.ttft for record in short), 50),
        "short_ttft_p95_s": percentile((record.ttft for record in short), 95),
        "short_e2e_p50_s": percentile((record.e2e for record in short), 50),
        "short_e2e_p95_s": percentile((record.e2e for record in short), 95),
        "short_tpot_p50_ms": 1e3 * percentile(tpots, 50),
        "itl_p99_s": percentile((gap for record in done for gap in record.itls), 99),
        "long_ttft_p50_s": percentile((record.ttft for record in long), 50),
        "long_ttft_max_s": max((record.ttft for record in long), default=float("nan")),
        "second_paster_ttft_s": next(
            (record.ttft for record in long if record.arrival.user == SECOND_PASTER), float("nan")
        ),
        "makespan_s": max((record.tokens[-1] for record in done), default=float("nan")),
        "failed": len(records) - len(done),
    }


def documents_before_second_paster(records: Sequence[Record]) -> int:
    """How many of the first paster's documents had their first token before the second paster's one."""
    long = [record for record in records if record.arrival.kind == "long" and not record.failed]
    second = [record.first_token for record in long if record.arrival.user == SECOND_PASTER]
    first = [record.first_token for record in long if record.arrival.user == FIRST_PASTER]
    return sum(token < second[0] for token in first) if second else len(first)
