"""Our engine composes every step as vLLM's own scheduler does: scheduler_steps.py has what is drawn and compared."""

import json
import os
import subprocess
from itertools import product
from typing import Any

import pytest

from tests.support.repository import ROOT
from tests.support.vllm import ENVIRONMENT, SCRIPTS, SUPPORT

SCENARIOS = 400

Reports = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """By the seed that draws the scenario again."""
    python = os.environ.get("FAIRLANE_VLLM_PYTHON")
    if not python:
        pytest.skip("FAIRLANE_VLLM_PYTHON is not set: `make test-vllm` installs vLLM and runs these tests")
    python = os.path.abspath(python)
    folder = tmp_path_factory.mktemp("scheduler")
    # It needs our engine, and each scenario's configuration would log its own notes.
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    subprocess.run([python, SUPPORT / "tiny_model.py", folder], env=environment, cwd=folder, check=True)
    done = subprocess.run(
        [python, SCRIPTS / "scheduler_steps.py", folder, str(SCENARIOS)],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=300,
    )
    return dict(enumerate(json.loads(done.stdout.splitlines()[-1])))


def test_the_simulated_engine_composes_the_same_steps_as_vllm(reports: Reports) -> None:
    differing = {seed: report for seed, report in reports.items() if report["difference"]}
    shown = [f"scenario {seed}, {report['flags']}: {report['difference']}" for seed, report in differing.items()]
    assert not shown, f"{len(shown)} of {len(reports)} scenarios differ:\n" + "\n".join(shown[:5])


def test_scenarios_cover_preemptions_aborts_and_cache_hits(reports: Reports) -> None:
    """Each way to schedule preempts and aborts, with prefix caching and without, and finds what is cached."""
    assert len(reports) == SCENARIOS
    for ahead, policy, caching in product((False, True), ("fcfs", "priority"), (False, True)):
        flags = {"async_scheduling": ahead, "scheduling_policy": policy, "enable_prefix_caching": caching}
        group = [report for report in reports.values() if flags.items() <= report["flags"].items()]
        assert sum(report["preemptions"] for report in group) > 20, flags
        assert sum(report["aborted"] for report in group) > 20, flags
        assert (sum(report["hits"] for report in group) > 200) == caching, flags
