"""Every API through a whole gateway: when prefill ends, what is charged, and the format of errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.api.base import InferenceRequest
from gateway.pricing.profile import Profile
from gateway.tokenizers.engine import BoundedTokenizer
from tests.support.running_gateway import TINY, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, DONE, chat, sse, token, usage

MESSAGES, RESPONSES, EMBEDDINGS = "/v1/messages", "/v1/responses", "/v1/embeddings"
TRANSCRIPTION = "/v1/audio/transcriptions"

# Nothing here lasts a hundredth of what it costs.
DEAR = Profile(c_s=1000, a_s_per_token=10, b_s_per_token2=0, decode_s_per_token=100)

FORM = {"content-type": "multipart/form-data; boundary=x"}


def event(kind: str, **fields: Any) -> bytes:
    """As OpenAI's newer API and Anthropic's write one."""
    return f"event: {kind}\n".encode() + sse({"type": kind, **fields})


def form(**fields: str) -> bytes:
    parts = [f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    recording = '--x\r\ncontent-disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n12345678\r\n--x--\r\n'
    return ("".join(parts) + recording).encode()


MESSAGE = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 9, "stream": True}
RESPONSE = {"input": "hello", "stream": True}
STATED = {"input_tokens": 7, "output_tokens": 3}
ANTHROPICS = {"input_tokens": 3, "output_tokens": 3, "cache_read_input_tokens": 4}

# A request; what comes before its first token, that token, and what comes after it.
STREAMS = {
    CHAT: (chat(stream=True), [], [token()], [usage(), DONE]),
    MESSAGES: (
        MESSAGE,
        [event("ping")],
        [event("message_start", message={"usage": {"input_tokens": 7, "output_tokens": 0}})],
        [
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": "hi"}),
            event("message_delta", delta={}, usage=ANTHROPICS),
            event("message_stop"),
        ],
    ),
    RESPONSES: (
        RESPONSE,
        [event(f"response.{what}", response={"usage": None}) for what in ("created", "in_progress")],
        [event("response.output_item.added", item={})],
        [event("response.output_text.delta", delta="hi"), event("response.completed", response={"usage": STATED})],
    ),
    TRANSCRIPTION: (form(stream="true"), [], [sse({"choices": [{"delta": {"content": "hi"}}]})], [DONE]),
}


def headers(path: str) -> dict[str, str] | None:
    return FORM if path == TRANSCRIPTION else None


@pytest.mark.parametrize("path", STREAMS)
def test_prefill_ends_exactly_at_the_first_token(
    engine: ScriptedEngine, start_gateway: StartGateway, path: str
) -> None:
    gateway = start_gateway(engine.url, DEAR)
    body, before, first, after = STREAMS[path]
    asked = gateway.ask(body, path, headers(path))
    call = engine.asked()
    call.start()
    for each in before:
        call.send(each)
        assert asked.event() == each
    assert gateway.in_prefill() == 1
    for each in first:
        call.send(each)
        assert asked.event() == each
    assert gateway.in_prefill() == 0
    assert gateway.seats() == 1
    for each in after[:-1]:
        call.send(each)
    call.end(after[-1])
    # The chat's client has not asked for usage, so it does not get any.
    assert asked.read() == b"".join(each for each in after if path != CHAT or each != usage())
    gateway.wait_ended("completed")


@pytest.mark.parametrize(
    ("path", "body", "answer", "charged"),
    [
        (CHAT, chat(), {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}, 1000 + 70 + 300),
        (MESSAGES, MESSAGE | {"stream": False}, {"type": "message", "usage": ANTHROPICS}, 1000 + 30 + 300),
        (RESPONSES, RESPONSE | {"stream": False}, {"object": "response", "usage": STATED}, 1000 + 70 + 300),
        (EMBEDDINGS, {"input": "hello"}, {"usage": {"prompt_tokens": 7, "total_tokens": 7}}, 1000 + 70),
        (EMBEDDINGS, {"input": ["hel", "lo"]}, {"usage": {"prompt_tokens": 8, "total_tokens": 8}}, 2000 + 80),
        ("/v1/rerank", {"query": "hel", "documents": ["lo"]}, {"usage": {"prompt_tokens": 7}}, 1000 + 70),
    ],
)
def test_a_whole_answer_is_charged_at_its_true_counts(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path, path: str, body: Any, answer: Any, charged: int
) -> None:
    log = tmp_path / "decisions.jsonl"
    gateway = start_gateway(engine.url, DEAR, decision_log=log)
    asked = gateway.ask(body, path)
    engine.asked().answer(200, answer)
    assert asked.json() == answer
    gateway.wait_ended("completed")
    gateway.stop()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["cost_s"] for event in events if event.get("event") == "finished"] == [charged]


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_a_stream_is_charged_at_its_true_counts(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path, path: str
) -> None:
    log = tmp_path / "decisions.jsonl"
    gateway = start_gateway(engine.url, DEAR, decision_log=log)
    body, before, first, after = STREAMS[path]
    asked = gateway.ask(body, path)
    engine.asked().stream(*before, *first, *after)
    assert asked.read() == b"".join([*before, *first, *after])
    gateway.wait_ended("completed")
    gateway.stop()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    cached = 40 if path == MESSAGES else 0
    assert [event["cost_s"] for event in events if event.get("event") == "finished"] == [1000 + 70 + 300 - cached]


def test_an_embedding_holds_its_prefill_permit_until_its_answer(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    """However long ago it should have been done."""
    gateway = start_gateway(engine.url, TINY)
    asked = gateway.ask({"input": ["a", "b", "c"]}, EMBEDDINGS)
    other = gateway.ask(chat())
    calls = {call.path: call for call in (engine.asked(), engine.asked())}
    call = calls[EMBEDDINGS]
    # The chat is taken to be done.
    wait_until(lambda: gateway.in_prefill() == 1)
    assert gateway.seats() == 4
    call.answer(200, {"usage": {"prompt_tokens": 3}})
    asked.read()
    gateway.wait_ended("completed")
    assert (gateway.in_prefill(), gateway.seats()) == (0, 1)
    other.leave()


def test_an_embedding_reserves_no_cache_for_output(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, TINY)
    asked = gateway.ask({"input": ["word " * 40] * 10}, EMBEDDINGS)
    call = engine.asked()
    held = gateway.call(lambda: gateway.gateway.core.admission.ledger.kv_tokens)
    assert 10 * 40 <= held <= 10 * 60
    call.answer(200, {})
    asked.read()


def test_a_form_is_read_with_the_boundary_of_its_header(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Of a WAV file it is then known how long it is."""
    gateway = start_gateway(engine.url)
    head = b"RIFF----WAVEfmt " + bytes(12) + (96_000).to_bytes(4, "little")
    asked = gateway.ask(form().replace(b"12345678", head + bytes(960_000)), TRANSCRIPTION, FORM)
    call = engine.asked()
    assert gateway.seats() == 1
    call.answer(200, {"text": "hello"})
    asked.read()


@pytest.mark.parametrize("path", [EMBEDDINGS, "/classify"])
def test_a_prompt_that_the_engine_may_truncate_is_never_too_long(
    engine: ScriptedEngine, start_gateway: StartGateway, path: str
) -> None:
    gateway = start_gateway(engine.url, TINY)
    asked = gateway.ask({"input": "word " * 200_000}, path)
    engine.asked().answer(200, {})
    assert asked.status == 200


async def never(tokenizer: BoundedTokenizer, request: InferenceRequest) -> None:
    raise AssertionError(f"{request.api} is not counted")


def test_only_prompts_that_the_engine_tokenizes_the_same_way_are_counted(
    engine: ScriptedEngine, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start_gateway(engine.url, TINY, tokenizer="engine")
    with monkeypatch.context() as patched:
        for method in ("count", "encode"):
            patched.setattr(BoundedTokenizer, method, never)
        for path, body in (
            (MESSAGES, {"messages": [{"role": "user", "content": "word " * 20_000}]}),
            (RESPONSES, {"input": "word " * 20_000}),
            (EMBEDDINGS, {"input": "word " * 20_000}),
        ):
            asked = gateway.ask(body, path)
            call = engine.asked()
            assert call.path == path
            call.answer(200, {})
            asked.read()
            assert asked.status == 200
    asked = gateway.ask(chat("word " * 20_000))
    assert engine.asked().path == "/tokenize"
    asked.leave()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
        {"logprobs": True, "top_logprobs": 5},
        {"messages": [{"role": "assistant", "reasoning": "hm", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/a.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}}]}]},
    ],
)
def test_unknown_fields_are_forwarded_unchanged(
    engine: ScriptedEngine, start_gateway: StartGateway, fields: dict[str, Any]
) -> None:
    gateway = start_gateway(engine.url)
    body = json.dumps(chat() | fields, indent=3).encode()
    answer = {"choices": [{"index": 0, "message": {"reasoning": "hm", "tool_calls": [{"id": "1"}]}, "logprobs": {}}]}
    asked = gateway.ask(body)
    call = engine.asked()
    assert call.body == body
    assert gateway.seats() == fields.get("n", 1)
    call.answer(200, json.dumps(answer, indent=2).encode())
    assert asked.read() == json.dumps(answer, indent=2).encode()


# Errors


def test_errors_use_the_apis_own_format(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, max_queued=1, engine={"max_num_seqs": 1})
    running = gateway.ask(chat(stream=True))
    engine.asked().start()
    waiting = gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    refused = gateway.ask(MESSAGE, MESSAGES)
    assert (refused.status, refused.header("retry-after") is not None) == (429, True)
    told = refused.json()
    assert (told["type"], told["error"]["type"], told["error"]["code"]) == ("error", "rate_limit_error", "queue_full")
    for path, body in ((RESPONSES, RESPONSE), (EMBEDDINGS, {"input": "a"})):
        assert gateway.ask(body, path).json()["error"]["code"] == "queue_full"
    assert gateway.ask(b"{", MESSAGES).json()["error"]["type"] == "invalid_request_error"
    waiting.leave()
    running.leave()


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES, TRANSCRIPTION])
def test_a_truncated_stream_ends_with_the_apis_own_error_event(
    engine: ScriptedEngine, start_gateway: StartGateway, path: str
) -> None:
    gateway = start_gateway(engine.url)
    body, _, first, _ = STREAMS[path]
    asked = gateway.ask(body, path, headers(path))
    call = engine.asked()
    call.start()
    call.send(first[0])
    assert asked.event() == first[0]
    call.hang_up()
    name, _, data = asked.event().rpartition(b"data: ")
    told = json.loads(data)
    assert name == (b"" if path == TRANSCRIPTION else b"event: error\n")
    assert told["error"]["code"] == "bad_upstream"
    assert told.get("type") == (None if path == TRANSCRIPTION else "error")
    assert asked.read() == (DONE if path == TRANSCRIPTION else b"")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (MESSAGES, event("error", error={"type": "internal_error", "message": "x"})),
        (RESPONSES, event("response.failed", response={"error": {"code": "server_error"}})),
    ],
)
def test_an_engine_error_event_is_relayed_and_recognised(
    engine: ScriptedEngine, start_gateway: StartGateway, path: str, error: bytes
) -> None:
    gateway = start_gateway(engine.url)
    body, _, first, _ = STREAMS[path]
    asked = gateway.ask(body, path)
    engine.asked().stream(*first, error)
    assert asked.read() == first[0] + error
    gateway.wait_ended("engine_error")


def test_an_anthropic_key_is_not_forwarded(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    gateway.ask(MESSAGE, MESSAGES, {"x-api-key": "secret", "anthropic-version": "2023-06-01"})
    call = engine.asked()
    assert "x-api-key" not in call.headers
    assert call.headers["anthropic-version"] == "2023-06-01"
    call.stream(*STREAMS[MESSAGES][2])
