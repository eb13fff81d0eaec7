"""The simulated Spark on a real socket, spoken to by httpx and the OpenAI SDK."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from loadtest.engine import prefill_alone
from loadtest.profile import EngineProfile, load_profile
from loadtest.sim_server import create_app

BF16 = load_profile("gemma-4-26b-bf16")


@contextmanager
def simulated_spark(profile: EngineProfile = BF16, **options: Any) -> Iterator[str]:
    """A server's address. Its socket listens before the server runs, so nobody has to wait for it."""
    app = create_app(profile, **{"noise": 0.0, "speed": 50.0, **options})
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def spark() -> Iterator[str]:
    with simulated_spark() as url:
        yield url


@pytest.fixture
def http(spark: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=spark) as client:
        yield client


@pytest.fixture
def sdk(spark: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{spark}/v1", api_key="-", max_retries=0) as client:
        yield client


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def gauges(client: httpx.Client) -> tuple[int, int]:
    """Running and waiting."""
    samples = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    labels = '{engine="0",model_name="gemma-4-26b-bf16"}'
    running, waiting = (samples[f"vllm:num_requests_{state}{labels}"] for state in ("running", "waiting"))
    return int(running), int(waiting)


def seconds_until(client: httpx.Client, expected: tuple[int, int]) -> float:
    """Ask for the gauges until they are what they should be; the test's time limit ends it if they never are."""
    start = time.perf_counter()
    while gauges(client) != expected:
        pass
    return time.perf_counter() - start


# The SDK


def test_a_stream(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model=BF16.name,
        messages=[{"role": "user", "content": "x" * 320}],
        max_completion_tokens=20,
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    opening, *tokens, last = list(stream)
    assert (opening.choices[0].delta.role, opening.choices[0].delta.content) == ("assistant", "")
    assert [chunk.choices[0].finish_reason for chunk in tokens] == [None] * 19 + ["length"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in tokens)
    assert len(text) == 64  # 20 tokens of 3.2 bytes
    assert all(chunk.choices[0].delta.content for chunk in tokens)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (100, 20, 120)


def test_a_stream_says_what_the_whole_answer_says(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model=BF16.name, messages=[{"role": "user", "content": "hi"}], max_tokens=9)
    stream = sdk.chat.completions.create(
        model=BF16.name, messages=[{"role": "user", "content": "hi"}], max_tokens=9, stream=True
    )
    chunks = list(stream)
    assert whole.choices[0].message.content == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.choices[0].finish_reason == "length"
    assert whole.object == "chat.completion"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in chunks)  # no usage chunk unless asked for


def test_the_default_length(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=BF16.name, messages=[{"role": "user", "content": "hi"}])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 256


def test_a_prompt_in_parts_is_counted_in_bytes(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=BF16.name,
        messages=[
            {"role": "system", "content": "é" * 16},
            {"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "text", "text": "é"}]},
        ],
        max_tokens=1,
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 12  # ceil(38 / 3.2)


@pytest.mark.parametrize(
    ("prompt", "prompt_tokens"),
    [("abcdefgh", 3), (["abcd", "abcdefgh"], 5), ([7, 8, 9], 3), ([[7, 8, 9], [7, 8]], 5)],
)
@pytest.mark.parametrize("n", [1, 2])
def test_completions(
    sdk: openai.OpenAI, n: int, prompt: str | list[str] | list[int] | list[list[int]], prompt_tokens: int
) -> None:
    prompts = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    answer = sdk.completions.create(model=BF16.name, prompt=prompt, max_tokens=4, n=n)
    assert [choice.index for choice in answer.choices] == list(range(prompts * n))
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_tokens, 4 * prompts * n)

    chunks = list(sdk.completions.create(model=BF16.name, prompt=prompt, max_tokens=4, n=n, stream=True))
    for choice in answer.choices:
        said = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(each.text for each in said) == choice.text
        assert [each.finish_reason for each in said] == [None, None, None, "length"]


def test_models(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list()
    assert model.id == BF16.name
    assert model.model_dump()["max_model_len"] == 131072


# The wire


def test_the_events(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/chat/completions", json=chat("hi", max_tokens=2, stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = response.read().decode().split("\n\n")
    assert events[3:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events[:3])


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        ("chat/completions", b"{", 400, "Bad Request", None),
        ("chat/completions", b"{}", 400, "BadRequestError", "messages"),
        ("chat/completions", b'{"messages": []}', 400, "BadRequestError", "messages"),
        ("chat/completions", b'{"messages": "hi"}', 400, "Bad Request", None),
        ("chat/completions", json.dumps(chat("hi", max_tokens=0)).encode(), 400, "Bad Request", None),
        (
            "chat/completions",
            json.dumps(chat("hi", max_tokens=131072)).encode(),
            400,
            "BadRequestError",
            "input_tokens",
        ),
        ("chat/completions", json.dumps(chat("hi", model="gpt-5")).encode(), 404, "NotFoundError", "model"),
        ("completions", b'{"prompt": []}', 400, "BadRequestError", "prompt"),
        ("completions", b'{"prompt": ["a", 1]}', 400, "BadRequestError", "prompt"),
        ("completions", b'{"prompt": ["a", ""]}', 400, "BadRequestError", "prompt"),
        ("embeddings", b"{}", 404, "Not Found", None),
    ],
)
def test_refusals(http: httpx.Client, path: str, body: bytes, status: int, kind: str, param: str | None) -> None:
    response = http.post(f"/v1/{path}", content=body)
    error = response.json()["error"]
    assert error.pop("message")
    assert (response.status_code, error) == (status, {"type": kind, "param": param, "code": status})


def test_the_longest_prompt_is_taken(http: httpx.Client) -> None:
    with simulated_spark(max_model_len=1000, speed=1000.0) as url:
        assert httpx.post(f"{url}/v1/completions", json={"prompt": [1] * 990, "max_tokens": 10}).status_code == 200
        assert httpx.post(f"{url}/v1/completions", json={"prompt": [1] * 991, "max_tokens": 10}).status_code == 400


def test_a_name_of_its_own(http: httpx.Client) -> None:
    with simulated_spark(served_model_name='my "spark"') as url:
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == 'my "spark"'
        assert 'model_name="my \\"spark\\""' in httpx.get(f"{url}/metrics").text


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    assert http.get("/version").json()["version"].startswith("0.20.1")


# Time


def test_headers_leave_at_once_and_tokens_in_their_time() -> None:
    """Never earlier than the model says (2 ms of timer resolution apart), and not much later."""
    speed = 5.0
    body = {"prompt": [1] * 4096, "max_tokens": 20, "stream": True}
    first_token = prefill_alone(BF16, 4096) / speed
    last_token = first_token + 19 * BF16.step_s(decoding=1, context=4106) / speed
    with simulated_spark(speed=speed) as url, httpx.Client(base_url=url) as client:
        client.get("/health")
        start = time.perf_counter()
        with client.stream("POST", "/v1/completions", json=body) as response:
            headers = time.perf_counter() - start
            arrived = [time.perf_counter() - start for line in response.iter_lines() if line]
    assert headers < first_token / 2
    assert first_token - 0.002 < arrived[0] < first_token + 0.1
    assert last_token - 0.002 < arrived[19] < last_token + 0.1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_its_sequences_along(stream: bool) -> None:
    """One in prefill and one that waits for its seat: both leave the engine within 100 ms, minutes early."""
    body = json.dumps({"prompt": [1] * 100_000, "max_tokens": 1000, "stream": stream, "n": 1}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nhost: spark\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with (
        simulated_spark(BF16.with_flags(max_num_seqs=1), speed=1.0) as url,
        httpx.Client(base_url=url) as client,
    ):
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        with socket.create_connection(address) as runs:
            runs.sendall(request)
            seconds_until(client, (1, 0))
            with socket.create_connection(address) as waits:
                waits.sendall(request)
                seconds_until(client, (1, 1))
            assert seconds_until(client, (1, 0)) < 0.1
        assert seconds_until(client, (0, 0)) < 0.1


def test_one_users_prefill_is_anothers_stall() -> None:
    """There is one engine: a stream that decodes waits for the step that prefills somebody's long prompt."""
    speed = 10.0
    decode = 39 * BF16.step_s(decoding=1, context=1) / speed
    prefill = BF16.step_s(decoding=1, context=1, prefilled=8000, attended=8000 * 4000) / speed
    with simulated_spark(speed=speed) as url, httpx.Client(base_url=url) as client:
        body = {"prompt": [1], "max_tokens": 40, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            start = time.perf_counter()
            client.post("/v1/completions", json={"prompt": [1] * 8000, "max_tokens": 1})
            for _ in lines:
                pass
            took = time.perf_counter() - start
    assert decode - 0.01 < took - prefill < decode + 0.1
