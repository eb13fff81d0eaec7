"""A conversation into a prompt, in the order in which templates render it."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from secrets import token_bytes
from typing import Any

import msgspec

from gateway.api.base import utf8
from gateway.pricing.prompt import Prompt, PromptReader
from gateway.types import OPENING_CHARS

# What a content part that is no text (an image, a sound) costs in prompt tokens, whatever its size: Gemma's encoder
# makes 256 of an image. Its base64 is never counted, and what is behind its URL never fetched.
MEDIA_TOKENS = 256

# So many characters at either end of a first message tell conversations apart; a pasted novel need not be hashed whole.
_SESSION_CHARS = 4096

# A session's name can be seen in the decision log. Without the key, which ends with the process, nobody can guess texts
# and compare.
_SESSION_KEY = token_bytes(16)

Turn = tuple[Any, Any]  # role and content, as the client wrote them


def seed(model: str | None, *more: msgspec.Raw) -> tuple[bytes, ...]:
    """What keeps equal texts apart in the engine's cache: the model, for it may name an adapter, and the salt."""
    return utf8(model or ""), *map(bytes, more)


def read_content(reader: PromptReader, content: Any) -> None:
    """A text, or parts of one."""
    for part in content if isinstance(content, list) else () if content is None else (content,):
        _read_content_part(reader, part)


def _read_content_part(reader: PromptReader, part: Any, within: bool = False) -> None:
    """What a tool was called with, and what it answered, is text to the model too. Results are not in results."""
    match part:
        case str(text) | {"text": str(text)} | {"refusal": str(text)} | {"thinking": str(text)}:
            reader.text(utf8(text))
        case {"type": "tool_result", "content": str(text)}:
            reader.text(utf8(text))
        case {"type": "tool_result", "content": list(parts)} if not within:
            for each in parts:
                _read_content_part(reader, each, within=True)
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
        reader.mark_prefix()


def session(turns: Sequence[Turn]) -> str:
    """A hash of the first thing that the user said, or of the first message if the user has said nothing. A system
    prompt tells nothing: all conversations with one program share it."""
    if not turns:
        return ""
    text = "".join(_texts(next((content for role, content in turns if role == "user"), turns[0][1])))
    if not text:
        return ""
    ends = utf8(f"{len(text)} {text[:_SESSION_CHARS]} {text[-_SESSION_CHARS:]}")
    return blake2b(ends, digest_size=8, key=_SESSION_KEY).hexdigest()


def opening(content: Any) -> str:
    """How a message begins."""
    return next(_texts(content), "")[:OPENING_CHARS].lstrip()


def _texts(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else (content,):
        match part:
            case str(text) | {"text": str(text)}:
                yield text


def text_prompt(text: bytes) -> Prompt:
    """A prompt of which nothing is known but its size."""
    reader = PromptReader()
    reader.text(text)
    return Prompt(reader.prompt().size)
