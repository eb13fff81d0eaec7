#!/usr/bin/env bash
# Makes docs/results/repo-nine, monday-burst and rate-sweep anew, on the virtual clock. A minute.
set -euo pipefail
out=docs/results
rm -rf "$out/repo-nine" "$out/monday-burst" "$out/rate-sweep"
for profile in gemma-4-26b-bf16 gemma-4-26b-nvfp4; do
    fairlane load suite repo-nine --profile "$profile" --policy direct --policy fair --out "$out/repo-nine/$profile"
done
run() { # folder, workload, options
    fairlane load simulate "$2" --out "$out/$1" --json "${@:3}" >/dev/null
    rm "$out/$1/report.html"
}
run monday-burst/runs/capped monday-burst --label "direct, cap of 25"
run monday-burst/runs/direct monday-burst --max-concurrency 0 --label "direct, no cap"
run monday-burst/runs/fair monday-burst --max-concurrency 0 --policy fair --long-prefill-token-threshold 2560
run rate-sweep/runs/direct rate-sweep
run rate-sweep/runs/fair rate-sweep --policy fair --long-prefill-token-threshold 2560
(cd "$out/monday-burst/runs" && fairlane load compare capped direct fair --html ../page.html >../table.txt)
(cd "$out/rate-sweep/runs" && fairlane load compare direct fair --html ../page.html >../table.txt)
