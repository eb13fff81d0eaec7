"""What `fairlane bench preempt` computes: its load, its figures, its advice."""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from math import inf, nan
from typing import Any

import msgspec
import pytest
from rich.console import Console

from gateway.config import layers
from gateway.storage.config_file import load as load_settings
from loadtest.benchmark import shape as shaping
from loadtest.benchmark.advice import Advice, Bounds, advise
from loadtest.benchmark.figures import Figures, Measured, Trial, figures, ratios
from loadtest.benchmark.findings import Findings
from loadtest.benchmark.shape import LONG, LONG_PROBES, LONG_TOKENS, RATE, SHORT, SHORT_PROBES, LongPrompts, Shape
from loadtest.benchmark.slice_counters import SliceCounters
from loadtest.benchmark.table import table
from loadtest.benchmark.variant import DIRECT, GATED, NAMES, SLICED, Variant, variant, variants
from loadtest.results.records import Outcome, Record
from loadtest.results.result import Result
from loadtest.results.summary import About, Measurement, row, summarize

# The load.


def test_long_prompts_arrive_together_and_short_ones_at_their_rate() -> None:
    requests = Shape(rate=5.0).plan().requests
    long = [request for request in requests if request.kind == LONG]
    short = [request for request in requests if request.kind == SHORT]
    assert [request.at for request in long] == [0.0] * 6
    assert len(short) == 40
    assert short[-1].at == pytest.approx(8.0)
    assert len({request.user for request in requests}) == 46
    assert {(request.prompt_tokens, request.output_tokens) for request in requests} == {(24_000, 128), (200, 64)}


def test_the_same_seed_gives_the_same_load() -> None:
    assert Shape(seed=3).plan() == Shape(seed=3).plan()
    assert Shape(seed=3).plan() != Shape(seed=4).plan()


def test_probes_run_alone() -> None:
    short = Shape().unloaded().requests
    assert len(short) == SHORT_PROBES + 1
    assert [request.after for request in short[1:]] == [(number,) for number in range(SHORT_PROBES)]
    first, *long = Shape().alone().requests
    assert first.kind == SHORT
    assert [(request.kind, request.after) for request in long] == [(LONG, (number,)) for number in range(LONG_PROBES)]


def test_a_long_prompt_takes_about_ten_seconds_of_prefill() -> None:
    def sized(seconds_per_token: float, most: int = 131_072, short: int = 2048) -> int:
        return LongPrompts(None, most, 128, short).tokens(lambda tokens: seconds_per_token * tokens)

    assert sized(1e-5) == LONG_TOKENS
    assert sized(1e-5, most=16_384) == 16_200
    assert 9_800 <= sized(1e-3) <= 10_000
    assert sized(1.0) == 3072  # at such an engine it takes as long as it takes
    with pytest.raises(ValueError, match="short to the gateway"):
        sized(1e-5, most=2048)


def test_explicit_sizes_and_rates_are_used() -> None:
    def sized(wanted: int) -> int:
        return LongPrompts(wanted, 32_768, 128, 2048).tokens(lambda tokens: 1e3)

    assert sized(32_640) == 32_640
    with pytest.raises(ValueError, match="--long-tokens 32640 at the most"):
        sized(32_641)
    with pytest.raises(ValueError, match="never sliced"):
        sized(2048)


def test_the_short_rate_follows_the_engines_speed() -> None:
    assert shaping.rate(None, ttft_s=0.07, e2e_s=1.7) == RATE
    assert shaping.rate(None, ttft_s=0.25, e2e_s=3.0) == pytest.approx(2.0)
    assert shaping.rate(None, ttft_s=0.05, e2e_s=10.0) == pytest.approx(1.0)
    assert shaping.rate(40.0, ttft_s=1.0, e2e_s=10.0) == 40.0


# The variants.


def test_variant_names_encode_their_settings() -> None:
    assert variant(DIRECT) == Variant(DIRECT)
    assert variant(GATED).settings == {"slicing": False}
    assert variant(SLICED).settings == {"slicing": True}
    both = variant("sliced-0.25+paced-0.5")
    assert both.settings == {"slicing": True, "max_stall": 0.25, "long_share": 0.5}
    assert both.assignments == ["slicing=true", "max_stall=0.25", "long_share=0.5"]
    assert variant("tpot-0.05").settings == {"slicing": True, "tpot_target": 0.05}


@pytest.mark.parametrize("name", ["", "slices", "paced", "sliced-", "sliced-x", "gated-1", "sliced+", "direct+sliced"])
def test_an_unknown_variant_is_reported(name: str) -> None:
    with pytest.raises(ValueError, match=r"no variant .* there are direct, gated, sliced"):
        variant(name)


def test_direct_is_always_the_first_variant() -> None:
    assert [each.name for each in variants(None)] == [DIRECT, *NAMES]
    assert [each.name for each in variants(["sliced, gated", "sliced"])] == [DIRECT, SLICED, GATED]
    assert [each.name for each in variants(["gated", "direct"])] == [DIRECT, GATED]


@pytest.mark.parametrize("name", NAMES)
def test_the_default_variants_are_valid_settings(name: str) -> None:
    load_settings(flags=variant(name).settings)
    load_settings(flags=layers.assigned(variant(name).assignments))


# The gateway's counters.

METRICS = """# HELP fairlane_slices_total Slices.
fairlane_slices_total{model="a"} 4.0
fairlane_slices_total{model="b"} 2.0
fairlane_slices_created 1.7e9
fairlane_slice_tokens_total{model="a"} 8000.0
fairlane_slice_cached_tokens_total{model="a"} 7600.0
fairlane_slicing_off{model="a"} 0.0
"""


def test_slice_counters_are_read_from_the_metrics() -> None:
    slices = SliceCounters.read(METRICS)
    assert slices == SliceCounters(6, 8000, 7600)
    assert slices.cached_share == pytest.approx(0.95)
    assert slices.since(SliceCounters(2, 4000, 4000)) == SliceCounters(4, 4000, 3600)
    assert slices + SliceCounters(1, 1, 1, off=True) == SliceCounters(7, 8001, 7601, off=True)
    off = SliceCounters.read(METRICS + 'fairlane_slicing_off{model="b"} 1.0\n')
    assert off
    assert off.off


def test_a_gateway_without_slice_counters_is_accepted() -> None:
    assert SliceCounters.read("fairlane_seats 0.0\n") is None
    assert SliceCounters.read("fairlane_slices_total 0.0\n") == SliceCounters()
    assert SliceCounters().cached_share is None


# Figures.


def trial(short: Sequence[float | None], long: float, alone: float = 1.0, slices: SliceCounters | None = None) -> Trial:
    """Of short prompts with these first tokens, None of one that failed, and one long prompt."""
    plan = Shape(longs=1, shorts=len(short), rate=1.0).plan()
    records = []
    waits = iter(short)
    for number, request in enumerate(plan.requests):
        wait = long if request.kind == LONG else next(waits)
        record = Record(request, number, sent=request.at, ended=request.at)
        if wait is None:
            record.outcome = Outcome.REJECTED
        else:
            record.outcome = Outcome.COMPLETED
            record.tokens = [request.at + wait + 0.1 * token for token in range(11)]
        records.append(record)
    about = About(workload="preempt", seed=1, clock="real", policy="x")
    done = summarize(about, Measurement(plan, records, alone=lambda tokens: 1.0))
    return Trial(Result("x", done, tuple(map(row, records))), alone, slices)


def test_figures_pool_all_runs() -> None:
    found = figures(
        [
            trial([1.0, 2.0], 5.0, 0.9, SliceCounters(4, 100, 90)),
            trial([3.0, 4.0], 7.0, 1.1, SliceCounters(2, 100, 100)),
        ]
    )
    assert (found.runs, found.requests, found.failed) == (2, 6, 0)
    assert found.short_ttft_p50_s == pytest.approx(2.5)
    assert found.short_e2e_p50_s == pytest.approx(3.5)
    assert found.short_tpot_p50_ms == pytest.approx(100)
    assert (found.long_ttft_p50_s, found.long_ttft_max_s) == pytest.approx((6.0, 7.0))
    assert found.long_alone_ttft_s == pytest.approx(1.0)
    assert found.itl_p99_s == pytest.approx(0.1)
    assert found.makespan_s == pytest.approx((6.0 + 8.0) / 2, abs=0.01)
    assert (found.slices, found.slice_cached_share) == (3, 0.95)


def test_a_failed_request_counts_as_an_infinite_wait() -> None:
    found = figures([trial([1.0, None], 5.0)])
    assert (found.failed, found.short_ttft_p95_s) == (1, inf)
    assert found.slices is None
    assert ratios(found, figures([trial([1.0, 1.0], 2.5)]))["long_ttft_p50_s"] == pytest.approx(2.0)
    assert ratios(found, found)["short_ttft_p95_s"] is None
    assert b"Infinity" not in msgspec.json.encode(found)


# Advice.

PLAIN = Figures(
    runs=1,
    requests=46,
    failed=0,
    short_ttft_p50_s=6.5,
    short_ttft_p95_s=9.0,
    short_e2e_p50_s=8.6,
    short_e2e_p95_s=10.6,
    short_tpot_p50_ms=30.0,
    long_ttft_p50_s=6.1,
    long_ttft_max_s=9.3,
    long_alone_ttft_s=1.5,
    itl_p99_s=0.4,
    makespan_s=13.8,
)


def measured(name: str, **changes: Any) -> Measured:
    return Measured(variant(name), msgspec.structs.replace(PLAIN, **changes))


SIDES = [
    measured(DIRECT),
    measured(GATED, short_ttft_p95_s=1.56, short_e2e_p50_s=8.4),
    measured(SLICED, short_ttft_p95_s=0.4, short_e2e_p50_s=6.8, long_ttft_p50_s=7.5, slices=30, slice_cached_share=1.0),
    measured("sliced-0.25", short_ttft_p95_s=0.38, short_e2e_p50_s=6.0, long_ttft_p50_s=8.0),
    measured("paced-0.3", short_ttft_p95_s=0.3, short_e2e_p50_s=3.4, long_ttft_p50_s=12.7, makespan_s=20.4),
]


def advised(sides: Sequence[Measured], *arguments: Any) -> Advice:
    advice = advise(sides, *arguments)
    assert advice
    return advice


def test_the_simplest_of_about_equal_variants_is_advised() -> None:
    advice = advised(SIDES)
    assert advice.variant == SLICED
    assert advice.settings == {"slicing": True}
    assert advice.words[0].startswith(
        "Take sliced: the first token of a short prompt (p95) goes from 9.00 s to 0.400 s"
    )
    assert "first token 1.23×" in advice.words[0]


def test_a_variant_excluded_by_a_bound_is_reported_with_the_bound() -> None:
    (refused,) = advised(SIDES).words[1:]
    assert refused.startswith("paced-0.3 would be better (0.300 s), but the long prompts' median is 2.08×")
    assert "--long-median-at-most 1.5" in refused
    (refused,) = advised(SIDES, "ttft", Bounds(long_median=2.2)).words[1:]
    assert "--makespan-at-most 1.25" in refused


def test_the_users_bounds_and_preference_apply() -> None:
    assert advised(SIDES, "e2e").variant == "sliced-0.25"
    advice = advised(SIDES, "e2e", Bounds(2.2, 1.6))
    assert advice.variant == "paced-0.3"
    given = layers.assigned(["policy=fifo", "engine.step_tokens=2048", "engine.scheduling_policy=priority"])
    lines = advice.lines(given)
    assert lines == [
        *("slicing = true", "long_share = 0.3", "engine.step_tokens = 2048", 'engine.scheduling_policy = "priority"'),
    ]
    assert tomllib.loads("\n".join(lines))["engine"] == {"step_tokens": 2048, "scheduling_policy": "priority"}


def test_direct_may_be_advised() -> None:
    advice = advised([SIDES[0], measured(SLICED, short_ttft_p95_s=8.5)])
    assert (advice.variant, advice.settings, advice.lines({"engine.step_tokens": 1})) == (DIRECT, None, [])
    assert advice.words[0].startswith("Direct is better here")


def test_a_failing_variant_is_not_advised() -> None:
    advice = advised([SIDES[0], SIDES[1], measured(SLICED, short_ttft_p95_s=0.4, failed=1)])
    assert advice.variant == GATED
    assert advice.words[1] == "sliced would be better (0.400 s), but 1 of 46 requests failed."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slice_cached_share": 0.1, "slices": 4}, "do not hit the engine's prefix cache (sliced 10% of their tokens)"),
        ({"slicing_off": True, "slices": 2}, "switched slicing off in sliced"),
        ({"slices": 0}, "No prompt was sliced"),
        ({"long_alone_ttft_s": 1.8}, "A long prompt alone takes 1.20× as long through the gateway, in slices"),
        ({"spoiled": True}, "Not to be trusted"),
    ],
)
def test_the_reasons_against_a_variant_are_named(changes: dict[str, Any], said: str) -> None:
    words = advised([SIDES[0], measured(SLICED, short_ttft_p95_s=0.4, **changes)]).words
    assert any(said in each for each in words[1:])


def test_without_a_comparison_there_is_no_advice() -> None:
    assert advise([]) is None
    assert advise(SIDES[:1]) is None
    assert advise(SIDES[1:]) is None


def test_without_direct_results_there_are_no_ratios() -> None:
    direct = measured(DIRECT, failed=46, **dict.fromkeys(("short_ttft_p95_s", "long_ttft_p50_s", "makespan_s"), inf))
    advice = advised([direct, SIDES[2]])
    assert advice.variant == SLICED
    assert "46 of 46 requests failed directly" in advice.words[-1]


# Shown.


def test_the_table_fits_100_columns() -> None:
    console = Console(width=100, record=True, file=StringIO())
    console.print(table([*SIDES, replace(SIDES[2], variant=variant("sliced-0.25+paced-0.5"))], 0.08))
    text = console.export_text()
    assert "…" not in text
    assert "9.00" in text
    assert "0.044×" in text
    assert "+paced-0.5" in text


def test_missing_figures_are_not_shown() -> None:
    console = Console(width=100, record=True, file=StringIO())
    console.print(table([SIDES[0], measured(SLICED, short_tpot_p50_ms=nan, short_ttft_p95_s=inf, failed=3)], 0.08))
    text = console.export_text()
    assert "never" in text
    assert "–" in text


def test_the_summary_has_every_variant_and_the_advice() -> None:
    findings = Findings("m on vLLM 1", Shape(), {"ttft_s": 0.08, "e2e_s": 1.0}, SIDES, advise(SIDES))
    told = findings.summary({})
    assert list(told["variants"]) == [each.variant.name for each in SIDES]
    sliced = told["variants"][SLICED]
    assert sliced["to_direct"]["long_ttft_p50_s"] == pytest.approx(7.5 / 6.1)
    assert sliced["short_ttft_p95_to_unloaded"] == pytest.approx(5.0)
    assert told["advice"]["variant"] == SLICED
    assert msgspec.json.decode(msgspec.json.encode(told))["load"]["longs"] == 6
