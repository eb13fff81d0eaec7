"""Our timetables of the open loops against those that `vllm bench serve` itself draws."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from loadtest.workloads.open_loops import (
    MONDAY_BURST,
    OFFICE_BASELINE,
    REASONING,
    SWEEP,
    SWEEP_BURSTINESS,
    TEMPLATE_TOKENS,
    OpenLoop,
)
from loadtest.workloads.plan import Plan
from loadtest.workloads.sharegpt import BURSTINESS, COUNT, RATE, replay
from loadtest.workloads.workload import Dataset, Options
from tests.support.vllm import ENVIRONMENT, SCRIPTS

SEEDS = (42, 7)
LOOPS = {
    "office-baseline": OFFICE_BASELINE,
    "monday-burst": MONDAY_BURST,
    "reasoning": REASONING,
    **{f"sweep at {rate}": OpenLoop(count, rate, SWEEP_BURSTINESS) for rate, count in SWEEP},
}

Trace = list[list[float]]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some too short, some too long, some of one turn, and in letters of more than a byte."""
    random = Random(1)
    entries: list[dict[str, Any]] = [{"id": "without"}]
    for _ in range(6 * COUNT):
        turns = [
            {"from": "human", "value": "é" * int(random.lognormvariate(5, 1.8))} for _ in range(random.randint(1, 4))
        ]
        entries.append({"conversations": turns})
    path = tmp_path_factory.mktemp("sharegpt") / "conversations.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(scope="module")
def traces(conversations: Path) -> dict[tuple[str, int], Trace]:
    """Of each load and seed."""
    python = os.environ.get("FAIRLANE_VLLM_PYTHON")
    if not python:
        pytest.skip("FAIRLANE_VLLM_PYTHON is not set: `make test-vllm` installs vLLM and runs these tests")
    runs = {(name, seed): {**asdict(loop), "seed": seed} for name, loop in LOOPS.items() for seed in SEEDS}
    for seed in SEEDS:
        how = {"path": str(conversations), "count": COUNT, "rate": RATE, "burstiness": BURSTINESS}
        runs["sharegpt-replay", seed] = {**how, "seed": seed}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    done = subprocess.run(
        [os.path.abspath(python), SCRIPTS / "bench_trace.py"],
        input=json.dumps(list(runs.values())),
        env=environment,
        cwd=conversations.parent,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(zip(runs, json.loads(done.stdout.splitlines()[-1]), strict=True))


def same(plan: Plan, trace: Trace) -> None:
    assert [request.at for request in plan.requests] == pytest.approx([at for at, _, _ in trace], abs=1e-9)
    ours = [(request.prompt_tokens, request.output_tokens) for request in plan.requests]
    assert ours == [(prompt + TEMPLATE_TOKENS, answer) for _, prompt, answer in trace]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LOOPS)
def test_timetables_match_vllms_random_dataset(traces: dict[tuple[str, int], Trace], name: str, seed: int) -> None:
    same(LOOPS[name].plan(Options(seed)), traces[name, seed])


@pytest.mark.parametrize("seed", SEEDS)
def test_timetables_match_vllms_sharegpt_dataset(
    traces: dict[tuple[str, int], Trace], conversations: Path, seed: int
) -> None:
    same(
        replay(Options(seed, dataset=Dataset(conversations.name, conversations.read_bytes()))),
        traces["sharegpt-replay", seed],
    )
