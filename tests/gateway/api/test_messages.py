"""Anthropic's messages API: what counts as the prompt, and what the events mean."""

import json
from typing import Any

import pytest

from gateway.api.base import AnswerEvent, InferenceRequest
from gateway.api.conversation import MEDIA_TOKENS
from gateway.api.messages import MESSAGES
from gateway.errors import BadRequest
from gateway.pricing.prompt import PromptSize
from gateway.pricing.usage import PromptDetails, Usage


def parse(**fields: Any) -> InferenceRequest:
    return MESSAGES.parse(json.dumps({"max_tokens": 5, **fields}).encode())


def size(*contents: Any, **fields: Any) -> PromptSize:
    (prompt,) = parse(messages=[{"role": "user", "content": each} for each in contents], **fields).prompts
    return prompt.size


def said(**event: Any) -> AnswerEvent:
    return MESSAGES.read(json.dumps(event).encode())


def test_system_and_messages_are_the_prompt() -> None:
    assert size("abc") == PromptSize(words=3, messages=1)
    assert size("abc", [{"type": "text", "text": "de"}], system="f") == PromptSize(words=6, messages=3)
    assert size("abc", system=[{"type": "text", "text": "de"}]) == PromptSize(words=5, messages=2)


def test_tool_inputs_and_results_count_as_text() -> None:
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    assert size("a", tools=tools).text_bytes == 1 + len(json.dumps(tools))
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "y"}}
    assert size([call]).text_bytes == len(json.dumps(call, separators=(",", ":")))
    for content in ("abc", [{"type": "text", "text": "abc"}]):
        assert size([{"type": "tool_result", "tool_use_id": "1", "content": content}]).words == 3
    assert size([{"type": "thinking", "thinking": "abc", "signature": "xyz"}]).words == 3


def test_an_image_counts_a_constant_even_inside_a_tool_result() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "A" * 9999}}
    assert size([image]) == PromptSize(messages=1, tokens=MEDIA_TOKENS)
    assert size([{"type": "tool_result", "content": [image, "ab"]}]) == PromptSize(2, messages=1, tokens=MEDIA_TOKENS)


def test_nested_tool_results_are_followed_to_a_bounded_depth() -> None:
    inner: Any = "abc"
    for _ in range(300):
        inner = [{"type": "tool_result", "content": inner}]
    assert size(inner) == PromptSize(messages=1, tokens=MEDIA_TOKENS)


def test_other_fields_are_read() -> None:
    request = parse(messages=[{"role": "user", "content": "a"}], stream=True, model="m", metadata={"user_id": "ann"})
    assert (request.seats, request.stream, request.drop_usage, request.model) == (1, True, False, "m")
    assert (request.max_tokens, request.user) == (5, "ann")


def test_the_body_is_forwarded_unchanged() -> None:
    body = b'{ "messages":[{"content" : "a"}],"stream": true , "x":1.50}\n'
    assert MESSAGES.parse(body).body is body


def test_each_turn_shares_its_prefix_names_with_the_previous_turn() -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    (before,), (after,) = parse(messages=turns[:1], system="x").prompts, parse(messages=turns, system="x").prompts
    assert [prefix.digest for prefix in before.prefixes] == [prefix.digest for prefix in after.prefixes[:2]]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"messages": []}', b'{"messages": "a"}', b'{"messages": ["a"]}'])
def test_an_invalid_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        MESSAGES.parse(body)


# What it answers.


def test_a_message_begins_with_its_start() -> None:
    usage = {"input_tokens": 9, "output_tokens": 0}
    assert said(type="message_start", message={"usage": usage}) == AnswerEvent((0,), Usage(9, 0))
    assert said(type="content_block_start", index=0, content_block={"type": "text", "text": ""}).begun
    assert said(type="content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "a"}).begun
    assert not said(type="ping").begun


def test_input_tokens_are_what_was_not_cached() -> None:
    usage = {"input_tokens": 9, "output_tokens": 4, "cache_read_input_tokens": 32, "cache_creation_input_tokens": 1}
    expected = Usage(42, 4, PromptDetails(32))
    assert said(type="message_delta", delta={"stop_reason": "end_turn"}, usage=usage) == AnswerEvent(usage=expected)
    assert said(type="message", content=[], usage=usage) == AnswerEvent(usage=expected)
    assert said(type="message", usage={"input_tokens": 9}).usage == Usage(9)


def test_an_error_event_is_recognised() -> None:
    assert said(type="error", error={"type": "overloaded_error", "message": ""}) == AnswerEvent(failed=True)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b'{"type": 5}', b'{"usage": 5}', b'{"usage": {"input_tokens": "a"}}']
)
def test_unknown_events_are_ignored(data: bytes) -> None:
    assert MESSAGES.read(data) == AnswerEvent()
