"""Random requests: none gets a 500 from the gateway, none hangs, and none keeps what it reserved."""

import json
import string
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from tests.support.running_gateway import RunningGateway, run_gateway
from tests.support.servers import serve
from tests.support.wire import CHAT, DONE, TEXT, sse, token, usage

# What an engine may answer, by name: status, type, pieces of body. `None` breaks the connection off.
JSON, EVENTS = b"application/json", b"text/event-stream"
ANSWERS: dict[str, tuple[int, bytes, list[bytes | None]]] = {
    "whole": (200, JSON, [b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}']),
    "stream": (200, EVENTS, [token("one"), token("two"), usage(), DONE]),
    "no done": (200, EVENTS, [token("one")]),
    "nothing": (200, EVENTS, []),
    "error in a stream": (200, EVENTS, [token(), sse({"error": {"message": "no", "code": 500}}), DONE]),
    "odd events": (200, EVENTS, [b"data: {\n\ndata: []\n\n", b"\n\n\n", sse({"usage": 7, "choices": 1})]),
    "half an event": (200, EVENTS, [b'data: {"choices": [{"index": 0, "del']),
    "odd usage": (200, JSON, [b'{"usage": {"prompt_tokens": -5, "completion_tokens": 1e300}, "metrics": []}']),
    "bytes": (200, b"application/octet-stream", [b"\x00\xff" * 100]),
    "400": (400, JSON, [b'{"error": {"message": "no", "code": 400}}']),
    "500": (500, b"text/plain", [b"Internal Server Error"]),
    "204": (204, JSON, []),
    "cut": (200, EVENTS, [token(), None]),
    "hang up": (0, b"", []),
}


async def engine(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as the request's x-answer says."""
    if scope["type"] != "http":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    name = dict(scope["headers"]).get(b"x-answer", b"whole").decode()
    status, kind, pieces = ANSWERS[name]
    transport = getattr(send, "__self__").transport  # noqa: B009
    if status:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    for piece in pieces:
        if piece is None:
            transport.close()
            return
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    if status:
        await send({"type": "http.response.body", "body": b""})
    else:
        transport.close()
        await receive()
        await send({"type": "http.response.start", "status": 500, "headers": []})  # to nobody


@pytest.fixture(scope="module")
def _fuzzed() -> Iterator[RunningGateway]:
    with serve(engine) as url:
        gateway = run_gateway(url, max_body=20_000, max_headers=8000, queue_timeout=5.0, upstream_timeout=5.0)
        yield gateway
        gateway.stop()


@pytest.fixture
def gateway(_fuzzed: RunningGateway, _nothing_failed: None) -> Iterator[RunningGateway]:
    yield _fuzzed
    _fuzzed.check_budgets()
    assert _fuzzed.ended("internal_error") == 0


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = "model n stream stream_options max_tokens max_completion_tokens user cache_salt priority tools x session_id"
fields = st.sampled_from(FIELDS.split())
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | scalars, "content": st.text(max_size=200) | anything},
    optional={"tool_calls": anything, "reasoning": anything},
)
texts = st.text() | st.lists(st.text() | st.integers() | st.lists(st.integers()), max_size=4) | anything
prompts = st.builds(lambda value: {"messages": value}, st.lists(message, max_size=4) | anything)
prompts |= st.builds(lambda value: {"prompt": value}, texts)
streams = st.booleans().map(lambda stream: {"stream": stream})
options = st.dictionaries(fields, anything, max_size=4)
good = st.just({"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"})
bodies = st.builds(lambda good, stream: good | stream, good, streams)
bodies |= st.builds(lambda *parts: {**parts[0], **parts[1], **parts[2]}, streams, options, prompts | good) | anything

NAMES = "x-request-id x-fairlane-deadline x-fairlane-priority x-session-id x-user-id traceparent tracestate origin x"
OTHERS = "authorization content-type x-vllm-priority accept baggage expect"
names = st.sampled_from(f"{NAMES} {OTHERS}".split())
odd = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=30)
values = odd | st.floats().map(str) | st.sampled_from(["1", "-1", "1e400", "nan", "100-continue", "a ", "\t1 \t"])
headers = st.dictionaries(names, values, max_size=4)


def check(status: int, body: bytes) -> None:
    assert b"internal_error" not in body
    if status >= 400 and body and status != 500:
        assert b'"error"' in body


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([CHAT, TEXT]), body=bodies, headers=headers, answer=st.sampled_from([*ANSWERS]))
def test_random_json_bodies_are_answered(
    gateway: RunningGateway, path: str, body: Any, headers: dict[str, str], answer: str
) -> None:
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    asked = gateway.ask(content, path, headers | {"x-answer": answer})
    try:
        check(asked.status, asked.read())
        assert asked.status != 502 or answer == "hang up"  # whatever a client sends, the engine gets a request
    finally:
        asked.leave()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "QUERY"]),
    path=st.sampled_from([CHAT, TEXT, "/v1/models", "/health", "/health/ready", "/queue", "/metrics", "/"])
    | st.text(string.ascii_letters + string.digits + "/._-~%", max_size=30).map("/".__add__),
    query=st.binary(max_size=20).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw)),
    body=st.binary(max_size=200),
)
def test_random_bytes_are_answered(gateway: RunningGateway, method: str, path: str, query: str, body: bytes) -> None:
    response = httpx.request(
        method, httpx.URL(gateway.url).copy_with(raw_path=f"{path}?{query}".encode()), content=body
    )
    check(response.status_code, response.content)
    assert response.status_code != 500


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stream=st.booleans(), answer=st.sampled_from([*ANSWERS]), read=st.none() | st.integers(1, 50))
def test_clients_may_leave_at_any_moment(gateway: RunningGateway, stream: bool, answer: str, read: int | None) -> None:
    """When the client has gone, nothing is left of its request."""
    asked = gateway.ask(
        {"messages": [{"role": "user", "content": "hi"}], "stream": stream}, headers={"x-answer": answer}
    )
    if read is not None:
        asked.response.read(read)
    asked.leave()
