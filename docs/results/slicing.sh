#!/usr/bin/env bash
# Makes docs/results/slicing.json, docs/results/slicing/ and the table of docs/slicing.md anew: each policy with long
# prompts whole, in slices, and in slices with pauses, on two machines under two loads, five seeds, on the virtual clock;
# and the trade curves. A quarter of an hour on two cores.
set -euo pipefail
out=docs/results/slicing
mkdir -p "$out"
for machine in gemma-4-26b-nvfp4 gemma-4-26b-bf16; do
    fairlane load trade office-minute --profile "$machine" --out "$out/$machine" >"$out/$machine.txt" 2>/dev/null
done

"${PYTHON:-python}" - "$out.json" docs/slicing.md <<'PYTHON'
import json
import sys
from itertools import product
from multiprocessing import Pool
from pathlib import Path

import msgspec

from loadtest.charts.trade_curve import markdown
from loadtest.cli.load import GatewayOptions, LoadOptions, deployment, read_load
from loadtest.results.trade import Figures, Point
from loadtest.storage.engine_profiles import load_profile

rows_file, document = map(Path, sys.argv[1:])
MACHINES = ("gemma-4-26b-bf16", "gemma-4-26b-nvfp4")
WORKLOADS = ("starvation", "office-mix")
POLICIES = ("fair", "fifo", "shortest", "drr", "deadline")
PACE = 0.7
WAYS = {"whole": ["slicing=false"], "sliced": ["long_share=1"], f"share {PACE}": [f"long_share={PACE}"]}
SEEDS = range(5)


def row(case):
    machine, workload, policy, way, seed = case
    engine = load_profile(machine).with_flags(enable_prefix_caching=True)
    plan = read_load(LoadOptions(workload, seed)).plan
    chosen = deployment(policy, engine, GatewayOptions(WAYS.get(way)))
    figures = Figures.of(chosen.simulate(plan, engine, seed=seed, noise=0.1), chosen.limits.long_prompt_tokens)
    names = dict(zip(("machine", "workload", "policy", "way", "seed"), case))
    return names | {name: round(value, 4) for name, value in msgspec.to_builtins(figures).items()}


def mean(rows, **names):
    found = [each for each in rows if all(each[name] == value for name, value in names.items())]
    return Figures.mean([Figures(**{name: each[name] for name in Figures.__struct_fields__}) for each in found])


if __name__ == "__main__":
    cases = [
        (machine, workload, policy, way, seed)
        for machine, workload, seed in product(MACHINES, WORKLOADS, SEEDS)
        for policy, way in (("direct", "stock"), *product(POLICIES, WAYS))
    ]
    with Pool(2) as pool:
        rows = pool.map(row, cases, chunksize=4)
    rows_file.write_text("[\n" + ",\n".join(json.dumps(each) for each in rows) + "\n]\n")
    tables = []
    for machine, workload in product(MACHINES, WORKLOADS):
        ways = [("direct", "stock"), *product(POLICIES, WAYS)]
        points = [
            Point(f"{policy}, {way}", None, mean(rows, machine=machine, workload=workload, policy=policy, way=way))
            for policy, way in ways
        ]
        tables.append(f"### {machine}, {workload}\n\n{markdown(points)}\n")
    head, _, rest = document.read_text().partition("<!-- table -->\n")
    _, end, tail = rest.partition("<!-- end of the table -->\n")
    document.write_text(f"{head}<!-- table -->\n" + "\n".join(tables) + end + tail)
PYTHON
