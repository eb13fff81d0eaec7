"""The demo: its figures in virtual time for many seeds, and the command once in real time at high speed."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.scheduling.limits import Limits
from gateway.slicing.planner import Slicing
from gateway.storage.profile_file import load as load_cost_profile
from loadtest.demo import DEPLOY_THRESHOLD, NOISE, STALL_S, Demo, Runs, figures, gateway_settings, sentence, table
from loadtest.results.office_minute import documents_before_second_paster
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from policies import POLICIES
from tests.support.repository import ROOT

BF16, NVFP4 = "gemma-4-26b-bf16", "gemma-4-26b-nvfp4"
KEYS = {
    "short_ttft_p50_s",
    "short_ttft_p95_s",
    "short_e2e_p50_s",
    "short_e2e_p95_s",
    "short_tpot_p50_ms",
    "itl_p99_s",
    "long_ttft_p50_s",
    "long_ttft_max_s",
    "second_paster_ttft_s",
    "makespan_s",
    "failed",
}


def demo(seed: int, policy: str = "fair", profile: str = BF16) -> Demo:
    return Demo(profile, load_profile(profile), load_cost_profile(NVFP4), policy, seed, speed=1.0)


def simulated(wanted: Demo, slicing: Slicing | None = None) -> Runs:
    """The three runs under the virtual clock: the same load, engine, admission and prices, no sockets."""
    machine = wanted.engine.with_flags(enable_prefix_caching=True)

    def run(threshold: int, gated: bool) -> Simulation:
        engine = Engine(machine.with_flags(long_prefill_token_threshold=threshold), seed=wanted.seed, noise=NOISE)
        if not gated:
            return Simulation(engine)
        return Simulation(engine, Core.create(CostModel(wanted.cost), POLICIES[wanted.policy](), Limits(), slicing))

    return {
        "direct": run(0, gated=False).run(wanted.arrivals),
        "direct_tuned": run(wanted.best_threshold(), gated=False).run(wanted.arrivals),
        "gateway": run(DEPLOY_THRESHOLD, gated=True).run(wanted.arrivals),
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_has_the_readmes_figures(seed: int) -> None:
    runs = simulated(demo(seed))
    direct, tuned, ours = figures(runs).values()
    assert direct["failed"] == tuned["failed"] == ours["failed"] == 0
    assert direct["short_ttft_p95_s"] / ours["short_ttft_p95_s"] >= 10
    assert tuned["short_ttft_p95_s"] / ours["short_ttft_p95_s"] >= 2
    assert ours["long_ttft_p50_s"] <= tuned["long_ttft_p50_s"]
    assert ours["makespan_s"] <= 1.05 * direct["makespan_s"]
    assert ours["long_ttft_p50_s"] <= 1.45 * direct["long_ttft_p50_s"]
    assert ours["long_ttft_max_s"] <= 1.45 * direct["long_ttft_max_s"]
    assert ours["short_e2e_p50_s"] <= 1.05 * direct["short_e2e_p50_s"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_slices_improve_short_prompts_further(seed: int) -> None:
    """Short prompts' first tokens come at once; the documents pay, but not more than the engine's best flag costs."""
    direct, tuned, ours = figures(simulated(demo(seed), Slicing(step_tokens=DEPLOY_THRESHOLD))).values()
    assert ours["failed"] == 0
    assert direct["short_ttft_p95_s"] / ours["short_ttft_p95_s"] >= 25
    assert tuned["short_ttft_p95_s"] / ours["short_ttft_p95_s"] >= 5
    assert ours["itl_p99_s"] < 0.8 * tuned["itl_p99_s"]
    assert ours["long_ttft_p50_s"] <= 1.2 * tuned["long_ttft_p50_s"]
    assert ours["second_paster_ttft_s"] <= 0.6 * direct["second_paster_ttft_s"]
    assert ours["makespan_s"] <= 1.18 * direct["makespan_s"]
    assert ours["short_e2e_p50_s"] <= 1.08 * direct["short_e2e_p50_s"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_second_user_is_served_before_the_firsts_third_document(seed: int) -> None:
    assert documents_before_second_paster(simulated(demo(seed))["gateway"]) < 3
    assert documents_before_second_paster(simulated(demo(seed, policy="fifo"))["gateway"]) >= 3


@pytest.mark.parametrize("coefficient", ["tf_s", "tt_s_per_token", "ta_s_per_token2", "td_s"])
def test_every_row_is_computed_from_the_profile(coefficient: str) -> None:
    """Nothing is written down: another machine gives other figures, in all three runs."""
    wanted = demo(1)
    changed = replace(wanted.engine, **{coefficient: 1.3 * getattr(wanted.engine, coefficient)})
    before = figures(simulated(wanted))
    after = figures(simulated(replace(wanted, engine=changed)))
    for name in before:
        assert before[name] != after[name]


def test_the_table_shows_three_runs_and_the_sentence_the_tradeoff() -> None:
    runs = simulated(demo(1))
    console = Console(record=True, width=120, file=StringIO())
    console.print(table(runs))
    console.print(sentence(runs))
    text = console.export_text()
    for name, row in figures(runs).items():
        assert f"{row['short_ttft_p95_s']:.1f}" in text, name
    assert re.search(r"p95\) straight at the\s+engine", text)


def test_settings_are_scaled_to_spark_seconds() -> None:
    wanted = replace(demo(1), speed=4.0, settings=("long_share=0.7", "max_stall=1", "tpot_target=0.2"))
    assert {"long_share=0.7", "max_stall=0.25", "tpot_target=0.05"} <= {*gateway_settings(wanted)}
    assert f"max_stall={STALL_S}" in gateway_settings(demo(1))


@pytest.mark.timeout(150)
def test_the_demo_command_runs(tmp_path: Path) -> None:
    """Three times through real servers, at a speed that leaves little of a Spark second; the direction must hold. Long
    prompts go whole: these are the figures of that.

    The profile is a copy, given by its path, as a user would.
    """
    text = (ROOT / "loadtest" / "spark" / "profiles.toml").read_text()
    start = text.index(f"[{BF16}]")
    copy = tmp_path / "mine.toml"
    copy.write_text(text[start : text.index("[", start + 1)] if "[" in text[start + 1 :] else text[start:])
    command = [sys.executable, "-m", "loadtest", "demo", "--json", "--seed", "1", "--speed", "12"]
    command += ["--set", "slicing=false"]
    done = subprocess.run([*command, "--profile", str(copy)], capture_output=True, text=True, timeout=140, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert list(rows) == ["direct", "direct_tuned", "gateway"]
    assert all(set(row) == KEYS for row in rows.values())
    direct, tuned, ours = rows.values()
    assert direct["short_ttft_p95_s"] / ours["short_ttft_p95_s"] >= 8
    assert tuned["short_ttft_p95_s"] / ours["short_ttft_p95_s"] >= 1.6
    assert ours["makespan_s"] <= 1.08 * direct["makespan_s"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "fare"], "choose fair, fifo"),
        (["--profile", "gemma"], "gemma-4-26b-bf16"),
        (["--speed", "0"], "--speed"),
        (["--set", "long_share=2"], "long_share"),
    ],
)
def test_errors_are_reported(arguments: list[str], says: str) -> None:
    command = [sys.executable, "-m", "loadtest", "demo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert says in re.sub(r"[│\s]+", " ", done.stderr)
