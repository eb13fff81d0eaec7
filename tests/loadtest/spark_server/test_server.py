"""The simulated Spark on a real socket, used by httpx and the OpenAI SDK."""

import json
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from gateway.scheduling.reconciler import EngineState
from loadtest.spark.engine import prefill_alone
from tests.support.simulated_spark import BF16, HTTP, chat, post_for_json, simulated_spark
from tests.support.timing import smallest
from tests.support.waiting import DEADLINE, wait_until


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


def seconds_until(url: str, running: int, waiting: int) -> float:
    def there() -> bool:
        state = EngineState.read(HTTP.get(f"{url}/metrics").content)
        return state is not None and (state.running, state.waiting) == (running, waiting)

    return wait_until(there)


# The SDK


def test_the_openai_sdk_reads_a_stream(sdk: openai.OpenAI) -> None:
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


def test_a_stream_equals_the_whole_answer(sdk: openai.OpenAI) -> None:
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


def test_content_parts_are_counted_in_bytes(sdk: openai.OpenAI) -> None:
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
def test_text_completions_are_answered(
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


def test_the_model_is_listed(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list()
    assert model.id == BF16.name
    assert model.model_dump()["max_model_len"] == 131072


# The wire


def test_events_have_vllms_form(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/chat/completions", json=chat("hi", max_tokens=2, stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = response.read().decode().split("\n\n")
    assert events[3:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events[:3])


@pytest.mark.parametrize(
    ("headers", "fields", "id"),
    [({"x-request-id": "abc"}, {"request_id": "def"}, "abc"), ({}, {"request_id": "def"}, "def")],
)
def test_an_answer_has_the_request_id(spark: str, headers: dict[str, str], fields: dict[str, str], id: str) -> None:
    assert post_for_json(spark, chat("hi", max_tokens=1, **fields), **headers)["id"] == f"chatcmpl-{id}"


def test_the_served_model_name_can_be_set() -> None:
    with simulated_spark(served_model_name='my "spark"') as url:
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == 'my "spark"'
        assert 'model_name="my \\"spark\\""' in httpx.get(f"{url}/metrics").text


def test_health_and_version_are_answered(http: httpx.Client) -> None:
    assert http.get("/health").status_code == http.get("/ping").status_code == http.post("/ping").status_code == 200
    assert http.get("/version").json()["version"].startswith("0.32.0")
    assert http.get("/load").json() == {"server_load": 0}


# Time


def test_headers_are_sent_at_once_and_tokens_on_time() -> None:
    """Never earlier than the model says (2 ms of timer resolution apart), and not much later."""
    speed = 2.0
    body = {"prompt": [1] * 4096, "max_tokens": 20, "stream": True}
    first_token = prefill_alone(BF16, 4096) / speed
    last_token = first_token + 19 * BF16.step_s(BF16.mixed_work(decoding=1, context=4106)) / speed
    with simulated_spark(speed=speed) as url, httpx.Client(base_url=url) as client:
        client.get("/health")

        def lateness() -> float:
            start = time.perf_counter()
            with client.stream("POST", "/v1/completions", json=body) as response:
                headers = time.perf_counter() - start
                arrived = [time.perf_counter() - start for line in response.iter_lines() if line]
            assert first_token - 0.002 < arrived[0]
            assert last_token - 0.002 < arrived[19]
            return max(arrived[0] / first_token, arrived[19] / last_token, headers / first_token + 0.5)

        assert smallest(lateness, enough=1.25) < 1.25


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_sequences(stream: bool) -> None:
    """One in prefill and one that waits for its seat: both leave the engine long before they would be done."""
    body = json.dumps({"prompt": [1] * 100_000, "max_tokens": 1000, "stream": stream, "n": 1}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: spark\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    request = head % len(body) + body
    with simulated_spark(BF16.with_flags(max_num_seqs=1), speed=1.0) as url:
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        with socket.create_connection(address) as runs:
            runs.sendall(request)
            seconds_until(url, 1, 0)
            with socket.create_connection(address) as waits:
                waits.sendall(request)
                seconds_until(url, 1, 1)
            seconds_until(url, 1, 0)
        seconds_until(url, 0, 0)
    assert prefill_alone(BF16, 100_000) > 3 * DEADLINE  # so neither of them was simply done


def test_a_client_that_leaves_while_sending_is_ignored(spark: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection((httpx.URL(spark).host, httpx.URL(spark).port or 0)) as asks:
        asks.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: spark\r\ncontent-length: 100\r\n\r\n{")
    assert post_for_json(spark, chat("hi", max_tokens=1))
    assert not caplog.records


def test_a_prefill_stalls_other_streams() -> None:
    """There is one engine: a stream that decodes waits for the step that prefills somebody's long prompt."""
    speed = 10.0
    decode = 39 * BF16.step_s(BF16.mixed_work(decoding=1, context=1)) / speed
    prefill = BF16.step_s(BF16.mixed_work(decoding=1, context=1, prefilled=8000, attended=8000 * 4000)) / speed
    with simulated_spark(speed=speed) as url, httpx.Client(base_url=url) as client:
        body = {"prompt": [1], "max_tokens": 40, "stream": True}

        def lateness() -> float:
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                start = time.perf_counter()
                next(lines)
                client.post("/v1/completions", json={"prompt": [1] * 8000, "max_tokens": 1})
                for _ in lines:
                    pass
                took = time.perf_counter() - start
            assert took > prefill + decode - 0.01
            return took / (prefill + decode)

        assert smallest(lateness, enough=1.25) < 1.25
