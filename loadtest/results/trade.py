"""What short prompts gain by waiting long ones, and what these pay: the figures of one load under several paces."""

from collections.abc import Iterable, Sequence
from statistics import fmean

import msgspec

from loadtest.results.records import Record, percentile


class Figures(msgspec.Struct, frozen=True):
    """Short prompts and long ones; from arrival. Keys end in their unit, `failed` counts."""

    short_ttft_p50_s: float
    short_ttft_p95_s: float
    short_e2e_p50_s: float
    short_tpot_p50_ms: float
    long_ttft_p50_s: float
    long_ttft_max_s: float
    itl_p99_s: float
    makespan_s: float
    failed: float

    @classmethod
    def of(cls, records: Sequence[Record], long_prompt_tokens: int) -> "Figures":
        """Long is what has more tokens than that, and the engine did not have. ValueError without both kinds."""
        done = [record for record in records if record.completed]
        long = [each for each in done if _uncached(each) > long_prompt_tokens]
        short = [each for each in done if _uncached(each) <= long_prompt_tokens]
        if not long or not short:
            raise ValueError(f"there is no trade: of {len(done)} prompts, {len(long)} are long")
        return cls(
            short_ttft_p50_s=percentile((each.ttft for each in short), 50),
            short_ttft_p95_s=percentile((each.ttft for each in short), 95),
            short_e2e_p50_s=percentile((each.e2e for each in short), 50),
            short_tpot_p50_ms=1e3 * percentile((each.tpot for each in short if each.tpot is not None), 50),
            long_ttft_p50_s=percentile((each.ttft for each in long), 50),
            long_ttft_max_s=max(each.ttft for each in long),
            itl_p99_s=percentile((gap for each in done for gap in each.itls), 99),
            makespan_s=max(each.tokens[-1] for each in done),
            failed=float(len(records) - len(done)),
        )

    @classmethod
    def mean(cls, several: Sequence["Figures"]) -> "Figures":
        return cls(**{name: fmean(getattr(each, name) for each in several) for name in cls.__struct_fields__})


class Point(msgspec.Struct, frozen=True):
    """What came of it: means over the seeds."""

    name: str
    long_share: float | None
    figures: Figures

    @property
    def direct(self) -> bool:
        return self.name.startswith("direct")


def best_threshold(points: Iterable[Point]) -> Point:
    """Of the engine's own ways with its flag, the one whose short prompts wait least for their first token."""
    return min(
        (point for point in points if point.direct and "threshold" in point.name),
        key=lambda point: point.figures.short_ttft_p95_s,
    )


def at_most(points: Iterable[Point], long_ttft_p50_s: float) -> Point | None:
    """The slowest pace whose long prompts have their first token, by the median, no later than that."""
    found = [point for point in points if point.long_share and point.figures.long_ttft_p50_s <= long_ttft_p50_s]
    return min(found, key=lambda point: point.figures.short_e2e_p50_s, default=None)


def _uncached(record: Record) -> int:
    return (record.prompt_tokens or 0) - (record.cached_tokens or 0)
