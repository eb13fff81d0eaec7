"""What short prompts gain by waiting long ones, and what these pay: one load under every pace, beside the engine alone.

Long prompts go in slices, and between slices there are pauses while others decode; `long_share` says how long. Each
share is a point: long prompts' first token against short prompts' first token, whole answer and time a token. Beside
them stands what an engine can do by its own flag, --long-prefill-token-threshold, with nobody in front of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from loadtest.results.trade import Figures, Point
from loadtest.simulation.deployment import Deployment
from loadtest.spark.profile import EngineProfile
from loadtest.workloads.plan import Plan

THRESHOLDS = (512, 1024, 2048, 4096)
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


@dataclass(frozen=True)
class Setup:
    """One way to serve the load. `share` is the long prompts', where they come in slices."""

    name: str
    deployment: Deployment
    machine: EngineProfile
    share: float | None = None


def setups(gateway: Deployment, machine: EngineProfile, shares: Iterable[float] = SHARES) -> list[Setup]:
    """The engine alone, by its flag; and the gateway, whose slicing is taken but for the share. ValueError if it does
    not slice."""
    if gateway.slicing is None or not machine.enable_prefix_caching:
        raise ValueError("long prompts are not sliced: there is no pace to choose")
    direct = [Setup("direct", Deployment("direct"), machine)]
    for threshold in THRESHOLDS:
        flagged = machine.with_flags(long_prefill_token_threshold=threshold)
        direct.append(Setup(f"direct, threshold {threshold}", Deployment("direct"), flagged))
    whole = Setup(f"{gateway.name}, whole", replace(gateway, slicing=None), machine)
    sliced = []
    for share in shares:
        paced = replace(gateway, slicing=replace(gateway.slicing, long_share=share))
        sliced.append(Setup(f"{gateway.name}, share {share:g}", paced, machine, share))
    return [*direct, whole, *sliced]


def sweep(plans: Sequence[tuple[int, Plan]], setups: Iterable[Setup], noise: float = 0.0) -> Iterator[Point]:
    """Each setup with each plan, which goes with its seed."""
    for setup in setups:
        limit = setup.deployment.limits.long_prompt_tokens
        runs = [
            Figures.of(setup.deployment.simulate(plan, setup.machine, seed=seed, noise=noise), limit)
            for seed, plan in plans
        ]
        yield Point(setup.name, setup.share, Figures.mean(runs))
