"""OpenAI's responses API: what counts as the prompt, and what the events mean."""

import json
from typing import Any

import pytest

from gateway.api.base import AnswerEvent, InferenceRequest
from gateway.api.conversation import MEDIA_TOKENS
from gateway.api.responses import RESPONSES
from gateway.errors import BadRequest
from gateway.pricing.prompt import PromptSize
from gateway.pricing.usage import EngineTimes, PromptDetails, Usage


def parse(given: Any, **fields: Any) -> InferenceRequest:
    return RESPONSES.parse(json.dumps({"input": given, **fields}).encode())


def size(given: Any, **fields: Any) -> PromptSize:
    (prompt,) = parse(given, **fields).prompts
    return prompt.size


def said(**event: Any) -> AnswerEvent:
    return RESPONSES.read(json.dumps(event).encode())


def test_text_and_items_are_read_as_the_prompt() -> None:
    assert size("abc") == PromptSize(words=3, messages=1)
    assert size("abc", instructions="de") == PromptSize(words=5, messages=2)
    assert size([{"role": "user", "content": "abc"}]) == PromptSize(words=3, messages=1)
    parts = [{"type": "input_text", "text": "abc"}, {"type": "input_image", "image_url": "data:,a"}]
    assert size([{"type": "message", "role": "user", "content": parts}]) == PromptSize(
        3, messages=1, tokens=MEDIA_TOKENS
    )


def test_tools_and_function_items_count_as_their_json_text() -> None:
    tools = [{"type": "function", "name": "f"}]
    assert size("a", tools=tools).text_bytes == 1 + len(json.dumps(tools))
    assert size("a", previous_input_messages=["bc"]).words == 3
    for item in ({"type": "function_call", "arguments": "{}"}, {"type": "function_call_output", "output": "ok"}):
        assert size([item]).text_bytes == len(json.dumps(item, separators=(",", ":")))


def test_other_fields_are_read() -> None:
    request = parse("a", stream=True, model="m", user="ann", max_output_tokens=5)
    assert (request.seats, request.stream, request.drop_usage, request.model) == (1, True, False, "m")
    assert (request.max_tokens, request.user, request.truncatable) == (5, "ann", False)
    assert [parse("a", truncation=each).truncatable for each in (None, "disabled", "auto")] == [False, False, True]


def test_the_body_is_forwarded_unchanged() -> None:
    body = b'{ "input": "a","stream": true , "x":1.50, "background": false}\n'
    assert RESPONSES.parse(body).body is body


@pytest.mark.parametrize("background", [True, 1, "true"])
def test_background_responses_are_refused(background: Any) -> None:
    with pytest.raises(BadRequest, match="background") as refused:
        parse("a", background=background)
    assert refused.value.param == "background"


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"input": 5}', b'{"input": {}}', b'{"input": null}'])
def test_an_invalid_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        RESPONSES.parse(body)


# What it answers.


@pytest.mark.parametrize(
    ("kind", "begun"),
    [
        ("response.created", False),
        ("response.queued", False),
        ("response.in_progress", False),
        ("response.output_item.added", True),
        ("response.content_part.added", True),
        ("response.output_text.delta", True),
        ("response.reasoning_text.delta", True),
        ("response.function_call_arguments.delta", True),
        ("response.completed", True),
        ("response.failed", False),
        ("error", False),
    ],
)
def test_a_response_begins_with_its_output(kind: str, begun: bool) -> None:
    told = said(type=kind, response={"error": None, "usage": None})
    assert bool(told.begun) == begun
    assert told.failed == (kind in ("response.failed", "error"))


def test_usage_and_times_are_read_from_the_response() -> None:
    usage = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 3}}
    response = {"object": "response", "error": None, "usage": usage, "metrics": {"queue_time_ms": 5}}
    expected = Usage(9, 4, PromptDetails(3))
    assert said(type="response.completed", response=response) == AnswerEvent((0,), expected, EngineTimes(5))
    assert said(**response) == AnswerEvent((), expected, EngineTimes(5))
    assert said(usage={"input_tokens": 9, "input_tokens_details": None}).usage == Usage(9)


def test_an_error_event_is_recognised() -> None:
    assert said(type="error", code="x", message="y").failed
    assert said(error={"message": "x"}).failed
    assert said(type="response.completed", response={"error": {"code": "server_error"}}) == AnswerEvent(failed=True)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b'{"type": 5}', b'{"usage": 5}', b'{"usage": {"input_tokens": "a"}}']
)
def test_unknown_events_are_ignored(data: bytes) -> None:
    assert RESPONSES.read(data) == AnswerEvent()
