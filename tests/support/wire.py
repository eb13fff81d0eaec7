"""What clients and engines send: a chat request, and the events of a streamed answer as vLLM writes them."""

import json
from typing import Any

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}


def sse(event: object) -> bytes:
    """One event, as vLLM writes it."""
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def token(text: str = "word", index: int = 0) -> bytes:
    """A chunk of a chat answer."""
    choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
    return sse({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})


def usage(prompt_tokens: int = 7, completion_tokens: int = 3) -> bytes:
    """The chunk that vLLM sends last when `include_usage` is on."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return sse({"id": "chatcmpl-1", "choices": [], "usage": counts})


DONE = b"data: [DONE]\n\n"
