"""`/v1/responses`.

API: https://platform.openai.com/docs/api-reference/responses, and vLLM's responses/protocol.py.
"""

from typing import Any

import msgspec

from gateway.api.base import DECODE_ERRORS, NO_EVENT, AnswerEvent, Api, InferenceRequest, decode, decode_optional
from gateway.api.conversation import Turn, opening, read_messages, seed, session
from gateway.api.errors import RESPONSES as RESPONSES_ERRORS
from gateway.errors import BadRequest
from gateway.pricing.prompt import Prompt, PromptReader
from gateway.pricing.usage import EngineTimes, PromptDetails, Usage


class _Ask(msgspec.Struct):
    input: str | list[Any]
    instructions: str | None = None
    previous_input_messages: msgspec.Raw = msgspec.Raw()
    model: str | None = None
    stream: bool | None = None
    background: bool | None = None
    max_output_tokens: int | None = None
    user: str | None = None
    truncation: str | None = None
    cache_salt: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()


_ASK = msgspec.json.Decoder(_Ask, strict=False)


def parse(body: bytes, content_type: bytes = b"") -> InferenceRequest:
    """What `previous_response_id` stands for is in the engine alone, and priced at nothing."""
    ask: _Ask = decode(_ASK, body)
    if ask.background:
        # Its work would go on after the answer, and with it the permit is gone.
        raise BadRequest("background: true is not served here, for such work cannot be queued.", param="background")
    turns = _turns(ask)
    return InferenceRequest(
        api="responses",
        body=body,
        model=ask.model,
        prompts=(_prompt(ask),),
        stream=bool(ask.stream),
        max_tokens=ask.max_output_tokens,
        user=ask.user,
        truncatable=ask.truncation not in (None, "disabled"),
        session=session(turns),
        opening=opening(turns[-1][1]) if turns else "",
    )


def _turns(ask: _Ask) -> list[Turn]:
    if isinstance(ask.input, str):
        return [("user", ask.input)]
    return [(item.get("role"), item.get("content")) for item in ask.input if isinstance(item, dict)]


def _prompt(ask: _Ask) -> Prompt:
    reader = PromptReader(seed(ask.model, ask.cache_salt, ask.chat_template_kwargs))
    for raw in (ask.tools, ask.previous_input_messages):
        if raw:
            reader.text(bytes(raw))
            reader.mark_prefix()
    if ask.instructions:
        read_messages(reader, [{"role": "system", "content": ask.instructions}])
    read_messages(reader, [{"role": "user", "content": ask.input}] if isinstance(ask.input, str) else ask.input)
    return reader.prompt()


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int
    output_tokens: int | None = None
    input_tokens_details: _CachedTokens | None = None


class _Response(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    metrics: msgspec.Raw = msgspec.Raw()


class _Event(_Response):
    type: str | None = None
    response: _Response | None = None


_EVENT = msgspec.json.Decoder(_Event)
_USAGE = msgspec.json.Decoder(_Usage | None)
_TIMES = msgspec.json.Decoder(EngineTimes | None)
_NULL = msgspec.Raw(b"null")

# These come before any token does. All others tell of output.
_BEFORE = {"response.created", "response.queued", "response.in_progress"}


def read(data: bytes) -> AnswerEvent:
    """An event; or a response object, whose own usage is where the last event has the response's."""
    try:
        event = _EVENT.decode(data)
    except DECODE_ERRORS:
        return NO_EVENT
    stated = event.response or event
    failed = event.type in ("error", "response.failed") or any(
        each.error and each.error != _NULL for each in (event, stated)
    )
    begun = bool(event.type) and event.type not in _BEFORE and not failed
    return AnswerEvent((0,) if begun else (), _usage(stated), decode_optional(_TIMES, stated.metrics), failed)


def _usage(response: _Response) -> Usage | None:
    usage = decode_optional(_USAGE, response.usage)
    if usage is None:
        return None
    details = usage.input_tokens_details
    return Usage(usage.input_tokens, usage.output_tokens, PromptDetails(details.cached_tokens) if details else None)


RESPONSES = Api("chat", parse, read, RESPONSES_ERRORS)
