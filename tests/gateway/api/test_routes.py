"""The allow-list of routes: which exist, which are queued, and that no other engine route can be reached."""

import json
import re
from typing import Any

import pytest

from gateway.api.routes import PASSED, QUEUED
from tests.support.repository import ROOT
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.wire import CHAT, TEXT, chat

# Whatever vLLM 0.32 serves beside what is on the allow-list, developers' routes and all (entrypoints/**/api_router.py).
OTHERS = [
    *("/abort_requests", "/collective_rpc", "/finish_weight_update", "/init_weight_transfer_engine", "/pause"),
    *("/release_kv_cache_memory", "/reset_encoder_cache", "/reset_mm_cache", "/reset_prefix_cache", "/resume"),
    *("/shutdown_weight_transfer_engine", "/sleep", "/start_profile", "/start_weight_update", "/stop_profile"),
    *("/update_weights", "/wake_up", "/weight_checker", "/fault_tolerance/apply", "/scale_elastic_ep"),
    *("/is_scaling_elastic_ep", "/inference/v1/generate", "/inference/v1/abort_requests", "/invocations", "/ping"),
    *("/generative_scoring", "/cohere/v2/chat", "/v2/embed", "/v1/systemone", "/v1/load_lora_adapter"),
    *("/v1/unload_lora_adapter", "/v1/chat/completions/batch", "/v1/chat/completions/render"),
    *("/v1/messages/render", "/v1/completions/derender", "/is_sleeping", "/server_info"),
    *("/load", "/kv_event_sources", "/tokenizer_info", "/docs", "/openapi.json", "/weight_info", "/get_world_size"),
]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_routes_outside_the_allow_list_answer_404(engine: ScriptedEngine, gateway: RunningGateway, method: str) -> None:
    for path in OTHERS:
        asked = gateway.ask(b"{}", path, method=method)
        assert asked.status == 404, path
        assert path in asked.json()["error"]["message"]
    assert engine.pending == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/chat/completions/x", 404, "not_found"),
        ("POST", "//v1/chat/completions", 404, "not_found"),
        ("GET", "/v1/models/scripted", 404, "not_found"),
        ("POST", "/v1/../metrics", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("HEAD", CHAT, 405, "method_not_allowed"),
        ("PUT", TEXT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/responses/render", 405, "method_not_allowed"),  # to GET that is an id
        ("GET", "/tokenize", 405, "method_not_allowed"),
        ("DELETE", "/v1/responses/resp_1", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_get_an_openai_error(
    engine: ScriptedEngine, gateway: RunningGateway, method: str, path: str, status: int, code: str
) -> None:
    asked = gateway.ask(b"{}", path, method=method)
    assert asked.status == status
    assert (asked.header("allow") is not None) == (status == 405)
    if method != "HEAD":
        content = asked.json()["error"]
        assert set(content) == {"message", "type", "param", "code"}
        assert (content["type"], content["code"]) == ("invalid_request_error", code)
    assert engine.pending == 0


def test_a_wrong_method_answers_405_with_the_allowed_methods(gateway: RunningGateway) -> None:
    assert gateway.ask(b"", CHAT, method="OPTIONS").header("allow") == "POST"
    assert set((gateway.ask(b"", "/v1/models", method="PUT").header("allow") or "").split(", ")) == {"GET", "HEAD"}


def test_a_trailing_slash_is_redirected_as_vllm_does(gateway: RunningGateway) -> None:
    asked = gateway.ask(b"", "/v1/models/", method="GET")
    assert (asked.status, asked.header("location")) == (307, f"{gateway.url}/v1/models")


def test_anthropic_routes_get_anthropic_errors(gateway: RunningGateway) -> None:
    for path, method, kind in (
        ("/v1/messages", "GET", "invalid_request_error"),
        ("/v1/messages/batches", "POST", "not_found_error"),
        ("/v1/messages/count_tokens", "GET", "invalid_request_error"),
    ):
        told = gateway.ask(b"{}", path, method=method).json()
        assert (told["type"], told["error"]["type"]) == ("error", kind)


def test_the_realtime_websocket_is_refused_with_a_reason(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    asked = gateway.ask(b"", "/v1/realtime", upgrade, method="GET")
    assert asked.status == 404
    assert "without an end" in asked.json()["error"]["message"]
    assert engine.pending == 0


def test_each_route_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for route in (*QUEUED, *PASSED):
        assert re.search(rf"`(GET |POST )?{re.escape(route.path)}`", text), route.path


# Queued


@pytest.mark.parametrize("path", [route.path for route in QUEUED])
def test_inference_routes_are_queued(engine: ScriptedEngine, start_gateway: StartGateway, path: str) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    first = gateway.ask(chat(stream=True))
    engine.asked().start()
    body: Any = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a"}
    headers = {"content-type": "application/json"}
    if "audio" in path:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n1\r\n--x--\r\n'
    asked = gateway.ask(body, path, headers)
    gateway.wait_queued(1)
    assert engine.pending == 0
    first.leave()
    call = engine.asked()
    assert (call.path, call.headers["content-type"]) == (path, headers["content-type"])
    assert call.body == (body if isinstance(body, bytes) else json.dumps(body).encode())
    call.answer()
    assert asked.status == 200
    assert asked.header("x-fairlane-queue-ms")


# Passed on


@pytest.mark.parametrize("route", [route for route in PASSED if route.path not in ("/v1/models", "/version")])
def test_other_routes_are_passed_through_at_once(
    engine: ScriptedEngine, start_gateway: StartGateway, route: Any
) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    running = gateway.ask(chat(stream=True))
    engine.asked().start()
    path = route.path.format(id="resp_1")
    asked = gateway.ask(b'{"prompt": "a" }', f"{path}?a=1&b=%2F", {"authorization": "Bearer x"}, method=route.method)
    call = engine.asked()
    assert (call.method, call.path, call.query) == (route.method, path, "a=1&b=%2F")
    assert call.body == b'{"prompt": "a" }'
    assert "authorization" not in call.headers
    call.answer(418, {"count": 1}, x_engine="yes")
    assert (asked.status, asked.json(), asked.header("x-engine")) == (418, {"count": 1}, "yes")
    assert gateway.seats() == 1
    running.leave()


def test_head_is_answered_wherever_get_is(gateway: RunningGateway) -> None:
    asked = gateway.ask(b"", "/v1/models", method="HEAD")
    assert (asked.status, asked.read()) == (200, b"")
    assert asked.header("content-length") == str(len(gateway.get("/v1/models").content))


def test_a_passed_through_stream_is_relayed_as_it_arrives(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(b"", "/v1/responses/resp_1?stream=true", method="GET")
    call = engine.asked()
    call.start()
    call.send(b"event: a\n\n")
    assert asked.event() == b"event: a\n\n"
    call.end(b"event: b\n\n")
    assert asked.read() == b"event: b\n\n"


def test_a_client_that_leaves_closes_the_passed_through_request(
    engine: ScriptedEngine, gateway: RunningGateway
) -> None:
    asked = gateway.ask(b"", "/v1/responses/resp_1?stream=true", method="GET")
    call = engine.asked()
    asked.leave()
    assert call.left.wait(5)


@pytest.mark.parametrize(
    "given",
    [
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2fsleep",
        "%2e%2e%2f%2e%2e%2fsleep",
        "a%2fb",
        "a%00",
        "a%20b",
        "a%3Fb",
        "a%23",
        "%C3%A9",
    ],
)
@pytest.mark.parametrize("route", ["/v1/responses/{}", "/v1/responses/{}/cancel"])
def test_an_id_in_the_path_cannot_reach_another_route(
    engine: ScriptedEngine, gateway: RunningGateway, route: str, given: str
) -> None:
    for method in ("GET", "POST"):
        # http.client sends the path as it is, dots and all.
        assert gateway.ask(b"", route.format(given), method=method).status in (404, 405)
    assert engine.pending == 0


def test_an_unreachable_engine_is_reported_in_the_apis_error_format(start_gateway: StartGateway) -> None:
    gateway = start_gateway("http://127.0.0.1:9")
    told = gateway.ask(b"{}", "/v1/messages/count_tokens")
    assert (told.status, told.header("retry-after")) == (503, "5")
    assert told.json()["error"]["type"] == "overloaded_error"
    assert gateway.ask(b"{}", "/tokenize").json()["error"]["code"] == "engine_down"


def test_a_truncated_answer_is_an_error(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(b"{}", "/tokenize")
    call = engine.asked()
    call.start(200, "application/json", content_length="100")
    call.send(b"{")
    call.hang_up()
    assert (asked.status, asked.json()["error"]["code"]) == (502, "bad_upstream")


def test_a_truncated_stream_ends_with_an_error_event(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(b"", "/v1/responses/resp_1?stream=true", method="GET")
    call = engine.asked()
    call.start()
    call.send(b"event: a\n\nevent: b\n")
    assert asked.event() == b"event: a\n\n"
    call.hang_up()
    told = asked.event()
    assert told.startswith(b"event: error\n")
    assert b'"bad_upstream"' in told


def test_a_body_that_is_too_large_is_not_forwarded(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, max_body=10)
    assert gateway.ask(b"{" + b" " * 20 + b"}", "/tokenize").status == 413
    assert engine.pending == 0
