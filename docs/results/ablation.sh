#!/usr/bin/env bash
# Makes docs/results/ablation and the tables of docs/results/ablation.md anew: the mixed office behind gateways that
# price requests in five ways, two machines, three loads, two policies, five seeds, on the virtual clock. Ten minutes.
# The runs themselves are not kept, for they are large.
set -euo pipefail
out=docs/results/ablation
runs=$out/runs
rm -rf "$out"
kv_cache=400000  # tokens: a choice; no run on a Spark has recorded the size of its cache
deploy=2560      # our deploy profile's threshold
policies=(fair shortest)
pricings=(true learned cold tokens requests)

simulate() { # machine, what the gateway is told it is, people
    local machine=$1 told=$2 people=$3 case=$runs/$1/$3
    mkdir -p "$case"
    for seed in 1 2 3 4 5; do
        fairlane load simulate office-mix --users "$people" --seed "$seed" --noise 0.1 --set slicing=false --profile "$machine" \
            --set profile="$told" --enable-prefix-caching --kv-cache-tokens "$kv_cache" \
            --long-prefill-token-threshold "$deploy" "${policies[@]/#/--policy=}" "${pricings[@]/#/--pricing=}" \
            --out "$case/new" --json >/dev/null
        rm "$case/new/report.html"
        for run in "$case"/new/*; do
            mkdir -p "$case/$(basename "$run")"
            mv "$run" "$case/$(basename "$run")/seed-$seed"
        done
    done
    rmdir "$case/new"
    echo "$machine, $people people"
}

# People, by how much of the machine they ask for: about 55, 90 and 160 %. The gateway begins with the price of the same
# model in the other precision, as in the demo, so that there is something to learn.
for people in 10 15 30; do simulate gemma-4-26b-bf16 gemma-4-26b-nvfp4 "$people"; done
for people in 15 25 50; do simulate gemma-4-26b-nvfp4 gemma-4-26b-bf16 "$people"; done

page() { # machine, people
    (cd "$runs/$1/$2" && fairlane load compare fair-true fair fair-cold fair-tokens fair-requests --html page.html) \
        >"$out/$1.txt"
    mv "$runs/$1/$2/page.html" "$out/$1.html"
}
page gemma-4-26b-bf16 30
page gemma-4-26b-nvfp4 50

python - "$runs" "$out.md" "$kv_cache" "$deploy" <<'PYTHON'
import json
import sys
from pathlib import Path
from statistics import fmean, median

from gateway.lifecycle.core import Core
from gateway.pricing.profile import Profile
from loadtest.cli.load import GatewayOptions, deployment
from loadtest.results.records import percentile
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.pricing import cost_model
from loadtest.simulation.simulation import Options as SimulationOptions
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.office_mix import office_mix
from loadtest.workloads.workload import Options
from policies.base import LANES, Job, Lane
from policies.fair import Fair

runs, document = map(Path, sys.argv[1:3])
KV_CACHE, DEPLOY = map(int, sys.argv[3:])
SHORT = {"question", "chat", "background"}
FIGURES = ("short TTFT p95, s", "short p50, s", "long p50, s", "long p95, s", "Jain", "makespan, s")
PRICINGS = {"true": "-true", "learned": "", "cold": "-cold", "tokens": "-tokens", "requests": "-requests"}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").open()]


def figures(folder: Path) -> tuple[float, ...]:
    waits = {True: [], False: []}
    for row in rows(folder):
        waits[row["kind"] in SHORT].append(row["ttft_arrival_ms"] / 1e3)
    short, long = waits[True], waits[False]
    summary = json.loads((folder / "summary.json").read_text())
    return (
        *(percentile(short, 95), percentile(short, 50), percentile(long, 50), percentile(long, 95)),
        *(summary["jain"], summary["duration_s"]),
    )


def share(folder: Path, cost: Profile) -> float:
    """Of the five minutes in which people come, what the engine needs for what they asked, cached prompts apart."""
    prefill = sum(cost.prefill(row["prompt_tokens"], row["cached_tokens"]) for row in rows(folder))
    return (prefill + sum(cost.decode(row["output_tokens"]) for row in rows(folder))) / 300


def cell(values: list[float], bases: list[float]) -> str:
    digits = 0 if min(values) >= 100 else 2 if max(values) < 10 else 1
    middle, least, most = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    ratio = median(value / base for value, base in zip(values, bases, strict=True))
    return f"{middle} ({least} to {most}) {ratio:.2f}×"


class Watched(Fair):
    """Notes of each job that is dispatched, whether somebody else's waited in its lane, so that there was a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.flows = {lane: [] for lane in LANES}
        self.chosen = {lane: [] for lane in LANES}

    def push(self, job: Job) -> None:
        super().push(job)
        self.flows[job.lane].append(job.flow)

    def pop(self, lane: Lane) -> Job:
        self.chosen[lane].append(len(set(self.flows[lane])) > 1)
        job = super().pop(lane)
        self.flows[lane].remove(job.flow)
        return job


def choices(name: str, people: int) -> str:
    """How often there was one, as the true price has it."""
    machine = load_profile(name).with_flags(
        enable_prefix_caching=True, kv_cache_tokens=KV_CACHE, long_prefill_token_threshold=DEPLOY
    )
    chosen = {lane: [] for lane in LANES}
    for seed in range(1, 6):
        policy = Watched()
        limits = deployment("fair", machine, GatewayOptions()).limits
        core = Core.create(cost_model("true", cost_profile(machine), machine), policy, limits)
        plan = office_mix(Options(seed, people))
        options = SimulationOptions(counts="all")
        Simulation(Engine(machine, seed=seed, noise=0.1), core, options).run(plan)
        for lane in LANES:
            chosen[lane] += policy.chosen[lane]
    return " and ".join(f"{100 * fmean(chosen[lane]):.1f} % of the {lane} ones" for lane in LANES)


lines = []
for machine in ("gemma-4-26b-bf16", "gemma-4-26b-nvfp4"):
    cost = cost_profile(load_profile(machine))
    for case in sorted((runs / machine).iterdir(), key=lambda folder: int(folder.name)):
        asked = median(share(folder, cost) for folder in (case / "fair-true").iterdir())
        lines += [f"### {machine}, {case.name} people: {100 * asked:.0f} % of the machine", ""]
        lines += [f"Somebody else's request waited in the same lane for {choices(machine, int(case.name))}.", ""]
        for policy in ("fair", "shortest"):
            lines += [f"| `{policy}` | " + " | ".join(FIGURES) + " |", "| --- |" + " ---: |" * len(FIGURES)]
            bases = None
            for name, folder in PRICINGS.items():
                found = [figures(each) for each in sorted((case / f"{policy}{folder}").iterdir())]
                by_figure = list(zip(*found, strict=True))
                bases = bases or by_figure
                lines.append(f"| `{name}` | " + " | ".join(map(cell, map(list, by_figure), map(list, bases))) + " |")
            lines.append("")
before, _, after = document.read_text().split("<!-- table -->\n")
document.write_text("<!-- table -->\n".join((before, "\n".join(lines), after)))
PYTHON
rm -rf "$runs"
