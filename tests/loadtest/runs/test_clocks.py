"""The same load in real time and in virtual time gives the same figures."""

import pytest

from loadtest.results.run import Load
from loadtest.results.summary import Slo
from loadtest.runs.load_client import Endpoint
from loadtest.runs.probe import served_model
from loadtest.runs.process import running
from loadtest.runs.run import Target, run
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.deployment import Deployment
from loadtest.simulation.run import simulate
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.catalogue import find
from loadtest.workloads.workload import Options

SPEED = 4.0


@pytest.mark.timeout(120)
def test_real_time_and_virtual_time_agree() -> None:
    """An office minute, in which everybody queues: half a minute here. Where the load generator itself was late, the
    machine was busy with something else, and it is tried once more."""
    workload = find("office-minute")
    load = Load(workload, Options(seed=1), workload.plan(Options(seed=1)), Slo())
    machine = load_profile("gemma-4-26b-bf16")
    virtual = simulate(load, Deployment("direct"), machine).summary
    for _ in range(2):
        with running(["sim", "--speed", str(SPEED), "--noise", "0"]) as url:
            target = Target(Endpoint(url, served_model(url), speed=SPEED), "direct", cost_profile(machine).prefill)
            real = run(load, target, lambda record: None, nonce="clocks").summary
        if real.schedule_lag.valid:
            break
    assert (real.completed, real.output_tokens, real.input_tokens) == (
        *(virtual.completed, virtual.output_tokens, virtual.input_tokens),
    )
    for figure in ("ttft_send_ms", "ttft_arrival_ms", "tpot_ms"):
        for quantile in ("p50", "p95"):
            ratio = getattr(getattr(real, figure), quantile) / getattr(getattr(virtual, figure), quantile)
            assert 0.95 < ratio < 1.05, f"{figure} {quantile}: {ratio:.3f}"
