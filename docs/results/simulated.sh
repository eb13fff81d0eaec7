#!/usr/bin/env bash
# Makes docs/results/WORKLOAD anew: what stands before a simulated Spark, side by side, five seeds each, on the virtual
# clock. Minutes. Usage: docs/results/simulated.sh WORKLOAD THRESHOLD SEATS
#   THRESHOLD  the --long-prefill-token-threshold that is best for short prompts, SEATS the best of a semaphore:
#              docs/results/sweep.sh WORKLOAD finds them
set -euo pipefail
workload=$1 threshold=$2 seats=$3
out=docs/results/$workload
deploy=2560  # our deploy profile's threshold
rm -rf "$out/runs"
for seed in 1 2 3 4 5; do
    simulate() { # folder, options
        local folder=$1
        shift
        fairlane load simulate "$workload" --seed "$seed" --noise 0.1 --enable-prefix-caching --set slicing=false \
            --out "$out/runs/$folder/seed-$seed" --json "$@" >/dev/null
        rm "$out/runs/$folder/seed-$seed/report.html"
    }
    simulate direct --policy direct
    simulate tuned --policy direct --long-prefill-token-threshold "$threshold" --label "direct, threshold $threshold"
    simulate priority --policy priority --label "direct, priority"
    simulate semaphore --policy semaphore --seats "$seats" --label "semaphore of $seats"
    for policy in fifo shortest fair; do
        simulate "$policy" --policy "$policy" --long-prefill-token-threshold "$deploy"
    done
    echo "seed $seed"
done
cd "$out/runs"
fairlane load compare direct tuned priority semaphore fifo shortest fair --html ../page.html >../table.txt
