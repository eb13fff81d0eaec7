"""The official OpenAI SDK through the gateway: answers, streams and errors."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import DEADLINE
from tests.support.wire import DONE, sse, token

MODEL = "gemma-4-26b-bf16"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def in_front_of_spark(spark: str, start_gateway: StartGateway) -> RunningGateway:
    return start_gateway(spark)


@pytest.fixture
def sdk(in_front_of_spark: RunningGateway) -> Iterator[openai.OpenAI]:
    with client(in_front_of_spark) as sdk:
        yield sdk


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """For a call that blocks until the test has made the engine answer."""
    with ThreadPoolExecutor() as pool:
        yield pool


def client(gateway: RunningGateway, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", **{"api_key": "-", "max_retries": 0, **options})


# Answers


def test_chat_completion(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 5)


def test_streamed_chat_completion(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
    chunks = list(sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, stream=True))
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)  # nobody asked for it
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


def test_streamed_chat_completion_with_usage(sdk: openai.OpenAI) -> None:
    *chunks, last = list(
        sdk.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (2, 5, 7)


@pytest.mark.parametrize("prompt", ["hello", ["one", "two"], [1, 2, 3], [[1, 2], [3]]])
def test_text_completion(sdk: openai.OpenAI, prompt: Any) -> None:
    prompts = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    answer = sdk.completions.create(model=MODEL, prompt=prompt, max_tokens=4, n=2)
    assert [choice.index for choice in answer.choices] == list(range(2 * prompts))
    chunks = list(sdk.completions.create(model=MODEL, prompt=prompt, max_tokens=4, n=2, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    for choice in answer.choices:
        said = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert "".join(each.text for each in said) == choice.text


def test_listing_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]


@pytest.mark.anyio
async def test_async_client(in_front_of_spark: RunningGateway) -> None:
    url = f"{in_front_of_spark.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text
        assert text == answer.choices[0].message.content
        completion = await sdk.completions.create(model=MODEL, prompt="hello", max_tokens=5)
        parts = await sdk.completions.create(model=MODEL, prompt="hello", max_tokens=5, stream=True)
        assert "".join([part.choices[0].text async for part in parts]) == completion.choices[0].text
        assert [model.id async for model in sdk.models.list()] == [MODEL]


def test_closing_a_stream_ends_it_at_the_engine(
    engine: ScriptedEngine, gateway: RunningGateway, background: ThreadPoolExecutor
) -> None:
    with client(gateway) as sdk:
        asked = background.submit(sdk.chat.completions.create, model=MODEL, messages=HELLO, stream=True)
        call = engine.asked()
        call.start()
        call.send(token())
        stream = asked.result(DEADLINE)
        assert next(iter(stream)).choices[0].delta.content == "word"
        stream.close()
        assert call.left.wait(1.0)
    gateway.wait_ended("client_left")


# Errors


def test_an_engine_refusal_raises_bad_request(sdk: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=10**6, stream=stream)
        assert "max_model_len" in raised.value.message
        assert raised.value.param == "max_tokens"
        assert raised.value.type == "BadRequestError"


def test_an_unreadable_body_raises_bad_request(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.chat.completions.create(model=MODEL, messages=[])
    assert (raised.value.code, raised.value.param, raised.value.type) == (
        "bad_request",
        "messages",
        "invalid_request_error",
    )
    assert raised.value.request_id


def test_an_unknown_model_raises_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        sdk.chat.completions.create(model="gpt-5", messages=HELLO)


def test_an_unknown_route_raises_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        sdk.images.generate(model=MODEL, prompt="hello")
    assert raised.value.code == "not_found"


@pytest.mark.anyio
async def test_an_unknown_key_raises_authentication_error(spark: str, start_gateway: StartGateway) -> None:
    gateway = start_gateway(spark, keys=({"key": "right", "owner": "ada"},))
    # Tests have no other machine: the app is told of one, past the socket.
    transport = httpx2.ASGITransport(gateway.gateway.app, client=("203.0.113.9", 1))
    async with httpx2.AsyncClient(transport=transport) as http:
        wrong = openai.AsyncOpenAI(base_url="http://fairlane/v1", api_key="wrong", max_retries=0, http_client=http)
        with pytest.raises(openai.AuthenticationError) as raised:
            await wrong.chat.completions.create(model=MODEL, messages=HELLO)
        assert raised.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await wrong.models.list()


def test_a_queue_timeout_raises_rate_limit_error(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, queue_timeout=0.1)
    runs = gateway.ask({"messages": HELLO, "stream": True})
    call = engine.asked()
    with client(gateway) as sdk, pytest.raises(openai.RateLimitError) as raised:
        sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert raised.value.code == "queue_timeout"
    assert int(raised.value.response.headers["retry-after"]) <= 60  # the SDK gives up above
    call.stream(token(), DONE)
    runs.read()


def test_an_engine_that_is_down_raises_a_server_error(start_gateway: StartGateway) -> None:
    gateway = start_gateway("http://127.0.0.1:9")
    with client(gateway) as sdk:
        with pytest.raises(openai.InternalServerError) as raised:
            sdk.chat.completions.create(model=MODEL, messages=HELLO)
        assert (raised.value.status_code, raised.value.code) == (503, "engine_down")


def test_a_truncated_stream_raises_an_api_error(
    engine: ScriptedEngine, gateway: RunningGateway, background: ThreadPoolExecutor
) -> None:
    """The SDK gives what came, then an exception that says why; it does not end as if that were all."""
    with client(gateway) as sdk:
        asked = background.submit(sdk.chat.completions.create, model=MODEL, messages=HELLO, stream=True)
        call = engine.asked()
        call.start()
        call.send(token())
        stream = iter(asked.result(DEADLINE))
        assert next(stream).choices[0].delta.content == "word"
        call.hang_up()
        with pytest.raises(openai.APIError, match="broke off") as raised:
            next(stream)
    assert not isinstance(raised.value, openai.APIStatusError)  # the status was 200
    assert raised.value.code == "bad_upstream"


@pytest.mark.anyio
async def test_a_truncated_async_stream_raises_an_api_error(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    def break_off() -> None:
        call = engine.asked()
        call.start()
        call.send(token())
        call.hang_up()

    async with (
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as sdk,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(anyio.to_thread.run_sync, break_off)
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "word"
        with pytest.raises(openai.APIError, match="broke off"):
            await anext(stream)


def test_a_truncated_answer_raises_a_server_error(
    engine: ScriptedEngine, gateway: RunningGateway, background: ThreadPoolExecutor
) -> None:
    with client(gateway) as sdk:
        asked = background.submit(sdk.chat.completions.create, model=MODEL, messages=HELLO)
        call = engine.asked()
        call.start(200, "application/json", content_length="100")
        call.send(b"{")
        call.hang_up()
        with pytest.raises(openai.InternalServerError) as raised:
            asked.result(DEADLINE)
    assert (raised.value.status_code, raised.value.code) == (502, "bad_upstream")


def test_a_silent_engine_raises_a_server_error(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, upstream_timeout=0.1)
    with client(gateway) as sdk, pytest.raises(openai.InternalServerError) as raised:
        sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert (raised.value.status_code, raised.value.code) == (504, "upstream_timeout")


def test_an_error_event_in_a_stream_raises_an_api_error(
    engine: ScriptedEngine, gateway: RunningGateway, background: ThreadPoolExecutor
) -> None:
    with client(gateway) as sdk:
        asked = background.submit(sdk.chat.completions.create, model=MODEL, messages=HELLO, stream=True)
        engine.asked().stream(token(), sse({"error": {"message": "out of memory", "code": 500}}), DONE)
        stream = iter(asked.result(DEADLINE))
        next(stream)
        with pytest.raises(openai.APIError, match="out of memory"):
            next(stream)


def test_a_gateway_that_is_down_raises_a_connection_error(start_gateway: StartGateway) -> None:
    gateway = start_gateway("http://127.0.0.1:9")
    gateway.stop()
    with client(gateway) as sdk, pytest.raises(openai.APIConnectionError):
        sdk.chat.completions.create(model=MODEL, messages=HELLO)
