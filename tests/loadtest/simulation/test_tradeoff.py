"""The trade between short prompts and long ones: which ways there are, their figures, and the command that draws it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.slicing.planner import Slicing
from loadtest.cli.load import front
from loadtest.cli.main import app
from loadtest.plan.plan import Plan, Request
from loadtest.report import trade_curve
from loadtest.results.records import Outcome, Record
from loadtest.simulation.deployment import Deployment
from loadtest.simulation.tradeoff import THRESHOLDS, Figures, Point, at_most, best_threshold, sweep, ways
from loadtest.spark.cost_fit import cost_profile
from loadtest.spark.profile import load_profile

MACHINE = load_profile("gemma-4-26b-nvfp4").with_flags(enable_prefix_caching=True)
FRONT = Deployment("fair", cost_profile(MACHINE), slicing=Slicing(max_stall=0.7))
DOCUMENT = Request(0.0, "ida", "long", 9000, 4)


def record(prompt_tokens: int, cached: int, *tokens: float, outcome: Outcome = Outcome.COMPLETED) -> Record:
    request = Request(0.0, "ada", "any", prompt_tokens, len(tokens))
    return Record(request, tokens=list(tokens), outcome=outcome, prompt_tokens=prompt_tokens, cached_tokens=cached)


def point(name: str, share: float | None, long: float, e2e: float, p95: float = 1.0) -> Point:
    return Point(name, share, Figures(0.5, p95, e2e, 100.0, long, 2 * long, 0.5, 100.0, 0.0))


def test_long_is_what_is_to_be_prefilled() -> None:
    records = [
        record(5000, 0, 10.0, 11.0),
        record(5000, 4000, 1.0, 2.0, 4.0),
        record(100, 0, 2.0, 3.0),
        record(100, 0, outcome=Outcome.REJECTED),
    ]
    found = Figures.of(records, 2048)
    assert (found.long_ttft_p50_s, found.short_ttft_p50_s, found.short_e2e_p50_s) == (10.0, 1.5, 3.5)
    assert (found.short_tpot_p50_ms, found.makespan_s, found.failed) == (1250.0, 11.0, 1.0)
    with pytest.raises(ValueError, match="no trade: of 1 prompts, 0 are long"):
        Figures.of(records[1:2], 2048)


def test_the_ways_are_the_engines_own_and_every_share() -> None:
    found = ways(FRONT, MACHINE, (1.0, 0.5))
    assert [way.machine.long_prefill_token_threshold for way in found] == [0, *THRESHOLDS, 0, 0, 0]
    assert [way.front.name for way in found] == [*["direct"] * 5, *["fair"] * 3]
    whole, *sliced = found[5:]
    assert whole.front.slicing is None
    assert [way.front.slicing for way in sliced] == [Slicing(0.7, 1.0), Slicing(0.7, 0.5)]


def test_where_nothing_is_cut_there_is_no_pace_to_choose() -> None:
    for gateway, machine in (
        (replace(FRONT, slicing=None), MACHINE),
        (FRONT, MACHINE.with_flags(enable_prefix_caching=False)),
    ):
        with pytest.raises(ValueError, match="not sliced"):
            ways(gateway, machine)


def test_a_sweep_takes_means_over_the_seeds() -> None:
    plans = [(seed, Plan((DOCUMENT, Request(0.3, "ada", "short", 100 + 400 * seed, 4)))) for seed in (0, 1)]
    way = ways(FRONT, MACHINE, (1.0,))[-1:]
    (both,), (first,), (second,) = (list(sweep(chosen, way)) for chosen in (plans, plans[:1], plans[1:]))
    assert first.figures != second.figures
    assert both.figures == Figures.mean([first.figures, second.figures])


def test_the_best_flag_and_the_pace_that_is_no_later() -> None:
    points = [
        point("direct", None, 20.0, 60.0, p95=0.1),
        point("direct, threshold 512", None, 50.0, 60.0, p95=8.0),
        point("direct, threshold 1024", None, 45.0, 60.0, p95=9.0),
        point("fair, whole", None, 25.0, 50.0),
        point("fair, share 1", 1.0, 40.0, 55.0),
        point("fair, share 0.9", 0.9, 49.0, 45.0),
        point("fair, share 0.5", 0.5, 80.0, 30.0),
    ]
    assert best_threshold(points).name == "direct, threshold 512"
    assert at_most(points, 50.0) == points[5]
    assert at_most(points, 30.0) is None


def test_it_is_drawn_and_kept(tmp_path: Path) -> None:
    command = ["load", "trade", "office-minute", "--profile", "gemma-4-26b-nvfp4", "--seeds", "1"]
    chosen = ["--share", "1", "--share", "0.5", "--set", "max_stall=1", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, *chosen], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "direct, threshold 4096" in done.stdout
    assert "times as fast" in done.stdout
    assert "●" in done.stdout
    names = [each["name"] for each in json.loads((tmp_path / "trade.json").read_text())]
    assert names[-3:] == ["fair, whole", "fair, share 1", "fair, share 0.5"]
    page = (tmp_path / "trade.html").read_text()
    assert page.count("<svg") == len(trade_curve.DRAWN)
    assert "Django de Vreng" in page


def test_what_cannot_be_swept_is_told_in_a_line() -> None:
    done = CliRunner().invoke(app, ["load", "trade", "office-minute", "--set", "slicing=false"], env={"COLUMNS": "160"})
    assert done.exit_code == 2
    assert "no pace to choose" in done.output


def test_a_simulated_gateway_cuts_as_its_settings_say() -> None:
    assert front("fair", MACHINE).slicing == Slicing()
    assert front("fair", MACHINE, ["slicing=false"]).slicing is None
    given = front("fair", MACHINE, ["max_stall=0.2", "long_share=0.4", "tpot_target=0.1"])
    assert given.slicing == Slicing(0.2, 0.4, 0.1)
    flagged = MACHINE.with_flags(long_prefill_token_threshold=2560)
    assert front("fair", flagged).slicing == Slicing(step_tokens=2560)
