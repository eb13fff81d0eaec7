"""The gateway in front of a real vLLM, as a user runs it: a process of its own, real sockets."""

import json
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import anyio.to_thread
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.results.records import Record
from loadtest.runs.load_client import Endpoint, LoadClient
from loadtest.runs.probe import measure
from loadtest.runs.process import running
from loadtest.workloads.plan import Plan, Request
from tests.support.tiny_model import words
from tests.support.vllm import Vllm, becomes_true, metric

# What vLLM was started with (conftest.py).
ENGINE = ("--set", "engine.step_tokens=512", "--set", "engine.long_prefill_threshold=256")

fresh_seed = count(1)


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway") / "spans.jsonl"


@pytest.fixture(scope="module")
def gateway(vllm: Vllm, trace_file: Path) -> Iterator[str]:
    with running(["serve", "--upstream", vllm.url, "--trace-file", str(trace_file), *ENGINE]) as url:
        yield url


@pytest.fixture(autouse=True)
def budgets_return(vllm: Vllm, gateway: str) -> Iterator[None]:
    """After every test, whatever happened in it, nothing is held and nothing runs."""
    yield
    held = ("fairlane_seats", "fairlane_prefill_tokens", "fairlane_queue_jobs")
    assert becomes_true(lambda: not any(metric(gateway, name) for name in held))
    assert becomes_true(lambda: vllm.metric("vllm:num_requests_running") == 0)


def chat(content: str, **options: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8, **options}


def post(url: str, body: dict[str, Any], **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False, **options)


def events(response: httpx.Response) -> list[dict[str, Any] | str]:
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(each) if each.startswith("{") else each for each in data]


def test_a_stream_is_what_vllm_sends(vllm: Vllm, gateway: str) -> None:
    """Greedy, so both say the same; ids, times and the fingerprint (see the docs) are each answer's own."""
    body = chat(words(20, seed=next(fresh_seed)), stream=True, temperature=0, ignore_eos=True)
    direct, proxied = events(post(vllm.url, body)), events(post(gateway, body))

    def comparable(event: dict[str, Any] | str) -> object:
        if isinstance(event, str):
            return event
        return {key: value for key, value in event.items() if key not in ("id", "created", "system_fingerprint")}

    assert [comparable(event) for event in proxied] == [comparable(event) for event in direct]
    assert proxied[-1] == "[DONE]"


def test_a_stream_with_usage_keeps_its_usage_chunk(gateway: str) -> None:
    body = chat(words(20, seed=next(fresh_seed)), stream=True, stream_options={"include_usage": True}, ignore_eos=True)
    usage = events(post(gateway, body))[-2]
    assert isinstance(usage, dict)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8


def test_an_unstreamed_answer_is_what_vllm_sends(vllm: Vllm, gateway: str) -> None:
    body = chat(words(20, seed=next(fresh_seed)), temperature=0, ignore_eos=True)
    direct, proxied = post(vllm.url, body), post(gateway, body)
    assert proxied.status_code == direct.status_code == 200
    assert proxied.json()["choices"] == direct.json()["choices"]
    assert proxied.json()["usage"]["prompt_tokens"] == direct.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "body",
    [
        chat("hello", model="nope"),
        chat("hello", max_tokens=0),
        chat("hello", temperature=-1),
        chat("hello", stream_options={"include_usage": True}),
    ],
    ids=["unknown model", "no tokens", "temperature", "stream options without stream"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_vllms_errors_are_passed_on(vllm: Vllm, gateway: str, body: dict[str, Any], stream: bool) -> None:
    body = body | {"stream": stream} if stream and "stream_options" not in body else body
    direct, proxied = post(vllm.url, body), post(gateway, body)
    assert direct.status_code >= 400
    assert (proxied.status_code, proxied.json()) == (direct.status_code, direct.json())


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_counted_too_long_is_refused_as_vllm_refuses_it(
    vllm: Vllm, gateway: str, stream: bool
) -> None:
    """In words of the gateway's own, and without a place in the queue."""
    body = chat(words(17_000, seed=0), stream=stream)
    direct, proxied = post(vllm.url, body), post(gateway, body)
    assert proxied.status_code == direct.status_code == 400
    assert proxied.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 16384 tokens" in proxied.json()["error"]["message"]


def test_the_openai_sdk_completes_and_raises_its_own_errors(gateway: str) -> None:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="unused", max_retries=0) as client:
        assert client.models.list().data[0].id == "tiny"
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert answer.usage
        assert answer.usage.completion_tokens <= 4
        text = client.completions.create(model="tiny", prompt=["one", "two"], n=2, max_tokens=4, stream=True)
        assert {chunk.choices[0].index for chunk in text if chunk.choices} == {0, 1, 2, 3}
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt_tokens", [20, 6000], ids=["in decode", "in prefill"])
def test_a_client_that_leaves_frees_its_seat_in_vllm(
    vllm: Vllm, gateway: str, stream: bool, prompt_tokens: int
) -> None:
    body = chat(words(prompt_tokens, seed=next(fresh_seed)), stream=stream, max_tokens=4000, ignore_eos=True)

    async def leave_once_it_runs() -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post(f"{gateway}/v1/chat/completions", json=body))
            running = await anyio.to_thread.run_sync(
                lambda: becomes_true(lambda: vllm.metric("vllm:num_requests_running") == 1)
            )
            assert running
            tasks.cancel_scope.cancel()

    anyio.run(leave_once_it_runs)
    assert becomes_true(lambda: vllm.metric("vllm:num_requests_running") == 0, 5)


def test_spans_are_complete(gateway: str, trace_file: Path) -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traceparent = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    post(gateway, chat(words(300, seed=next(fresh_seed)), stream=True, ignore_eos=True), headers=traceparent)

    def spans() -> dict[str, dict[str, Any]]:
        lines = trace_file.read_text().splitlines() if trace_file.exists() else []
        ours = [span for span in map(json.loads, lines) if span["trace_id"] == trace_id]
        return {span["name"]: span for span in ours}

    assert becomes_true(lambda: len(spans()) == 5)
    found = spans()
    server = found.pop("POST /v1/chat/completions")
    assert server["parent_id"] == parent_id
    assert set(found) == {"queue", "prefill", "decode", "chat tiny"}
    assert {span["parent_id"] for span in found.values()} == {server["span_id"]}
    phases = [found[name] for name in ("queue", "prefill", "decode")]
    for before, after in pairwise(phases):
        assert before["end"] == pytest.approx(after["start"], abs=1e-6)
    assert server["attributes"]["gen_ai.usage.input_tokens"] == 313
    assert server["attributes"]["gen_ai.usage.output_tokens"] == 8
    assert all(span["duration_s"] > 0 for span in found.values())


def load(url: str, *requests: Request) -> list[Record]:
    """Send them, in vLLM's own tokens; prompts are always fresh."""

    async def run() -> list[Record]:
        texts = await measure(url, "tiny", nonce=f"fresh-{next(fresh_seed)}")
        return await LoadClient(Endpoint(url, "tiny"), texts).run(Plan(requests))

    return anyio.run(run)


def starvation() -> list[Request]:
    long = [Request(0.0, f"paster {i}", "long", 3000, 8) for i in range(4)]
    short = [Request(0.1 + 0.1 * i, f"asker {i}", "short", 200, 8) for i in range(10)]
    return long + short


@pytest.mark.timeout(240, func_only=True)
def test_long_prompts_do_not_starve_short_ones(vllm: Vllm, gateway: str) -> None:
    """The same load, straight and through the gateway, taking turns in one run.

    The second run of each is measured against the first of the other too: what is compared are sums.
    """
    load(gateway, *starvation())  # the engine's and the gateway's first requests pay for what they load
    rows: dict[str, list[Record]] = {"direct": [], "gateway": []}
    last_long: dict[str, float] = {"direct": 0.0, "gateway": 0.0}
    for name, url in [("direct", vllm.url), ("gateway", gateway)] * 3:
        records = load(url, *starvation())
        rows[name] += records
        last_long[name] += max(record.e2e for record in records if record.request.kind == "long")

    assert all(record.completed for records in rows.values() for record in records)
    direct, ours = (
        median(record.ttft for record in rows[name] if record.request.kind == "short") for name in ("direct", "gateway")
    )
    print(f"short TTFT p50: direct {direct:.2f} s, gateway {ours:.2f} s, {direct / ours:.1f} times better")
    print(f"last long prompt: {last_long['gateway'] / last_long['direct']:.2f} times as late")
    assert direct / ours >= 5
    assert last_long["gateway"] / last_long["direct"] <= 1.25


@pytest.mark.timeout(240, func_only=True)
def test_forecast_errors_are_recorded(gateway: str) -> None:
    """Long prompts wait for each other; how well the gateway knew for how long is printed, whatever it is."""

    def compared() -> dict[float, float]:
        text = httpx.get(f"{gateway}/metrics", trust_env=False).text
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        return {
            float(sample.labels["le"]): sample.value
            for sample in samples
            if sample.name == "fairlane_forecast_ratio_bucket"
        }

    before = compared()
    for _ in range(4):
        records = load(gateway, *(Request(0.05 * i, f"paster {i % 3}", "long", 3000, 8) for i in range(8)))
        assert all(record.completed for record in records)
    counts = {bound: value - before[bound] for bound, value in compared().items()}
    waited = counts[float("inf")]
    within = counts[1.25] - counts[0.75]
    print(f"first tokens that were forecast: {waited:.0f}; within 25 %: {within / waited:.0%}; {counts}")
    assert waited >= 16
    assert within > 0
