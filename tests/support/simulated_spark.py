"""A simulated Spark on a real socket, and requests to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from loadtest.spark.profile import KINDS, EngineProfile
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from tests.support.servers import serve
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, TEXT

BF16 = load_profile("gemma-4-26b-bf16")

# Every step takes one second, whatever it contains, and there is no other latency.
FLAT = EngineProfile(
    name="flat",
    tf_s=1.0,
    te_s=0.0,
    td_s=0.0,
    tt_s_per_token=0.0,
    ta_s_per_token2=0.0,
    tk_s_per_token=0.0,
    to_s=0.0,
    q=0.0,
    d=dict.fromkeys(KINDS, 1.0),
    max_num_batched_tokens=1000,
    max_num_seqs=10,
    long_prefill_token_threshold=0,
    async_scheduling=True,
)

# Shared, since making a client costs more than most requests here. It keeps no connection open.
HTTP = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0), timeout=30)


@contextmanager
def simulated_spark(profile: EngineProfile = BF16, **options: Any) -> Iterator[str]:
    """A server's address."""
    with serve(create_app(profile, ServerOptions(**{"noise": 0.0, "speed": 50.0, **options}))) as url:
        yield url


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def post(url: str, path: str, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTP.post(f"{url}{path}", content=content, headers={"content-type": "application/json", **headers})


def post_for_json(url: str, body: object, path: str = CHAT, **headers: str) -> dict[str, Any]:
    return dict(post(url, path, body, **headers).raise_for_status().json())


@contextmanager
def request_in_engine(url: str, prompt_tokens: int = 1, tokens: int = 10_000, prompts: int = 1) -> Iterator[None]:
    """Keep a request in the engine, running or waiting, until the block is left."""
    body = {"prompt": [[1] * prompt_tokens] * prompts, "max_tokens": tokens, "stream": True}
    before = in_engine(url)
    with HTTP.stream("POST", f"{url}{TEXT}", json=body):
        wait_until(lambda: in_engine(url) == before + prompts)
        yield


def in_engine(url: str) -> float:
    return metric(url, "num_requests_running") + metric(url, "num_requests_waiting")


def stream_chunks(url: str, body: dict[str, Any], path: str = CHAT) -> list[dict[str, Any]]:
    """All chunks of a streamed answer."""
    *events, done, rest = post(url, path, {**body, "stream": True}).raise_for_status().text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def metric(url: str, name: str, **labels: str) -> float:
    """A sample of /metrics. A missing name is an error, not 0."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = HTTP.get(f"{url}/metrics").raise_for_status().text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"vllm:{name}{{") and all(each in line for each in wanted)]
    return float(line.rpartition(" ")[2])
