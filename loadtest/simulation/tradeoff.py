"""What short prompts gain by waiting long ones, and what these pay: one load under every pace, beside the engine alone.

Long prompts go in slices, and between slices there are pauses while others decode; `long_share` says how long. Each
share is a point: long prompts' first token against short prompts' first token, whole answer and time a token. Beside
them stands what an engine can do by its own flag, --long-prefill-token-threshold, with nobody in front of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import msgspec

from loadtest.plan.plan import Plan
from loadtest.results.records import Record, percentile
from loadtest.simulation.deployment import Deployment
from loadtest.spark.profile import EngineProfile

THRESHOLDS = (512, 1024, 2048, 4096)
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


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


@dataclass(frozen=True)
class Way:
    """One way to serve the load. `share` is the long prompts', where they come in slices."""

    name: str
    front: Deployment
    machine: EngineProfile
    share: float | None = None


class Point(msgspec.Struct, frozen=True):
    """What came of it: means over the seeds."""

    name: str
    long_share: float | None
    figures: Figures

    @property
    def direct(self) -> bool:
        return self.name.startswith("direct")


def ways(front: Deployment, machine: EngineProfile, shares: Iterable[float] = SHARES) -> list[Way]:
    """`front` is a gateway; its slicing is taken but for the share. ValueError if it does not slice."""
    if front.slicing is None or not machine.enable_prefix_caching:
        raise ValueError("long prompts are not sliced: there is no pace to choose")
    direct = [Way("direct", Deployment("direct"), machine)]
    for threshold in THRESHOLDS:
        flagged = machine.with_flags(long_prefill_token_threshold=threshold)
        direct.append(Way(f"direct, threshold {threshold}", Deployment("direct"), flagged))
    sliced = [
        Way(
            f"{front.name}, share {share:g}",
            replace(front, slicing=replace(front.slicing, long_share=share)),
            machine,
            share,
        )
        for share in shares
    ]
    return [*direct, Way(f"{front.name}, whole", replace(front, slicing=None), machine), *sliced]


def sweep(plans: Sequence[tuple[int, Plan]], ways: Iterable[Way], noise: float = 0.0) -> Iterator[Point]:
    """Each way with each plan, which goes with its seed."""
    for way in ways:
        limit = way.front.limits.long_prompt_tokens
        runs = [
            Figures.of(way.front.simulate(plan, way.machine, seed=seed, noise=noise), limit) for seed, plan in plans
        ]
        yield Point(way.name, way.share, Figures.mean(runs))


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
