#!/usr/bin/env bash
# Which long-prefill threshold, and which size of a semaphore, is best for a workload's short prompts: TTFT p95 from
# arrival of prompts up to 2048 tokens, mean of five seeds. Usage: docs/results/sweep.sh WORKLOAD
set -euo pipefail
workload=$1
short_p95() { # options
    for seed in 1 2 3 4 5; do
        rm -rf "$folder"
        fairlane load simulate "$workload" --seed "$seed" --noise 0.1 --enable-prefix-caching --set slicing=false --out "$folder" --json "$@" >/dev/null
        python - "$folder/results.jsonl" <<'PYTHON'
import json, sys
waits = sorted(row["ttft_arrival_ms"] for row in map(json.loads, open(sys.argv[1])) if row["prompt_tokens"] <= 2048)
print(waits[int(0.95 * (len(waits) - 1))] / 1e3)
PYTHON
    done | python -c 'import sys; found = list(map(float, sys.stdin)); print(f"{sum(found) / len(found):.2f} s")'
}
folder=$(mktemp -d)/run
for threshold in 0 512 1024 2048 4096; do
    echo "threshold $threshold: $(short_p95 --long-prefill-token-threshold "$threshold")"
done
for seats in 4 8 16 32 64; do
    echo "semaphore of $seats: $(short_p95 --policy semaphore --seats "$seats")"
done
