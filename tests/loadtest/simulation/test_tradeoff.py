"""The tradeoff between short and long prompts: its setups, its figures, and the command that draws it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.slicing.planner import Slicing
from loadtest.charts import trade_curve
from loadtest.cli.load import GatewayOptions, deployment
from loadtest.cli.main import app
from loadtest.results.records import Outcome, Record
from loadtest.results.trade import Figures, Point, at_most, best_threshold
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.deployment import Deployment
from loadtest.simulation.tradeoff import THRESHOLDS, setups, sweep
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.plan import Plan, Request

MACHINE = load_profile("gemma-4-26b-nvfp4").with_flags(enable_prefix_caching=True)
GATEWAY = Deployment("fair", cost_profile(MACHINE), slicing=Slicing(max_stall=0.7))
DOCUMENT = Request(0.0, "ida", "long", 9000, 4)


def record(prompt_tokens: int, cached: int, *tokens: float, outcome: Outcome = Outcome.COMPLETED) -> Record:
    request = Request(0.0, "ada", "any", prompt_tokens, len(tokens))
    return Record(request, tokens=list(tokens), outcome=outcome, prompt_tokens=prompt_tokens, cached_tokens=cached)


def point(name: str, share: float | None, long: float, e2e: float, p95: float = 1.0) -> Point:
    return Point(name, share, Figures(0.5, p95, e2e, 100.0, long, 2 * long, 0.5, 100.0, 0.0))


def test_prompts_are_long_by_their_uncached_tokens() -> None:
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


def test_the_setups_are_the_engines_own_and_every_share() -> None:
    found = setups(GATEWAY, MACHINE, (1.0, 0.5))
    assert [setup.machine.long_prefill_token_threshold for setup in found] == [0, *THRESHOLDS, 0, 0, 0]
    assert [setup.deployment.name for setup in found] == [*["direct"] * 5, *["fair"] * 3]
    whole, *sliced = found[5:]
    assert whole.deployment.slicing is None
    assert [setup.deployment.slicing for setup in sliced] == [Slicing(0.7, 1.0), Slicing(0.7, 0.5)]


def test_without_slicing_there_is_no_share_to_choose() -> None:
    for gateway, machine in (
        (replace(GATEWAY, slicing=None), MACHINE),
        (GATEWAY, MACHINE.with_flags(enable_prefix_caching=False)),
    ):
        with pytest.raises(ValueError, match="not sliced"):
            setups(gateway, machine)


def test_a_sweep_averages_over_seeds() -> None:
    plans = [(seed, Plan((DOCUMENT, Request(0.3, "ada", "short", 100 + 400 * seed, 4)))) for seed in (0, 1)]
    setup = setups(GATEWAY, MACHINE, (1.0,))[-1:]
    (both,), (first,), (second,) = (list(sweep(chosen, setup)) for chosen in (plans, plans[:1], plans[1:]))
    assert first.figures != second.figures
    assert both.figures == Figures.mean([first.figures, second.figures])


def test_the_best_flag_is_compared_with_the_share_that_delays_long_prompts_no_more() -> None:
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


def test_the_tradeoff_is_drawn_and_saved(tmp_path: Path) -> None:
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


def test_an_invalid_sweep_is_reported_in_one_line() -> None:
    done = CliRunner().invoke(app, ["load", "trade", "office-minute", "--set", "slicing=false"], env={"COLUMNS": "160"})
    assert done.exit_code == 2
    assert "no pace to choose" in done.output


def test_a_simulated_gateway_slices_by_its_settings() -> None:
    assert deployment("fair", MACHINE, GatewayOptions()).slicing == Slicing()
    assert deployment("fair", MACHINE, GatewayOptions(["slicing=false"])).slicing is None
    given = deployment("fair", MACHINE, GatewayOptions(["max_stall=0.2", "long_share=0.4", "tpot_target=0.1"]))
    assert given.slicing == Slicing(0.2, 0.4, 0.1)
    flagged = MACHINE.with_flags(long_prefill_token_threshold=2560)
    assert deployment("fair", flagged, GatewayOptions()).slicing == Slicing(step_tokens=2560)
