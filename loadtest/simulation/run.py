"""A run on the virtual clock."""

from functools import lru_cache

from loadtest.results.run import Load, Run
from loadtest.results.summary import About, Measurement, summarize
from loadtest.simulation.deployment import Deployment
from loadtest.spark.engine import prefill_alone, word_latency
from loadtest.spark.profile import EngineProfile


def simulate(load: Load, deployment: Deployment, machine: EngineProfile, *, noise: float = 0.0, label: str = "") -> Run:
    """Its summary's provenance has what was simulated, and not yet who simulated it."""
    records = deployment.simulate(load.plan, machine, seed=load.options.seed, noise=noise)
    about = About(
        workload=load.workload.name,
        seed=load.options.seed,
        clock="virtual",
        policy=label or deployment.title,
        profile=machine.name,
        model=machine.name,
        note=load.workload.note,
        provenance={"engine": machine.flags, "noise": f"{noise:g}", **deployment.settings()},
    )

    @lru_cache
    def alone(prompt_tokens: int) -> float:
        return prefill_alone(machine, prompt_tokens)

    measurement = Measurement(load.plan, records, alone, load.slo, latency=word_latency(machine))
    return Run(summarize(about, measurement), records)
