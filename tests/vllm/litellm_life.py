"""litellm's usual life, told as one line of JSON; run by the Python of an environment that has it.

litellm_life.py BASE_URL POOLING_BASE_URL TOOL    a day of it
litellm_life.py BASE_URL                          one question, when a line is read, asked until it is answered
"""

import importlib
import json
import sys
from typing import Any

# Absent from the development environment.
litellm: Any = importlib.import_module("litellm")

WHY = [{"role": "user", "content": "Why?"}]
base_url, *more = sys.argv[1:]
at: dict[str, Any] = {"model": "openai/tiny", "api_base": base_url, "api_key": "-", "messages": WHY}


def failing(**options: Any) -> str:
    try:
        litellm.completion(**{**at, "max_retries": 0, **options})
    except Exception as error:  # their name is what is asked for
        return type(error).__name__
    return "none"


def day(pooling_url: str, tool: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    schema = tool["function"]["parameters"]
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    say = {"type": "function", "function": {"name": tool["function"]["name"]}}
    chunks = list(litellm.completion(**at, **options, stream=True, stream_options={"include_usage": True}))
    called = litellm.completion(**at, max_tokens=600, tools=[tool], tool_choice=say)
    message = litellm.anthropic_messages if hasattr(litellm, "anthropic_messages") else litellm.anthropic.messages
    return {
        "whole": litellm.completion(**at, **options).choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usage": next(chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)),
        "tool": called.choices[0].message.tool_calls[0].function.arguments,
        "shape": litellm.completion(**at, max_tokens=60, response_format=shape).choices[0].message.content,
        "embeddings": [
            len(each["embedding"])
            for each in litellm.embedding(
                "openai/tiny", ["Why?", "Who?"], api_base=pooling_url, api_key="-", encoding_format="float"
            ).data
        ],
        "anthropics": bool(message),
        "responds": litellm.responses(
            model="openai/tiny", input="Why?", max_output_tokens=8, api_base=base_url, api_key="-"
        ).status,
        "errors": [
            failing(model="openai/nobody"),
            failing(temperature=9),
            failing(timeout=0.3, max_tokens=2000, extra_body={"ignore_eos": True}),
        ],
    }


def once() -> dict[str, Any]:
    litellm.completion(**at, max_tokens=1)  # the first one takes seconds: it loads what litellm has not loaded yet
    print("ready", flush=True)
    input()
    return {"came again": litellm.completion(**at, max_tokens=3, max_retries=5).choices[0].finish_reason}


print(json.dumps(day(more[0], json.loads(more[1])) if more else once()))
