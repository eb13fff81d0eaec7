"""Fits a simulated machine to what a real one measured: the coefficients of loadtest/spark/profiles.toml.

Least squares of log(simulated / measured) with a soft L1 loss, so that an outlier pulls once and not squared, over

    A B E F   TTFT, decode rates and prefill rate of every point
    C G       TTFT, and the decode rate alone: elsewhere it hangs on where the answers ended, which nobody recorded
    H D       TTFT (D: its median; the tail was compilation), TPOT, ITL, E2E, duration

J is left out, so that it can be predicted; I too, for its data set is not at hand. `q`, the share of experts that a
token touches, is the model's own and stays as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import log
from statistics import median
from typing import TYPE_CHECKING

from loadtest.results.measurements import FITTED, Figures, Measured, figures
from loadtest.results.summary import About, Measurement, summarize
from loadtest.simulation.deployment import Deployment
from loadtest.spark.engine import word_latency
from loadtest.spark.profile import EngineProfile
from loadtest.workloads.catalogue import find
from loadtest.workloads.plan import TextKind
from loadtest.workloads.workload import Workload

if TYPE_CHECKING:
    import numpy as np

COEFFICIENTS = ("tf_s", "te_s", "td_s", "tt_s_per_token", "ta_s_per_token2", "tk_s_per_token", "to_s")
ROUTED: tuple[TextKind, ...] = ("book", "random", "reasoning")


@dataclass(frozen=True)
class Fit:
    """`errors` are simulated over measured, less one, by test and figure: the fitted tests, then those held out."""

    machine: EngineProfile
    errors: dict[str, dict[str, float]]


def fit(
    start: EngineProfile,
    measured: Mapping[str, Measured],
    on_try: Callable[[float], None] = lambda cost: None,
    *,
    tests: tuple[str, ...] = FITTED,
    tries: int = 20,
) -> Fit:
    """From a start that is in the right order of magnitude. `on_try` is told of every trial's loss.

    Raises ImportError without scipy, ValueError if nothing of the tests was measured.
    """
    wanted = {letter: dict(_used(letter, measured[letter])) for letter in tests if letter in measured}
    if not wanted:
        raise ValueError(f"none of the tests {', '.join(tests)} was measured")
    initial = _values(start)

    def scaled(scales: Iterable[float]) -> EngineProfile:
        return _machine(start, [value * float(scale) for value, scale in zip(initial, scales, strict=True)])

    def residuals(scales: "np.ndarray") -> list[float]:
        machine, found = scaled(scales), []
        for letter, figures_wanted in wanted.items():
            ours = simulated(find(letter), machine, measured[letter].latency_ms)
            found += [_weight(name) * log(max(ours[name], 1e-9) / value) for name, value in figures_wanted.items()]
        on_try(median(map(abs, found)))
        return found

    machine = scaled(_least_squares(residuals, len(initial), tries))
    return Fit(machine, {letter: errors_of(letter, machine, each) for letter, each in measured.items()})


def _least_squares(residuals: Callable[["np.ndarray"], list[float]], count: int, tries: int) -> "np.ndarray":
    """So many scales, from 1 on."""
    import numpy as np
    from scipy.optimize import least_squares  # type: ignore[import-untyped]

    solved = least_squares(
        lambda scales: np.array(residuals(scales)),
        np.ones(count),
        bounds=(0.05, 20.0),
        loss="soft_l1",
        f_scale=0.03,
        diff_step=0.02,
        x_scale=0.3,
        max_nfev=tries,
    )
    scales: np.ndarray = solved.x
    return scales


def errors_of(letter: str, machine: EngineProfile, measured: Measured) -> dict[str, float]:
    ours = simulated(find(letter), machine, measured.latency_ms)
    return {name: ours[name] / value - 1 for name, value in measured.figures().items() if value and name in ours}


def simulated(workload: Workload, machine: EngineProfile, latency_ms: float = 0.0) -> Figures:
    """A workload straight at the engine, by the names of the measured figures."""
    plan = workload.plan()
    records = Deployment("direct").simulate(plan, machine)
    about = About(workload.name, workload.seed, "virtual", "direct", machine.name)
    latency = word_latency(machine) if latency_ms else 0.0
    return figures(summarize(about, Measurement(plan, records, lambda tokens: 1.0, latency=latency)))


def toml(machine: EngineProfile) -> str:
    """As a table of profiles.toml."""
    lines = [f"[{machine.name}]", *(f"{name} = {getattr(machine, name):.6g}" for name in COEFFICIENTS)]
    lines.append(f"q = {machine.q:g}")
    for name in ("d", "tt_factor"):
        table = ", ".join(f"{kind} = {value:.4g}" for kind, value in getattr(machine, name).items())
        lines.append(f"{name} = {{ {table} }}")
    lines += [
        f"max_num_batched_tokens = {machine.max_num_batched_tokens}",
        f"max_num_seqs = {machine.max_num_seqs}",
        f"long_prefill_token_threshold = {machine.long_prefill_token_threshold}",
        f"async_scheduling = {str(machine.async_scheduling).lower()}",
    ]
    if machine.kv_cache_tokens is not None:
        lines.append(f"kv_cache_tokens = {machine.kv_cache_tokens}")
    return "\n".join(lines) + "\n"


def _used(letter: str, measured: Measured) -> Iterator[tuple[str, float]]:
    for name, value in measured.figures().items():
        if not value or (letter in "CG" and "decode" in name and " c1 " not in name):
            continue
        if letter in "CG" and "prefill_tps" in name:
            continue
        if letter == "D" and name.startswith("ttft") and not name.endswith("p50"):
            continue
        yield name, value


def _weight(figure: str) -> float:
    """The totals of a batch say again, in part, what its requests say."""
    return 0.5 if "decode_tps_total" in figure or "prefill_tps" in figure else 1.0


def _values(machine: EngineProfile) -> list[float]:
    factor = machine.tt_factor.get("random", 1.0)
    return [*(getattr(machine, name) for name in COEFFICIENTS), *(machine.d[kind] for kind in ROUTED), factor]


def _machine(start: EngineProfile, values: list[float]) -> EngineProfile:
    coefficients = dict(zip(COEFFICIENTS, values, strict=False))
    *routed, factor = values[len(COEFFICIENTS) :]
    d = dict(zip(ROUTED, routed, strict=True))
    d["mixed"] = d["random"]
    return replace(start, **coefficients, d=d, tt_factor={"random": factor})  # type: ignore[arg-type]
