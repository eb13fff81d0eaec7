"""What `vllm bench serve` would send, as JSON: [arrival, prompt tokens, answer tokens] of each request, run by run.

Run it with the Python of vLLM's own environment, the runs in JSON on standard input. The dataset and the arrivals are
vLLM's code; the clock is ours, so that nothing is waited for, and so is the tokenizer, which has a token a word for the
random dataset and one for four bytes for a text of people.
"""

import asyncio
import importlib
import json
import random
import sys
from types import SimpleNamespace
from typing import Any

random_of_numpy = importlib.import_module("numpy").random
serve: Any = importlib.import_module("vllm.benchmarks.serve")
datasets = importlib.import_module("vllm.benchmarks.datasets")


class Clock:
    now = 0.0

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Tokenizer:
    vocab_size = 4096
    all_special_ids: tuple[int, ...] = ()

    def num_special_tokens_to_add(self) -> int:
        return 0

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [int(word) for word in text.split()]

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=range(round(len(text.encode()) / 4)))


async def trace(run: dict[str, Any]) -> list[tuple[float, int, int]]:
    random.seed(run["seed"])
    random_of_numpy.seed(run["seed"])
    if "path" in run:
        requests = datasets.ShareGPTDataset(random_seed=run["seed"], dataset_path=run["path"]).sample(
            tokenizer=Tokenizer(), num_requests=run["count"]
        )
    else:
        requests = datasets.RandomDataset(random_seed=run["seed"]).sample(
            tokenizer=Tokenizer(),
            num_requests=run["count"],
            range_ratio=0.9,
            input_len=run["prompt_tokens"],
            output_len=run["output_tokens"],
        )
    clock = serve.time = Clock()
    serve.asyncio = SimpleNamespace(sleep=clock.sleep)
    return [
        (clock.now, request.prompt_len, request.expected_output_len)
        async for request, _ in serve.get_request(requests, run["rate"], run["burstiness"])
    ]


if __name__ == "__main__":
    runs = json.load(sys.stdin)
    json.dump([asyncio.run(trace(run)) for run in runs], sys.stdout)
