"""What each policy does to the same office minute: short and long, first token and whole answer, and who fares worst.

Under the virtual clock, with the deploy profile's engine flags, through the very admission and policies of the gateway.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.scheduling.limits import Limits
from loadtest.results.office_minute import figures
from loadtest.results.records import Record
from loadtest.results.summary import jain
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine, prefill_alone
from loadtest.spark.profile import EngineProfile
from loadtest.workloads.office import office
from policies import find

NOISE = 0.1

# Column titles: which of the figures, and how it is written.
COLUMNS = {
    "short_ttft_p50_s": ("short TTFT p50, s", ".1f"),
    "short_ttft_p95_s": ("p95", ".1f"),
    "short_tpot_p50_ms": ("short TPOT p50, ms", ".0f"),
    "short_e2e_p50_s": ("short E2E p50, s", ".1f"),
    "long_ttft_p50_s": ("long TTFT p50, s", ".1f"),
    "long_ttft_max_s": ("last", ".1f"),
    "second_paster_ttft_s": ("second paster", ".1f"),
    "makespan_s": ("makespan, s", ".1f"),
    "worst_user": ("worst user's slowdown", ".0f"),
    "jain": ("Jain", ".2f"),
}

Row = dict[str, float]


def table(engine: EngineProfile, cost: Profile, policies: Iterable[str], seeds: Sequence[int]) -> dict[str, Row]:
    """Means over the seeds, by policy; `direct` is the engine alone, with the same flags."""
    rows = {}
    for name in ("direct", *policies):
        runs = [_figures(engine, _run(engine, cost, name, seed)) for seed in seeds]
        rows[name] = {key: fmean(run[key] for run in runs) for key in COLUMNS}
    return rows


def markdown(rows: dict[str, Row]) -> str:
    head = ["policy", *(title for title, _ in COLUMNS.values())]
    lines = [head, ["---", *(["---:"] * len(COLUMNS))]]
    for name, row in rows.items():
        lines.append([name, *(format(row[key], spec) for key, (_, spec) in COLUMNS.items())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _run(engine: EngineProfile, cost: Profile, policy: str, seed: int) -> list[Record]:
    simulated = Engine(engine, seed=seed, noise=NOISE)
    if policy == "direct":
        return Simulation(simulated).run(office(seed))
    model = CostModel(cost, threshold=engine.long_prefill_token_threshold)
    return Simulation(simulated, Core.create(model, find(policy)(), Limits())).run(office(seed))


def _figures(engine: EngineProfile, records: list[Record]) -> Row:
    """A request's slowdown is its TTFT over what it would be on an idle machine. Jain's index is over the users' mean
    speeds (1 / slowdown): 1 if all are slowed down alike."""
    slowdowns = defaultdict(list)
    for record in records:
        slowdowns[record.request.user].append(record.ttft / prefill_alone(engine, record.request.prompt_tokens))
    users = [fmean(each) for each in slowdowns.values()]
    return figures(records) | {"worst_user": max(users), "jain": jain(users) or 0.0}
