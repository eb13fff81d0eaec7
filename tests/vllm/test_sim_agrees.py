"""The simulated vLLM and a real one, asked the same: the same statuses, errors and keys, and events of the same shape.

What they say is each one's own, and so are times and counts.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from tests.support.servers import serve
from tests.support.tiny_model import POSITIONS
from tests.support.vllm import MODEL, Vllm
from tests.support.vllm_requests import BROKEN, CHAT, COMPLETION, JSON, TIMEOUT, USAGE, chat, completion

CONTINUOUS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
LONG = " baba" * (POSITIONS + 100)

GENERATE: dict[str, dict[str, Any]] = {
    "one piece": {},
    "two choices": {"n": 2},
    "one token": {"max_tokens": 1},
    "token ids": {"return_token_ids": True},
    "a salt and a priority": {"cache_salt": "abc", "priority": 3},
    "a stream": {"stream": True},
    "a stream of two choices": {"stream": True, "n": 2},
    "a stream with usage": USAGE,
    "a stream of one token": USAGE | {"max_tokens": 1},
    "a stream of two choices with usage": USAGE | {"n": 2},
    "a stream with usage throughout": CONTINUOUS,
    "a stream of token ids": USAGE | {"return_token_ids": True},
    "an unknown model": {"model": "nope"},
    "an unknown model in a stream": {"model": "nope", "stream": True},
    "no tokens": {"max_tokens": 0},
    "less than no tokens": {"max_tokens": -1},
    "max_tokens a word": {"max_tokens": "x"},
    "max_tokens a fraction": {"max_tokens": 1.5},
    "max_tokens over the context": {"max_tokens": POSITIONS + 1},
    "min_tokens over max_tokens": {"min_tokens": 4},
    "min_tokens less than none": {"min_tokens": -1},
    "n zero": {"n": 0},
    "an empty salt": {"cache_salt": ""},
    "a bad salt": {"cache_salt": "a/b"},
    "a long salt": {"cache_salt": "a" * 129},
    "a priority that is none": {"priority": "x"},
    "a priority too large": {"priority": 1 << 63},
    "stream_options without a stream": {"stream_options": {"include_usage": False}},
    "stream_options that are none": {"stream": True, "stream_options": 5},
    "ignore_eos that is neither": {"ignore_eos": "x"},
}

# Why the simulated one is not to be asked so.
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "logprobs": ({"logprobs": 1}, "nothing is sampled, so there are none to tell; they are null"),
    "echo": ({"echo": True}, "nobody needs it; refused, so that nobody believes to have got it"),
    "stop": ({"stop": ["a", "e", "i", "o"], "max_tokens": 50}, "an answer is no text that might contain it"),
    "temperature": ({"temperature": -1}, "sampling parameters are not read"),
}

BODIES = {
    "broken JSON": '{"model":',
    "no body": "",
    "null": "null",
    "no object": "[]",
    "no prompt": '{"model": "tiny"}',
}

ELSE: dict[str, tuple[str, Any]] = {
    "max_completion_tokens over the context": (CHAT, chat(max_completion_tokens=POSITIONS + 1)),
    "empty messages": (CHAT, chat(messages=[])),
    "messages a word": (CHAT, chat(messages="hi")),
    "empty content": (CHAT, chat("")),
    "no content": (CHAT, chat(messages=[{"role": "user"}])),
    "content in parts": (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": " baba"}]}])),
    "half a surrogate pair": (CHAT, chat("\ud800")),
    "a chat too long": (CHAT, chat(LONG)),
    "no max_tokens": (COMPLETION, {"model": MODEL, "prompt": " baba", "ignore_eos": True}),
    "a prompt too long": (COMPLETION, completion(LONG)),
    "token ids too many": (COMPLETION, completion([5] * (POSITIONS + 1))),
    "token ids that leave no room": (COMPLETION, completion([5] * POSITIONS, max_tokens=1)),
    "token ids": (COMPLETION, completion([300, 301, 302])),
    "lists of token ids": (COMPLETION, completion([[300, 301], [302]])),
    "a stream of two prompts": (COMPLETION, completion([" baba", " koko"], n=2) | CONTINUOUS),
    "an empty prompt": (COMPLETION, completion("")),
    "no prompts": (COMPLETION, completion([])),
    "one of no tokens": (COMPLETION, completion([[]])),
    "one empty prompt": (COMPLETION, completion([" baba", ""])),
    "null for a prompt": (COMPLETION, completion(None)),
    "tokens of a text": ("/tokenize", {"model": MODEL, "prompt": " baba koko"}),
    "tokens of a chat": ("/tokenize", chat()),
    "tokens and their strings": ("/tokenize", {"prompt": " ", "return_token_strs": True}),
    "tokens of nothing": ("/tokenize", {"prompt": ""}),
    "tokens of no chat": ("/tokenize", {"messages": []}),
    "tokens of neither": ("/tokenize", {"model": MODEL}),
    "tokens of an unknown model": ("/tokenize", {"model": "nope", "prompt": " baba"}),
    "tokens of a number": ("/tokenize", {"prompt": 5}),
    "text of tokens": ("/detokenize", {"model": MODEL, "tokens": [300, 301]}),
    "text of no tokens": ("/detokenize", {"tokens": []}),
    "text of tokens there are not": ("/detokenize", {"tokens": [-1]}),
    "text of nothing": ("/detokenize", {"model": MODEL}),
    "text of an unknown model": ("/detokenize", {"model": "nope", "tokens": [1]}),
}


def cases() -> Iterator[Any]:
    body: Callable[..., dict[str, Any]]
    for path, body in ((CHAT, chat), (COMPLETION, completion)):
        name = "chat" if body is chat else "completion"
        for title, fields in GENERATE.items():
            yield pytest.param(path, body(**fields), id=f"{name}, {title}")
        for title, text in BODIES.items():
            yield pytest.param(path, text, id=f"{name}, {title}")
        for title, (fields, reason) in DIFFERENT.items():
            mark = pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)
            yield pytest.param(path, body(**fields), id=f"{name}, {title}", marks=mark)
    for title, (path, body_of_it) in ELSE.items():
        yield pytest.param(path, body_of_it, id=title)


@pytest.fixture(scope="module")
def sim() -> Iterator[str]:
    """Started as the real one is, as far as it has the same flags."""
    profile = load_profile("gemma-4-26b-bf16").with_flags(
        max_model_len=POSITIONS, max_num_batched_tokens=512, max_num_seqs=256, long_prefill_token_threshold=256
    )
    caching = profile.with_flags(enable_prefix_caching=True, block_size=128, kv_cache_tokens=524288)
    with serve(create_app(caching, ServerOptions(speed=500.0, noise=0.0, served_model_name=MODEL))) as url:
        yield url


def post(url: str, path: str, body: Any, headers: dict[str, str] = JSON) -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return httpx.post(f"{url}{path}", content=content, headers=headers, timeout=TIMEOUT)


def shape(value: Any) -> Any:
    """What has its place and kind in JSON, whatever it says."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        numbers = all(isinstance(each, int) for each in value)
        return "numbers" if numbers else [shape(each) for each in value]
    return "number" if type(value) in (int, float) else type(value).__name__


def error(content: dict[str, Any]) -> dict[str, Any]:
    """In full, but for what a library says and not vLLM."""
    said = content.get("error", content)
    return {key: value for key, value in said.items() if key != "message" or said["type"] != BROKEN}


def events(text: str) -> dict[Any, list[Any]]:
    """Of each choice in their order; between the choices it is the engine's steps'."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for event in text.split("\n\n"):
        if event.startswith("data: {"):
            chunk = json.loads(event.removeprefix("data: "))
            found[chunk["choices"][0]["index"] if chunk["choices"] else None].append(shape(chunk))
        else:
            found[None].append(event)
    return found


def seen(response: httpx.Response) -> tuple[Any, ...]:
    kind = response.headers.get("content-type")
    if not response.is_success:
        return response.status_code, kind, error(response.json())
    body = events(response.text) if kind and kind.startswith("text/event-stream") else shape(response.json())
    return response.status_code, kind, body


@pytest.mark.parametrize(("path", "body"), list(cases()))
def test_the_simulator_and_vllm_answer_alike(vllm: Vllm, sim: str, path: str, body: Any) -> None:
    """On a busy machine vLLM may join two chunks of a stream: those are asked for again."""
    streams = isinstance(body, dict) and body.get("stream")
    for _ in range(3 if streams else 1):
        simulated, real = seen(post(sim, path, body)), seen(post(vllm.url, path, body))
        if simulated == real:
            break
    assert simulated == real


@pytest.mark.parametrize("kind", [None, "text/plain"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION, "/tokenize", "/detokenize"])
def test_the_simulator_and_vllm_accept_the_same_content_types(
    vllm: Vllm, sim: str, path: str, kind: str | None
) -> None:
    headers = {"content-type": kind} if kind else {}
    ours, theirs = (post(url, path, "{}", headers) for url in (sim, vllm.url))
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())


def test_the_simulator_and_vllm_refuse_invalid_text_alike(vllm: Vllm, sim: str) -> None:
    ours, theirs = (post(url, COMPLETION, b'{"prompt": "\xff"}') for url in (sim, vllm.url))
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/load", "/v1/nothing", CHAT, "/tokenize"])
def test_the_simulator_and_vllm_answer_get_requests_alike(vllm: Vllm, sim: str, path: str) -> None:
    ours, theirs = (httpx.get(f"{url}{path}") for url in (sim, vllm.url))
    assert (ours.status_code, shape(ours.json())) == (theirs.status_code, shape(theirs.json()))


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")])
def test_the_simulator_and_vllm_report_health_alike(vllm: Vllm, sim: str, method: str, path: str) -> None:
    ours, theirs = (httpx.request(method, f"{url}{path}") for url in (sim, vllm.url))
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content) == (200, b"")


def test_the_request_id_header_becomes_the_id(vllm: Vllm, sim: str) -> None:
    for url in (sim, vllm.url):
        body = chat(request_id="of the body")
        assert post(url, CHAT, body).json()["id"] == "chatcmpl-of the body"
        assert post(url, CHAT, body, JSON | {"X-Request-Id": "abc"}).json()["id"] == "chatcmpl-abc"


def test_metrics_have_vllms_names_kinds_and_labels(vllm: Vllm, sim: str) -> None:
    """All of the simulated one's; the real one has more, and tells more of its cache."""

    def families(url: str) -> dict[str, Metric]:
        post(url, CHAT, chat()).raise_for_status()
        response = httpx.get(f"{url}/metrics", timeout=TIMEOUT)
        assert response.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        return {family.name: family for family in text_string_to_metric_families(response.text)}

    ours, theirs = families(sim), families(vllm.url)
    assert len(ours) > 20
    for name, family in ours.items():
        assert family.type == theirs[name].type
        for sample in family.samples:
            same = [other for other in theirs[name].samples if other.name == sample.name]
            assert any(
                set(sample.labels) <= set(other.labels)
                if name == "vllm:cache_config_info"
                else set(sample.labels) == set(other.labels)
                for other in same
            ), sample
