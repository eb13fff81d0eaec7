"""Requests to the tiny model that the tests' vLLM serves."""

from typing import Any

JSON = {"Content-Type": "application/json"}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TIMEOUT = 60.0  # seconds
BROKEN = "Bad Request"  # what FastAPI and pydantic refuse


def chat(prompt: str = " baba", **fields: Any) -> dict[str, Any]:
    """A chat request; the random model ends an answer at any token, unless it is told to ignore the end."""
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 3,
        "ignore_eos": True,
    } | fields


def completion(prompt: Any = " baba", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": 3, "ignore_eos": True} | fields
