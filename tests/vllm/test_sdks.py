"""What office programs are made with, at a real vLLM through the gateway: the SDKs of OpenAI and of Anthropic, litellm.

Each lives its usual life: it streams, calls tools, wants answers in a shape, is refused, is told to come again and
does, gives up, hangs up.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import anthropic
import anyio
import httpx
import httpx2
import openai
import pydantic
import pytest

from loadtest.runs.process import running
from tests.support.tiny_model import words
from tests.support.vllm import MODEL, SCRIPTS, Vllm, becomes_true

fresh_seed = count(100)


class Answer(pydantic.BaseModel):
    sure: bool
    word: Literal["yes", "no"]


SCHEMA = {**Answer.model_json_schema(), "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "say", "parameters": SCHEMA, "strict": True}}
SAY: Any = {"type": "function", "function": {"name": "say"}}
ANTHROPICS_TOOL: Any = {"name": "say", "input_schema": SCHEMA, "strict": True}
RESPONSES_TOOL: Any = {"type": "function", "name": "say", "parameters": SCHEMA, "strict": True}
WHY: Any = [{"role": "user", "content": "Why?"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def gateway(vllm: Vllm) -> Iterator[str]:
    with running(["serve", "--upstream", vllm.url]) as url:
        yield url


@pytest.fixture(scope="module")
def pooling_gateway(pooler: Vllm) -> Iterator[str]:
    with running(["serve", "--upstream", pooler.url]) as url:
        yield url


@pytest.fixture(scope="module")
def narrow_gateway(vllm: Vllm) -> Iterator[str]:
    """One at a time, and nobody waits for long."""
    with running(
        ["serve", "--upstream", vllm.url, "--set", "engine.max_num_seqs=1", "--set", "queue_timeout=0.3"]
    ) as url:
        yield url


@pytest.fixture(autouse=True)
def nothing_runs_on(vllm: Vllm) -> Iterator[None]:
    """Whoever hung up or gave up has left nothing behind."""
    yield
    assert becomes_true(lambda: vllm.metric("vllm:num_requests_running") == 0)


@pytest.fixture
def openai_sdk(gateway: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="-", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def anthropic_sdk(gateway: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway, auth_token="-", max_retries=0) as sdk:
        yield sdk


class Attempts:
    """An HTTP client that records when each answer came, and ends the request that holds the seat at the first 429."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, int, str | None]] = []
        self.in_the_way: httpx.Response | None = None
        self.http = httpx2.Client(event_hooks={"response": [self._answered]}, timeout=60)

    def _answered(self, response: httpx2.Response) -> None:
        self.answers.append((perf_counter(), response.status_code, response.headers.get("retry-after")))
        if response.status_code == 429 and self.in_the_way:
            self.in_the_way.close()

    def check(self) -> None:
        """It was refused, waited at least as long as it was told, and was served."""
        assert len(self.answers) > 1, self.answers
        (first, refused, told), *_, (last, served, _) = self.answers
        assert (refused, served) == (429, 200)
        assert told is not None
        assert int(told) <= last - first < int(told) + 30


@contextmanager
def somebody_in_the_way(url: str, attempts: Attempts) -> Iterator[None]:
    body = {"model": MODEL, "messages": WHY, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as response:
        chunks = response.iter_raw()  # which closes the response when nobody has it any more
        next(chunks)
        attempts.in_the_way = response
        yield


# OpenAI's


def test_openai_chats(openai_sdk: openai.OpenAI) -> None:
    chat: Any = {"model": MODEL, "messages": WHY, "max_tokens": 8, "temperature": 0}
    whole = openai_sdk.chat.completions.create(**chat)
    chunks = list(openai_sdk.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8
    several = openai_sdk.chat.completions.create(**chat | {"temperature": 1}, n=3, logprobs=True, top_logprobs=2)
    assert len(several.choices) == 3
    assert several.choices[0].logprobs


def test_openai_calls_tools(openai_sdk: openai.OpenAI) -> None:
    chat: Any = {"model": MODEL, "messages": WHY, "max_tokens": 600, "tools": [TOOL], "tool_choice": SAY}
    whole = openai_sdk.chat.completions.create(**chat)
    (call,) = whole.choices[0].message.tool_calls
    Answer.model_validate_json(call.function.arguments)
    arguments = ""
    for chunk in openai_sdk.chat.completions.create(**chat, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            arguments += part.function.arguments or ""
    Answer.model_validate_json(arguments)


def test_openai_gets_structured_output(openai_sdk: openai.OpenAI) -> None:
    answer = openai_sdk.chat.completions.parse(model=MODEL, messages=WHY, max_tokens=60, response_format=Answer)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    with openai_sdk.chat.completions.stream(model=MODEL, messages=WHY, max_tokens=60, response_format=Answer) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Answer)
    response = openai_sdk.responses.parse(model=MODEL, input="Why?", max_output_tokens=60, text_format=Answer)
    assert isinstance(response.output_parsed, Answer)


def test_openai_uses_the_responses_api(openai_sdk: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "Why?", "max_output_tokens": 8, "temperature": 0}
    whole = openai_sdk.responses.create(**asked)
    with openai_sdk.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == whole.output_text
    assert openai_sdk.responses.retrieve(whole.id).output_text == whole.output_text
    asked |= {"max_output_tokens": 600, "temperature": 1}
    named: Any = {"type": "function", "name": "say"}
    called: Any = openai_sdk.responses.create(**asked, tools=[RESPONSES_TOOL], tool_choice=named)
    Answer.model_validate_json(called.output[-1].arguments)
    with pytest.raises(openai.BadRequestError) as raised:
        openai_sdk.responses.create(**asked, background=True)
    assert raised.value.param == "background"


def test_openai_completes_and_lists(openai_sdk: openai.OpenAI) -> None:
    assert len(openai_sdk.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=3).choices) == 4
    assert [model.id for model in openai_sdk.models.list()] == [MODEL]


def test_openai_embeds(pooling_gateway: str) -> None:
    with openai.OpenAI(base_url=f"{pooling_gateway}/v1", api_key="-", max_retries=0) as sdk:
        answer = sdk.embeddings.create(model=MODEL, input=["Why?", "Who?"])  # asks for base64
        assert [len(each.embedding) for each in answer.data] == [256, 256]
        assert answer.usage.prompt_tokens


def test_openai_is_refused(openai_sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        openai_sdk.chat.completions.create(model="nobody", messages=WHY)
    with pytest.raises(openai.BadRequestError):
        openai_sdk.chat.completions.create(model=MODEL, messages=WHY, temperature=9)
    with pytest.raises(openai.BadRequestError):
        openai_sdk.chat.completions.create(model=MODEL, messages=WHY, temperature=9, stream=True)
    with pytest.raises(openai.NotFoundError):
        openai_sdk.images.generate(prompt="a")


def test_openai_retries_after_429(narrow_gateway: str) -> None:
    attempts = Attempts()
    with (
        openai.OpenAI(base_url=f"{narrow_gateway}/v1", api_key="-", max_retries=5, http_client=attempts.http) as sdk,
        somebody_in_the_way(narrow_gateway, attempts),
    ):
        assert sdk.chat.completions.create(model=MODEL, messages=WHY, max_tokens=3).choices
    attempts.check()


def test_openai_gives_up(openai_sdk: openai.OpenAI) -> None:
    """And what it asked for is over at the engine: the fixture looks."""
    with pytest.raises(openai.APITimeoutError):
        openai_sdk.with_options(timeout=0.5).chat.completions.create(
            model=MODEL, messages=WHY, max_tokens=2000, extra_body={"ignore_eos": True}
        )


@pytest.mark.anyio
async def test_openai_hangs_up(gateway: str, vllm: Vllm) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="-", max_retries=0) as sdk:
        with anyio.move_on_after(0.5) as scope:
            await sdk.chat.completions.create(
                model=MODEL, messages=WHY, max_tokens=2000, extra_body={"ignore_eos": True}
            )
        assert scope.cancelled_caught
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=WHY, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()


# Anthropic's


def test_anthropic_chats(anthropic_sdk: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "messages": WHY, "max_tokens": 8, "extra_body": {"temperature": 0}}
    whole = anthropic_sdk.messages.create(**asked)
    assert whole.usage.output_tokens == 8
    with anthropic_sdk.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert final.stop_reason == whole.stop_reason == "max_tokens"
    assert anthropic_sdk.messages.count_tokens(model=MODEL, messages=WHY).input_tokens == whole.usage.input_tokens


def test_anthropic_calls_tools(anthropic_sdk: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "messages": WHY, "max_tokens": 600}
    asked |= {"tools": [ANTHROPICS_TOOL], "tool_choice": {"type": "tool", "name": "say"}}
    Answer.model_validate(anthropic_sdk.messages.create(**asked).content[-1].input)
    with anthropic_sdk.messages.stream(**asked) as stream:
        final: Any = stream.get_final_message()
    Answer.model_validate(final.content[-1].input)


def test_anthropic_is_refused(anthropic_sdk: anthropic.Anthropic, gateway: str) -> None:
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        anthropic_sdk.messages.create(model="nobody", messages=WHY, max_tokens=3)
    with pytest.raises(anthropic.BadRequestError):
        anthropic_sdk.messages.create(model=MODEL, messages=WHY, max_tokens=20_000)
    with pytest.raises(anthropic.BadRequestError, match="length"):
        anthropic_sdk.messages.create(model=MODEL, messages=[], max_tokens=3)
    with pytest.raises(anthropic.NotFoundError):
        anthropic_sdk.messages.batches.list()


def test_anthropic_retries_after_a_queue_timeout(narrow_gateway: str) -> None:
    attempts = Attempts()
    with (
        anthropic.Anthropic(base_url=narrow_gateway, auth_token="-", max_retries=5, http_client=attempts.http) as sdk,
        somebody_in_the_way(narrow_gateway, attempts),
    ):
        assert sdk.messages.create(model=MODEL, messages=WHY, max_tokens=3).content
    attempts.check()


def test_anthropic_gives_up(anthropic_sdk: anthropic.Anthropic) -> None:
    long: Any = [{"role": "user", "content": words(15_000, next(fresh_seed))}]
    with pytest.raises(anthropic.APITimeoutError):
        anthropic_sdk.with_options(timeout=0.5).messages.create(model=MODEL, messages=long, max_tokens=1000)


def test_anthropic_hangs_up(anthropic_sdk: anthropic.Anthropic) -> None:
    with anthropic_sdk.messages.stream(model=MODEL, messages=WHY, max_tokens=2000) as stream:
        for _ in stream:
            break


# litellm, which is large: it lives where vLLM does, and says what came of it.


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = Path(os.environ.get("FAIRLANE_LITELLM_PYTHON") or os.environ["FAIRLANE_VLLM_PYTHON"])
    if subprocess.run([python, "-c", "import litellm"], env=alone(), capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no litellm: tests/vllm/install.sh installs it")
    return python


def alone() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return environment | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*", "no_proxy": "*"}


@pytest.mark.timeout(240, func_only=True)
def test_litellm(litellm: Path, gateway: str, pooling_gateway: str, tmp_path: Path) -> None:
    command: list[str | Path] = [
        litellm,
        SCRIPTS / "litellm_life.py",
        f"{gateway}/v1",
        f"{pooling_gateway}/v1",
        json.dumps(TOOL),
    ]
    done = subprocess.run(command, env=alone(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["streamed"] == told["whole"]
    assert told["usage"] == 8
    Answer.model_validate_json(told["tool"])
    Answer.model_validate_json(told["shape"])
    assert told["embeddings"] == [256, 256]
    assert told["anthropics"]
    assert told["responds"] == "incomplete"
    assert told["errors"] == ["NotFoundError", "BadRequestError", "Timeout"]


@pytest.mark.timeout(240, func_only=True)
def test_litellm_retries_after_429(litellm: Path, narrow_gateway: str, tmp_path: Path) -> None:
    """Told by the gateway's own metrics, for nobody can look into another process."""

    def refused() -> float:
        text = httpx.get(f"{narrow_gateway}/metrics", trust_env=False).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if 'outcome="queue_timeout"' in line)

    before = refused()
    command: list[str | Path] = [litellm, SCRIPTS / "litellm_life.py", f"{narrow_gateway}/v1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=alone(), cwd=tmp_path, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":  # it says this and that while it loads
            assert process.poll() is None
        with somebody_in_the_way(narrow_gateway, Attempts()):
            process.stdin.write("go\n")
            process.stdin.flush()
            assert becomes_true(lambda: refused() > before)
        out, _ = process.communicate(timeout=100)
    assert json.loads(out.splitlines()[-1]) == {"came again": "length"}
