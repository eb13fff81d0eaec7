"""A conversation into a prompt, in the order in which templates render it."""

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.api.base import utf8
from gateway.prompt import Prompt, PromptReader

# What a part that is no text (an image, a sound) costs in prompt tokens, whatever its size: Gemma's encoder makes 256
# of an image. Its base64 is never counted, and what is behind its URL never fetched.
MEDIA_TOKENS = 256


def seed(model: str | None, *more: msgspec.Raw) -> tuple[bytes, ...]:
    """What keeps equal texts apart in the engine's cache: the model, for it may name an adapter, and the salt."""
    return utf8(model or ""), *map(bytes, more)


def read_content(reader: PromptReader, content: Any) -> None:
    """A text, or parts of one."""
    for part in content if isinstance(content, list) else () if content is None else (content,):
        _read_part(reader, part)


def _read_part(reader: PromptReader, part: Any, within: bool = False) -> None:
    """What a tool was called with, and what it answered, is text to the model too. Results are not in results."""
    match part:
        case str(text) | {"text": str(text)} | {"refusal": str(text)} | {"thinking": str(text)}:
            reader.text(utf8(text))
        case {"type": "tool_result", "content": str(text)}:
            reader.text(utf8(text))
        case {"type": "tool_result", "content": list(parts)} if not within:
            for each in parts:
                _read_part(reader, each, within=True)
        case {"type": "tool_use" | "tool_reference" | "tool_addition" | "tool_removal" | "redacted_thinking"}:
            reader.text(msgspec.json.encode(part))
        case _:
            reader.media(msgspec.json.encode(part), MEDIA_TOKENS)


def read_messages(reader: PromptReader, messages: Iterable[Any]) -> None:
    """Messages that nobody has typed: a role and content each, or whatever they are."""
    for message in messages:
        if isinstance(message, dict) and "content" in message:
            reader.role(str(message.get("role", "")))
            read_content(reader, message["content"])
        else:
            reader.role("")
            reader.text(msgspec.json.encode(message))
        reader.link()


def text_prompt(text: bytes) -> Prompt:
    """A prompt of which nothing is known but its size."""
    reader = PromptReader()
    reader.text(text)
    return Prompt(reader.prompt().size)


__all__ = ["MEDIA_TOKENS", "read_content", "read_messages", "seed", "text_prompt"]
