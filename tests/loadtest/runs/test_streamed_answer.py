"""Reading an answer from any server, however the stream is split."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.results.records import Outcome, Record
from loadtest.runs.streamed_answer import StreamedAnswer
from loadtest.workloads.plan import Request

JSON = {b"content-type": b"application/json"}
SSE = {b"content-type": b"text/event-stream; charset=utf-8"}


def answer(**options: Any) -> StreamedAnswer:
    return StreamedAnswer(Record(Request(0.0, "ada", "short", 10, 10)), **options)


def read(
    *pieces: bytes, status: int = 200, headers: dict[bytes, bytes] = SSE, whole: bool = True, **options: Any
) -> StreamedAnswer:
    """Told piece by piece, one a second."""
    told = answer(**options)
    told.begin(status, headers)
    for second, piece in enumerate(pieces):
        told.feed(piece, float(second))
    told.end(float(len(pieces)), whole=whole)
    return told


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> bytes:
    return event({"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields})


ROLE = chunk({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"
USAGE = event(
    {
        "choices": [],
        "usage": {"prompt_tokens": 17, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}},
        "metrics": {"queue_time_ms": 250.0, "time_to_first_token_ms": 62.6},
    }
)
VLLM = (ROLE, chunk({"content": " a"}), chunk({"content": " b"}), chunk({"content": " c"}, "length"), USAGE, DONE)


def content(text: str) -> bytes:
    return chunk({"content": text})


# Tokens


def test_the_role_chunk_does_not_count_as_a_token_of_its_own() -> None:
    """As vLLM sends it: an answer of three tokens."""
    record = read(*VLLM).record
    assert record.tokens == [0.0, 2.0, 3.0]
    assert record.outcome is Outcome.COMPLETED


def test_an_answer_without_a_role_chunk_keeps_its_first_token() -> None:
    """Ollama names the role in every chunk."""
    pieces = [chunk({"role": "assistant", "content": word}) for word in "abc"]
    assert read(*pieces, DONE).record.tokens == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("field", ["content", "reasoning", "reasoning_content", "tool_calls"])
def test_every_kind_of_content_counts_as_a_token(field: str) -> None:
    said = {field: [{"index": 0}] if field == "tool_calls" else "word"}
    assert read(chunk(said), chunk(said), DONE).record.tokens == [0.0, 1.0]


def test_a_finish_chunk_counts_as_a_token_only_with_content() -> None:
    """vLLM's last token may be a stop token, which has no text and is counted; OpenAI's last chunk has no token."""
    assert read(ROLE, content("a"), chunk({}, "stop"), DONE).record.tokens == [0.0]
    assert read(ROLE, content("a"), chunk({"content": None}, "stop"), DONE).record.tokens == [0.0]
    assert read(ROLE, content("a"), chunk({"content": ""}, "stop"), DONE).record.tokens == [0.0, 2.0]


def test_an_empty_answer_has_its_first_token() -> None:
    record = read(ROLE, chunk({"content": ""}, "stop"), DONE).record
    assert (record.tokens, record.outcome) == ([0.0], Outcome.COMPLETED)


def test_several_events_in_one_chunk_share_their_time() -> None:
    assert read(b"".join(VLLM)).record.tokens == [0.0, 0.0, 0.0]


def test_content_that_looks_like_events_is_content() -> None:
    odd = [
        '"role":',
        '"choices":[',
        'data: [DONE]\n\ndata: {"error":1}',
        '"usage":{"prompt_tokens":1}',
        '"finish_reason":"x"',
    ]
    told = read(ROLE, *map(content, odd), whole=True, keep_text=True)
    assert len(told.record.tokens) == len(odd)
    assert told.text == "".join(odd)
    assert told.record.outcome is Outcome.DISCONNECTED


# The wire's forms


@given(st.lists(st.integers(1, 40)))
def test_the_result_does_not_depend_on_how_the_stream_is_split(sizes: list[int]) -> None:
    data, pieces = b"".join(VLLM), []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    whole, cut = read(b"".join(VLLM), keep_text=True), read(*pieces, data, keep_text=True)
    assert len(cut.record.tokens) == 3
    assert cut.text == whole.text == " a b c"
    for name in ("outcome", "prompt_tokens", "output_tokens", "cached_tokens", "queue"):
        assert getattr(cut.record, name) == getattr(whole.record, name)


def test_a_token_is_timed_when_its_line_is_complete() -> None:
    first, second = ROLE[:20], ROLE[20:]
    assert read(first, second, *VLLM[1:]).record.tokens[0] == 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"data: ", b"data:"),
        lambda data: data.replace(b":{", b": {").replace(b",", b", "),
        lambda data: b": keep-alive\n\n" + data.replace(b"\n\n", b"\n\n: ping\n\n"),
        lambda data: data.replace(b"data:", b"event: message\nid: 7\ndata:"),
        lambda data: data.replace(b'"id":"1",', b'"id":"1","usage":null,"timings":{"a":1.5},'),
    ],
    ids=["CRLF", "no space", "spaces in JSON", "comments", "named events", "other fields"],
)
def test_other_sse_spellings_are_read(change: Any) -> None:
    pieces = [change(piece) for piece in VLLM]
    told = read(*pieces, keep_text=True)
    assert told.record.tokens == [0.0, 2.0, 3.0]
    assert told.text == " a b c"
    assert (told.record.outcome, told.record.output_tokens) == (Outcome.COMPLETED, 3)


@pytest.mark.parametrize(
    "junk", [b"data: {\n\n", b"data: 7\n\n", b'data: "x"\n\n', b"data: \xff\n\n", b"data:\n\n", b"x\n"]
)
def test_unreadable_events_are_skipped(junk: bytes) -> None:
    assert read(junk, *VLLM).record.tokens == [1.0, 3.0, 4.0]


def test_an_unterminated_last_line_is_read() -> None:
    record = read(ROLE, content("a"), chunk({"content": "b"}, "length").rstrip()).record
    assert (record.tokens, record.outcome) == ([0.0, 3.0], Outcome.COMPLETED)


def test_an_unstreamed_answer_is_one_token() -> None:
    body = {
        "choices": [{"message": {"role": "assistant", "content": "hi there"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    data = json.dumps(body).encode()
    told = read(data[:9], data[9:], headers=JSON, keep_text=True)
    record = told.record
    assert (record.tokens, record.outcome, told.text) == ([2.0], Outcome.COMPLETED, "hi there")
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (7, 3, None)


# What the server tells


def test_the_servers_token_counts_are_read() -> None:
    record = read(*VLLM).record
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (17, 3, 16)


def test_the_last_of_several_counts_is_used() -> None:
    """vLLM's continuous_usage_stats."""
    pieces = [chunk({"content": "a"}, usage={"prompt_tokens": 9, "completion_tokens": made}) for made in (1, 2, 3)]
    record = read(*pieces, DONE).record
    assert (record.output_tokens, record.tokens) == (3, [0.0, 1.0, 2.0])


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "x"}, [], 7])
def test_invalid_counts_are_ignored(usage: object) -> None:
    record = read(ROLE, content("a"), event({"choices": [], "usage": usage}), DONE).record
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == (Outcome.COMPLETED, None, None)


@pytest.mark.parametrize(
    ("header", "pieces", "queue"),
    [
        (None, VLLM[:4], None),
        (b"1500", VLLM[:4], 1.5),
        (None, VLLM, 0.25),
        (b"1500", VLLM, 1.75),
        (b"soon", VLLM[:4], None),
    ],
)
def test_the_servers_queue_times_are_added_up(
    header: bytes | None, pieces: tuple[bytes, ...], queue: float | None
) -> None:
    headers = SSE if header is None else {**SSE, b"x-fairlane-queue-ms": header}
    assert read(*pieces, headers=headers).record.queue == queue
    doubled = read(*pieces, headers=headers, speed=2.0).record.queue
    assert doubled == (None if queue is None else 2 * queue)


@pytest.mark.parametrize("metrics", [None, [], {}, {"queue_time_ms": None}, {"queue_time_ms": "x"}])
def test_invalid_metrics_are_ignored(metrics: object) -> None:
    record = read(ROLE, content("a"), event({"choices": [], "metrics": metrics}), DONE).record
    assert (record.outcome, record.queue) == (Outcome.COMPLETED, None)


def test_text_is_kept_only_on_request() -> None:
    assert read(*VLLM).text == ""
    assert read(*VLLM, keep_text=True).text == " a b c"


def test_only_the_answers_text_is_kept_without_reasoning() -> None:
    pieces = [ROLE, chunk({"reasoning": "hm"}), content("é"), chunk({"content": [1]}), content("!"), DONE]
    assert read(*pieces, keep_text=True).text == "é!"


# How it ended


@pytest.mark.parametrize("pieces", [VLLM, VLLM[:5], (*VLLM[:3], DONE)], ids=["both", "finish_reason", "[DONE]"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_with_done_is_complete(pieces: tuple[bytes, ...], whole: bool) -> None:
    record = read(*pieces, whole=whole).record
    assert (record.outcome, record.detail) == (Outcome.COMPLETED, "")


@pytest.mark.parametrize("pieces", [(), (ROLE,), VLLM[:3]])
def test_a_truncated_answer_is_incomplete(pieces: tuple[bytes, ...]) -> None:
    record = read(*pieces, whole=False).record
    assert record.outcome is Outcome.DISCONNECTED
    assert len(record.tokens) == len(pieces[1:]) or pieces == (ROLE,)


def test_an_answer_without_done_is_incomplete() -> None:
    assert read(*VLLM[:3], whole=True).record.outcome is Outcome.DISCONNECTED


@pytest.mark.parametrize("pieces", [(), (DONE,), (USAGE, DONE), (b"<html>hello</html>",)])
def test_a_stream_with_only_done_is_no_answer(pieces: tuple[bytes, ...]) -> None:
    assert read(*pieces).record.outcome is Outcome.STREAM_ERROR


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        ({"message": "The engine broke off.", "type": "server_error", "code": "bad_upstream"}, "bad_upstream"),
        ({"message": "EngineDead", "type": "InternalServerError", "code": 500}, "EngineDead"),
        ({"type": "InternalServerError", "code": 500}, "InternalServerError"),
        ("out of\n memory", "out of memory"),
        ({"message": "x" * 1000}, "x" * 120),
    ],
)
def test_an_error_event_is_read(error: object, detail: str) -> None:
    record = read(*VLLM[:3], event({"error": error}), DONE).record
    assert (record.outcome, record.detail) == (Outcome.STREAM_ERROR, detail)
    assert record.tokens == [0.0, 2.0]


def test_an_error_event_of_sglang_is_read() -> None:
    record = read(event({"object": "error", "message": "too long", "code": 400}), DONE).record
    assert (record.outcome, record.detail) == (Outcome.STREAM_ERROR, "too long")


def test_an_error_in_an_unstreamed_answer_is_read() -> None:
    record = read(b'{"error": {"message": "no"}}', headers=JSON).record
    assert (record.outcome, record.detail, record.tokens) == (Outcome.STREAM_ERROR, "no", [])


def test_an_unreadable_unstreamed_answer_is_a_failure() -> None:
    assert read(b"{", headers=JSON).record.outcome is Outcome.STREAM_ERROR
    assert read(b"{", headers=JSON, whole=False).record.outcome is Outcome.DISCONNECTED


@pytest.mark.parametrize(
    ("status", "body", "outcome", "detail"),
    [
        (429, {"error": {"message": "Wait.", "code": "queue_full"}}, Outcome.REJECTED, "queue_full"),
        (503, {"error": {"message": "The engine is busy", "code": 503}}, Outcome.UNAVAILABLE, "The engine is busy"),
        (503, {"error": "The model is scaling"}, Outcome.UNAVAILABLE, "The model is scaling"),
        (400, {"error": {"message": "Too long.", "code": 400}}, Outcome.HTTP_ERROR, "400 Too long."),
        (404, {"error": {"message": "No.", "code": "model_not_found"}}, Outcome.HTTP_ERROR, "404 model_not_found"),
        (401, {"detail": "Who are you?"}, Outcome.HTTP_ERROR, "401 Who are you?"),
        (422, [1], Outcome.HTTP_ERROR, "422 [1]"),
        (500, b"Internal Server Error", Outcome.HTTP_ERROR, "500 Internal Server Error"),
        (502, b"\xff", Outcome.HTTP_ERROR, "502 \ufffd"),
        (301, b"", Outcome.HTTP_ERROR, "301"),
        (204, b"", Outcome.HTTP_ERROR, "204"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_refusal_has_its_status_and_reason(
    status: int, body: object, outcome: Outcome, detail: str, whole: bool
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    record = read(data[:4], data[4:], status=status, headers=JSON, whole=whole).record
    assert (record.outcome, record.detail, record.tokens) == (outcome, detail, [])


def test_an_empty_stream_is_a_failure() -> None:
    told = answer()
    told.end(1.0, whole=False)
    assert told.record.outcome is Outcome.DISCONNECTED
