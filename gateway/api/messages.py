"""`/v1/messages`, Anthropic's.

API: https://docs.anthropic.com/en/api/messages, and vLLM's anthropic/protocol.py.
"""

from typing import Annotated, Any

import msgspec

from gateway.api.base import DECODE_ERRORS, NO_EVENT, AnswerEvent, Api, InferenceRequest, decode, decode_optional
from gateway.api.conversation import opening, read_messages, seed, session
from gateway.api.errors import ANTHROPIC
from gateway.pricing.prompt import Prompt, PromptReader
from gateway.pricing.usage import PromptDetails, Usage


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Ask(msgspec.Struct):
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    system: str | list[Any] | None = None
    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    metadata: _Metadata | None = None
    cache_salt: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()


_ASK = msgspec.json.Decoder(_Ask, strict=False)


def parse(body: bytes, content_type: bytes = b"") -> InferenceRequest:
    ask: _Ask = decode(_ASK, body)
    return InferenceRequest(
        api="messages",
        body=body,
        model=ask.model,
        prompts=(_prompt(ask),),
        stream=bool(ask.stream),
        max_tokens=ask.max_tokens,
        user=ask.metadata.user_id if ask.metadata else None,
        session=session([(message.get("role"), message.get("content")) for message in ask.messages]),
        opening=opening(ask.messages[-1].get("content")),
    )


def _prompt(ask: _Ask) -> Prompt:
    reader = PromptReader(seed(ask.model, ask.cache_salt, ask.chat_template_kwargs))
    if ask.tools:
        reader.text(bytes(ask.tools))
        reader.mark_prefix()
    if ask.system is not None:
        read_messages(reader, [{"role": "system", "content": ask.system}])
    read_messages(reader, ask.messages)
    return reader.prompt()


class _Usage(msgspec.Struct):
    input_tokens: int
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Message(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()


class _Event(_Message):
    type: str | None = None
    message: _Message | None = None


_EVENT = msgspec.json.Decoder(_Event)
_USAGE = msgspec.json.Decoder(_Usage | None)

# vLLM makes `message_start` of its first chunk, which it has when it has the first token. A block opens later, where
# a reasoning parser keeps tokens to itself.
_BEGUN = {"message_start", "content_block_start", "content_block_delta"}


def read(data: bytes) -> AnswerEvent:
    """An event, or a whole message, which has its usage itself. `message_delta` states the usage of all."""
    try:
        event = _EVENT.decode(data)
    except DECODE_ERRORS:
        return NO_EVENT
    return AnswerEvent(
        (0,) if event.type in _BEGUN else (), _usage(event.message or event), failed=event.type == "error"
    )


def _usage(message: _Message) -> Usage | None:
    """What Anthropic calls input is what was neither read from a cache nor written into one."""
    usage = decode_optional(_USAGE, message.usage)
    if usage is None:
        return None
    cached, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    total = usage.input_tokens + (cached or 0) + (written or 0)
    return Usage(total, usage.output_tokens, None if cached is None else PromptDetails(cached))


MESSAGES = Api("chat", parse, read, ANTHROPIC)
