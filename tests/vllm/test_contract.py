"""The same call straight at vLLM and through the gateway: the same answer, but for what docs/api.md says.

Compared are status, headers and JSON, whole, less what is another each time (ids, instants, times); of a stream, its
events in their order and the text that they add up to. Sampling is greedy, so that texts can be compared, too.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import httpx
import pytest

from loadtest.runs.process import running
from tests.support.tiny_model import words
from tests.support.vllm import MODEL, Vllm

JSON = {"content-type": "application/json"}

# What the gateway adds, and what is of the connection and not of the answer.
OWN = {"x-request-id", "x-fairlane-queue-ms", "x-fairlane-cost-s"}
CONNECTION = {"date", "server", "content-length", "transfer-encoding"}

# Another value each time. Cached tokens are, for the first of two calls is the one that fills the cache.
CHANGING = {
    *("id", "item_id", "call_id", "created", "created_at", "completed_at", "metrics", "request_id", "signature"),
    *("cached_tokens", "cache_write_tokens", "created_cache_tokens", "cache_read_input_tokens"),
    "cache_creation_input_tokens",
}


class Call(NamedTuple):
    name: str
    path: str
    body: Any = None
    method: str = "POST"
    headers: dict[str, str] = JSON


@pytest.fixture(scope="module")
def gateway(vllm: Vllm) -> Iterator[str]:
    with running(["serve", "--upstream", vllm.url]) as url:
        yield url


@pytest.fixture(scope="module")
def pooling_gateway(pooler: Vllm) -> Iterator[str]:
    with running(["serve", "--upstream", pooler.url]) as url:
        yield url


def ask(url: str, call: Call) -> httpx.Response:
    content = call.body if isinstance(call.body, bytes | None) else json.dumps(call.body).encode()
    return httpx.request(
        call.method, f"{url}{call.path}", content=content, headers=call.headers, timeout=60, trust_env=False
    )


def headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in CONNECTION}


def steady(value: Any) -> Any:
    """Without what is another each time; of a number that has been computed, that it is one."""
    match value:
        case dict():
            return {name: "changes" if name in CHANGING else steady(each) for name, each in value.items()}
        case list():
            return [steady(each) for each in value]
        case float():
            return "computed"
    return value


def shape(value: Any) -> Any:
    """Names and types. A list is what kinds of things are in it, for vLLM sends two tokens at once when it can."""
    match value:
        case dict():
            return {name: shape(each) for name, each in value.items() if name not in CHANGING}
        case list():
            return sorted({json.dumps(shape(each), sort_keys=True) for each in value})
    return type(value).__name__


def events(text: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for event in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.splitlines())
        if lines:
            data = lines["data"]
            found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def texts(found: list[tuple[str, Any]]) -> dict[int, str]:
    """What the events add up to, for each choice: text, and what tools are called with."""
    told: dict[int, str] = {}
    for data in (data for _, data in found if isinstance(data, dict)):
        for choice in data.get("choices", [data]):
            delta = choice.get("delta", choice)
            if isinstance(delta, dict):
                calls = [call["function"].get("arguments") for call in delta.get("tool_calls", ())]
                delta = [delta.get(name) for name in ("content", "text", "partial_json")] + calls
            told.setdefault(choice.get("index", 0), "")
            told[choice.get("index", 0)] += "".join(each for each in delta if isinstance(each, str))
    return told


def order(found: list[tuple[str, Any]]) -> dict[int, list[Any]]:
    """Of each choice, for they go side by side, in any order. What is of none is of the first."""
    kinds: dict[int, list[Any]] = {}
    for name, data in found:
        choices = data.get("choices") if isinstance(data, dict) else None
        index = choices[0]["index"] if choices else 0
        kinds.setdefault(index, []).append((name, shape(data), ending(data)))
    return {index: [kind for kind, _ in groupby(each)] for index, each in kinds.items()}


def ending(data: Any) -> Any:
    """Why it ended, where it did."""
    if not isinstance(data, dict):
        return None
    delta = data.get("delta")
    stopped = delta.get("stop_reason") if isinstance(delta, dict) else None
    return stopped or [choice.get("finish_reason") for choice in data.get("choices", ())]


def through(gateway: str, call: Call, straight: httpx.Response) -> httpx.Response:
    """vLLM joins the chunks of a stream when the machine is busy, as it likes: one that was joined otherwise than the
    other is asked for again."""
    for _ in range(3):
        response = ask(gateway, call)
        if not call.body or not call.body.get("stream") or len(events(response.text)) == len(events(straight.text)):
            break
    return response


def check(straight: httpx.Response, through: httpx.Response) -> None:
    assert through.status_code == straight.status_code, through.text
    passed = headers(through)
    assert {name: passed.pop(name) for name in list(passed) if name not in OWN} == headers(straight)
    assert set(passed) <= OWN
    kind = straight.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        expected, came = events(straight.text), events(through.text)
        assert order(came) == order(expected)
        assert texts(came) == texts(expected)
    elif kind == "application/json":
        assert steady(through.json()) == steady(straight.json())
    else:
        assert through.content == straight.content


SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
NAMED = {"type": "function", "function": {"name": "f"}}
SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": words(20, 1)}]
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USAGE = {"include_usage": True}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def chat(name: str, **fields: Any) -> Call:
    body = {"model": MODEL, "messages": SAID, "max_tokens": 12, "temperature": 0, "seed": 1, **fields}
    return Call(f"chat: {name}", "/v1/chat/completions", body)


def text(name: str, prompt: Any, **fields: Any) -> Call:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0, "seed": 1, **fields}
    return Call(f"completions: {name}", "/v1/completions", body)


def response(name: str, given: Any = "Why?", **fields: Any) -> Call:
    body = {"model": MODEL, "input": given, "max_output_tokens": 12, "temperature": 0, **fields}
    return Call(f"responses: {name}", "/v1/responses", body)


def message(name: str, **fields: Any) -> Call:
    body = {"model": MODEL, "messages": SAID[1:], "max_tokens": 12, "temperature": 0, **fields}
    return Call(f"messages: {name}", "/v1/messages", body)


def pool(path: str, name: str, **fields: Any) -> Call:
    return Call(f"{path}: {name}", path, {"model": MODEL, **fields})


ANTHROPICS_TOOL = {"name": "f", "input_schema": SCHEMA, "strict": True}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "done"}]}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": True}}
RESPONSES_TOOL = {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}

GOOD = [
    chat("plain"),
    chat("several answers", n=3, temperature=1),
    chat("log probabilities", logprobs=True, top_logprobs=2),
    chat("a JSON schema", response_format=FORMAT),
    chat("a tool that is required", tools=[TOOL], tool_choice="required", max_tokens=40),
    chat("a tool that is named", tools=[TOOL], tool_choice=NAMED, max_tokens=600, temperature=1),
    chat("a tool that may be used", tools=[TOOL]),
    chat("a tool that was used", messages=[*SAID, {"role": "assistant", "tool_calls": [CALLED]}], tools=[TOOL]),
    chat("reasoning in the history", messages=[*SAID, {"role": "assistant", "reasoning": "hm", "content": "a"}, *SAID]),
    chat("parts", messages=[{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]),
    chat("a role that nobody knows", messages=[{"role": "nobody", "content": "a"}]),
    chat("stop", stop=["a"]),
    chat("token ids", return_token_ids=True),
    chat("log probabilities of the prompt", prompt_logprobs=1),
    chat("the newer limit", max_tokens=None, max_completion_tokens=3),
    text("one", "Why?"),
    text("several", ["Why?", "Who?"]),
    text("ids", [5, 6, 7]),
    text("lists of ids, several answers", [[5, 6], [7]], n=2, temperature=1),
    text("echo", "Why?", echo=True, logprobs=1),
    response("plain"),
    response(
        "items", [{"role": "user", "content": [{"type": "input_text", "text": "Why?"}]}], instructions="Be brief."
    ),
    response("a JSON schema", text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}),
    response("a tool", tools=[RESPONSES_TOOL], tool_choice="required", max_output_tokens=200),
    message("plain"),
    message("system", system=[{"type": "text", "text": "Be brief."}], stop_sequences=["a"]),
    message("a tool", tools=[ANTHROPICS_TOOL], tool_choice={"type": "any"}, max_tokens=200),
    message(
        "a tool that was used",
        messages=[*SAID[1:], {"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}],
        tools=[ANTHROPICS_TOOL],
    ),
    Call("models", "/v1/models", method="GET"),
    Call("version", "/version", method="GET"),
    Call("tokenize: a text", "/tokenize", {"model": MODEL, "prompt": "Why?"}),
    Call("tokenize: a chat", "/tokenize", {"model": MODEL, "messages": SAID}),
    Call("detokenize", "/detokenize", {"model": MODEL, "tokens": [5, 6, 7]}),
    Call("count_tokens", "/v1/messages/count_tokens", {"model": MODEL, "messages": SAID[1:]}),
]

# Streamed in addition: each of the good ones that can be, and these.
STREAMED = [
    call._replace(name=f"{call.name}, streamed", body=call.body | {"stream": True, **asks})
    for call in GOOD
    if call.path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
    for asks in [{"stream_options": USAGE} if "completions" in call.path else {}]
    if not {"echo", "prompt_logprobs"} & set(call.body)
] + [
    chat("usage with each chunk", stream=True, stream_options={**USAGE, "continuous_usage_stats": True}),
]

BAD = [
    chat("an unknown model", model="nobody"),
    chat("a temperature that is none", temperature=9),
    chat("a temperature that is none, streamed", temperature=9, stream=True),
    chat("no room for the answer", max_tokens=20_000),
    chat("an image for a model that sees nothing", messages=[{"role": "user", "content": [IMAGE]}]),
    chat("a format that is none", response_format={"type": "nothing"}),
    chat("a kind of content that is none", messages=[{"role": "user", "content": [{"type": "nothing"}]}]),
    text("an unknown model", "Why?", model="nobody"),
    text("ids that are none", [99_999_999]),
    text("too many log probabilities", "Why?", logprobs=9999),
    response("an unknown model", model="nobody"),
    response("a response that is not there", previous_response_id="resp_0123456789abcdef"),
    response("a temperature that is none", temperature=9),
    message("an unknown model", model="nobody"),
    message("an unknown model, streamed", model="nobody", stream=True),
    message("no room", max_tokens=20_000),
    Call("a content type that is none", "/v1/chat/completions", chat("").body, headers={"content-type": "text/plain"}),
    Call("a response that is not there", "/v1/responses/resp_0123456789abcdef", method="GET"),
    Call("a response that cannot be cancelled", "/v1/responses/resp_0123456789abcdef/cancel"),
    Call("tokenize: an unknown model", "/tokenize", {"model": "nobody", "prompt": "Why?"}),
    Call("tokenize: nothing", "/tokenize", {}),
    Call("tokenize: what is no JSON", "/tokenize", b"{"),
    Call("count_tokens: an unknown model", "/v1/messages/count_tokens", {"model": "nobody", "messages": SAID[1:]}),
    Call("a model that does not listen", "/v1/audio/transcriptions", b"--x--", headers={"content-type": "text/plain"}),
    pool("/v1/embeddings", "of a model that does not pool", input="Why?"),
]

POOLED = [
    pool("/v1/embeddings", "one", input="Why?"),
    pool("/v1/embeddings", "several", input=["Why?", "Who?"]),
    pool("/v1/embeddings", "ids", input=[[5, 6], [7]]),
    pool("/v1/embeddings", "a chat", messages=SAID),
    pool("/v1/embeddings", "base64", input="Why?", encoding_format="base64"),
    pool("/v1/embeddings", "bytes", input="Why?", encoding_format="bytes_only"),
    pool("/v1/embeddings", "too long", input=words(5000, 3)),
    pool("/v1/embeddings", "cut", input=words(5000, 3), truncate_prompt_tokens=10),
    pool("/v1/embeddings", "an unknown model", input="Why?", model="nobody"),
    pool("/v1/embeddings", "nothing"),
    pool("/score", "pairs", queries="Why?", documents=["Because.", "So."]),
    pool("/v1/score", "the older names", text_1=["Why?", "Who?"], text_2=["Because.", "So."]),
    pool("/rerank", "two", query="Why?", documents=["Because.", "So."]),
    pool("/v1/rerank", "the best", query="Why?", documents=["Because.", "So."], top_n=1),
    pool("/v2/rerank", "nothing"),
    pool("/pooling", "a vector", input="Why?", task="embed"),
    pool("/pooling", "a vector a token", input="Why?", task="token_embed"),
    pool("/pooling", "a task that is none", input="Why?", task="nothing"),
    pool("/classify", "of a model that has no classes", input="Why?"),
    Call("chat with a model that does not answer", "/v1/chat/completions", chat("").body),
]


@pytest.mark.parametrize("call", [*GOOD, *STREAMED], ids=lambda call: call.name)
def test_answers_are_the_same_through_the_gateway(vllm: Vllm, gateway: str, call: Call) -> None:
    straight = ask(vllm.url, call)
    assert straight.is_success, straight.text
    check(straight, through(gateway, call, straight))


@pytest.mark.parametrize("call", BAD, ids=lambda call: call.name)
def test_refusals_are_the_same_through_the_gateway(vllm: Vllm, gateway: str, call: Call) -> None:
    straight = ask(vllm.url, call)
    assert straight.is_client_error, straight.text
    check(straight, ask(gateway, call))


@pytest.mark.parametrize("call", POOLED, ids=lambda call: call.name)
def test_pooling_answers_are_the_same_through_the_gateway(pooler: Vllm, pooling_gateway: str, call: Call) -> None:
    check(ask(pooler.url, call), ask(pooling_gateway, call))


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_response_can_be_retrieved(vllm: Vllm, gateway: str, stream: bool) -> None:
    given = ask(gateway, response("stored", store=True)).json()
    call = Call("stored", f"/v1/responses/{given['id']}", method="GET")
    straight, through = ask(vllm.url, call), ask(gateway, call)
    check(straight, through)
    assert through.json()["output"] == given["output"]


# What differs. Each of these is in docs/api.md, with its reason.


@pytest.mark.parametrize("call", [chat("without usage", stream=True), text("without usage", "a", stream=True)])
def test_removing_unrequested_usage_also_removes_the_fingerprint(vllm: Vllm, gateway: str, call: Call) -> None:
    expected, came = events(ask(vllm.url, call).text), events(ask(gateway, call).text)
    for _, data in expected:
        if isinstance(data, dict):
            data.pop("system_fingerprint", None)
    assert order(came) == order(expected)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"{}", b'{"messages": "a", "prompt": {}, "input": 5}'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_unreadable_bodies_are_refused_with_the_same_status(vllm: Vllm, gateway: str, path: str, body: bytes) -> None:
    straight, through = (ask(url, Call("", path, body)) for url in (vllm.url, gateway))
    assert (straight.status_code, through.status_code) == (400, 400)
    if path == "/v1/messages":  # vLLM itself answers in OpenAI's words here
        assert set(through.json()) == {"type", "error"}
    else:
        assert set(through.json()["error"]) == set(straight.json()["error"])


def test_a_trailing_slash_is_redirected_to_the_gateway(vllm: Vllm, gateway: str) -> None:
    for url in (vllm.url, gateway):
        answer = ask(url, Call("", "/v1/models/", method="GET"))
        assert (answer.status_code, answer.headers["location"]) == (307, f"{url}/v1/models")


def test_a_prompt_counted_as_too_long_is_refused_before_queueing(vllm: Vllm, gateway: str) -> None:
    call = chat("", messages=[{"role": "user", "content": words(17_000, 2)}])
    straight, through = ask(vllm.url, call), ask(gateway, call)
    assert (straight.status_code, through.status_code) == (400, 400)
    assert set(through.json()["error"]) == set(straight.json()["error"])
    assert through.json()["error"]["code"] == "context_length_exceeded"


def test_background_responses_are_refused(vllm: Vllm, gateway: str) -> None:
    call = response("background", background=True)
    started = ask(vllm.url, call)
    assert started.status_code == 200
    ask(vllm.url, Call("", f"/v1/responses/{started.json()['id']}/cancel"))
    refused = ask(gateway, call)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


def test_routes_outside_the_allow_list_answer_404(vllm: Vllm, gateway: str) -> None:
    for path in ("/load", "/openapi.json", "/ping"):
        assert ask(vllm.url, Call("", path, method="GET")).status_code == 200
        assert ask(gateway, Call("", path, method="GET")).status_code == 404


def test_head_is_answered_though_vllm_does_not(vllm: Vllm, gateway: str) -> None:
    call = Call("", "/v1/models", method="HEAD")
    assert (ask(vllm.url, call).status_code, ask(gateway, call).status_code) == (405, 200)
