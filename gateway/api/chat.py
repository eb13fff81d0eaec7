"""`/v1/chat/completions`.

API: https://platform.openai.com/docs/api-reference/chat, and vLLM's chat_completion/protocol.py.
"""

from typing import Annotated, Any

import msgspec

from gateway.api.base import Api, InferenceRequest, decode, utf8
from gateway.api.conversation import opening, read_content, seed, session
from gateway.api.openai import Options, ask_for_usage, read
from gateway.pricing.prompt import Prompt, PromptReader


class _Message(msgspec.Struct):
    role: Any = None
    # Parts stay untyped: what is not text has many shapes, and none of them is ours to refuse.
    content: str | list[str | dict[str, Any]] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Chat(Options, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    tools: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()


# Not strict: what vLLM's pydantic takes for a number or a flag ("16", 16.0, 1) is taken here too.
_CHAT = msgspec.json.Decoder(_Chat, strict=False)


def parse(body: bytes, content_type: bytes = b"") -> InferenceRequest:
    chat: _Chat = decode(_CHAT, body)
    return InferenceRequest(
        api="chat",
        body=ask_for_usage(body) if chat.lacks_usage else body,
        model=chat.model,
        prompts=(_prompt(chat),),
        n=chat.n or 1,
        stream=bool(chat.stream),
        drop_usage=chat.lacks_usage,
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        user=chat.user,
        truncatable=chat.truncatable,
        session=session([(message.role, message.content) for message in chat.messages]),
        opening=opening(chat.messages[-1].content),
    )


def _prompt(chat: _Chat) -> Prompt:
    """In the order in which templates render it: tools come first."""
    reader = PromptReader(seed(chat.model, chat.cache_salt, chat.chat_template_kwargs))
    if chat.tools:
        reader.text(bytes(chat.tools))
        reader.mark_prefix()
    for message in chat.messages:
        reader.role(message.role if isinstance(message.role, str) else "")
        for text in (message.reasoning, message.reasoning_content):
            reader.text(utf8(text or ""))
        read_content(reader, message.content)
        reader.text(bytes(message.tool_calls))
        reader.mark_prefix()
    return reader.prompt()


CHAT = Api("chat", parse, read, tokenized=True)
