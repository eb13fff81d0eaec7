#!/usr/bin/env bash
# Makes docs/results/WORKLOAD-real-time anew: straight at a simulated Spark, through LiteLLM with its
# max_parallel_requests, and through Fairlane; real servers and sockets, five runs each in alternating order.
# Usage: LITELLM=/path/to/litellm docs/results/real-time.sh WORKLOAD SEATS [options of load run]
set -euo pipefail
workload=$1 seats=$2
shift 2
out=docs/results/$workload-real-time
speed=4 deploy=2560
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
rm -rf "$out/runs"

cat >"$work/litellm.yaml" <<YAML
model_list:
  - model_name: gemma-4-26b-bf16
    litellm_params:
      model: hosted_vllm/gemma-4-26b-bf16
      api_base: http://127.0.0.1:8401/v1
      api_key: none
      max_parallel_requests: $seats
general_settings: {master_key: sk-none}
litellm_settings: {num_retries: 0, request_timeout: 3600}
YAML
# The gateway's clock is ours, so what work costs there is what it costs on the Spark, divided by the speed.
python -c "from gateway.storage.profile_file import load; print(load('gemma-4-26b-bf16').scaled(1 / $speed).toml('spark'))" >"$work/spark.toml"

fairlane sim --port 8401 --speed "$speed" --enable-prefix-caching &
fairlane sim --port 8402 --speed "$speed" --enable-prefix-caching --long-prefill-token-threshold "$deploy" &
LITELLM_LOCAL_MODEL_COST_MAP=True env -u PYTHONPATH "$LITELLM" --config "$work/litellm.yaml" --host 127.0.0.1 --port 8403 >"$work/litellm.log" 2>&1 &
fairlane serve --upstream http://127.0.0.1:8402 --port 8404 --profile "$work/spark.toml" \
    --set "engine.long_prefill_threshold=$deploy" --set state_file=off --set slicing=false 2>"$work/serve.log" &
for port in 8401 8402 8403 8404; do
    until curl --silent --output /dev/null "http://127.0.0.1:$port/"; do sleep 0.5; done
done

load() { # folder, port, label, options
    local folder=$1 port=$2 label=$3
    shift 3
    fairlane load run "$workload" --base-url "http://127.0.0.1:$port/v1" --model gemma-4-26b-bf16 --api-key sk-none \
        --speed "$speed" --seed 1 --label "$label" --out "$out/runs/$folder" --json "$@" >/dev/null
    rm "$out/runs/$folder/report.html"
}
for run in 1 2 3 4 5; do
    if ((run % 2)); then order="direct litellm fair"; else order="fair litellm direct"; fi
    for who in $order; do
        case $who in
        direct) load "direct/run-$run" 8401 direct "$@" ;;
        litellm) load "litellm/run-$run" 8403 "LiteLLM, $seats in parallel" "$@" ;;
        fair) load "fair/run-$run" 8404 fair "$@" ;;
        esac
    done
done
cd "$out/runs"
fairlane load compare direct litellm fair --html ../page.html >../table.txt
