"""What the tokenizers count is what a real vLLM says that it read, to the token."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import tokenizers

from gateway.api.routes import QUEUED
from gateway.engine.client import EngineClient
from gateway.tokenizers.engine import EngineTokenizer
from gateway.tokenizers.local import LocalTokenizer
from tests.support.tiny_model import START, words
from tests.support.vllm import FLAGS, MODEL, Vllm, run_vllm

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
APIS = {route.path: route.api for route in QUEUED}

# Shows all that a request can give a template, so that whatever is not carried is missing in the count.
TEMPLATE = """\
{{ bos_token }}
{%- if tools %}
tools {{ tools | tojson }}
{%- endif %}
{%- for document in documents or [] %}
document {{ document.title }} {{ document | tojson(indent=1) }}
{%- endfor %}
{%- if reasoning_effort is defined %} effort {{ reasoning_effort }}{% endif %}
{%- if enable_thinking is defined %} {{ 'thinks' if enable_thinking else 'answers at once' }}{% endif %}
{%- if mood is defined %} mood {{ mood | tojson }}{% endif %}
{%- for message in messages %}
<|start|>{{ message.role }} {{ message.name }} {{ message.tool_call_id }}
    {%- if message.reasoning_content %} thought {{ message.reasoning_content }}{% endif %}
    {%- if message.role == 'assistant' %}
{% generation %}{{ message.content }}{% endgeneration %}
    {%- else %}
{{ message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
call {{ call.function.name }} {{ call.function.arguments | tojson }}
        {%- if loop.index > 2 %}{% break %}{% endif %}
    {%- endfor %}
<|end|>
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}
"""

# Goes through the parts itself.
PARTS_TEMPLATE = """\
{%- for message in messages %}<|start|>{{ message.role }}
    {%- for part in message['content'] %}|{{ part | tojson }}{% endfor %}<|end|>
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """vLLM with the templates above, the second one where a request brings it; texts begin with a special token."""
    folder = tmp_path_factory.mktemp("vllm-tokenizer")
    with run_vllm(folder, *FLAGS, "--trust-request-chat-template", change=_begin_with_a_token) as server:
        yield server


def _begin_with_a_token(model: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    begin = (START, tokenizer.token_to_id(START))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(f"{START} $A", None, [begin])
    tokenizer.save(str(model / "tokenizer.json"))


@pytest.fixture(scope="module")
def local(server: Vllm) -> LocalTokenizer:
    return LocalTokenizer(server.folder)


def usage(server: Vllm, route: str, body: dict[str, Any]) -> int:
    """What the engine says of the prompt, when it has read it."""
    answer = httpx.post(f"{server.url}{route}", json={"max_tokens": 1, **body}, timeout=60, trust_env=False)
    assert answer.is_success, answer.text
    tokens: int = answer.json()["usage"]["prompt_tokens"]
    return tokens


def asked(server: Vllm, route: str, body: dict[str, Any]) -> int | None:
    async def count() -> int | None:
        upstream = EngineClient(server.url)
        try:
            return await EngineTokenizer(upstream).count(APIS[route].parse(json.dumps(body).encode()))
        finally:
            await upstream.aclose()

    return anyio.run(count)


def counted(local: LocalTokenizer, route: str, body: dict[str, Any]) -> int | None:
    return anyio.run(local.count, APIS[route].parse(json.dumps(body).encode()))


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


WEATHER = {
    "type": "function",
    "function": {
        "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "minLength": 1}}},
        "name": "weather",
        "unknown": "to vLLM",
    },
}
TIME = {"type": "function", "function": {"name": "time", "description": "What <time> it is – now"}}
TURNS = [
    {"role": "system", "content": "Be brief – and kind to <everybody>."},
    user("What is the weather?"),
    {"role": "assistant", "content": "Where?", "name": "helper"},
    user(" In Tromsø,\n please. "),
]
CALLED = [
    user("What is the weather?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Tromsø"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": "{broken"}},
            {"id": "call_3", "type": "function", "function": {"name": "time", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "snow"}]},
    {"role": "tool", "tool_call_id": "call_2", "content": "no such city"},
]
PARTS = [user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]), {"role": "assistant", "content": ""}]
ENDS = [user("Say it."), {"role": "assistant", "content": "It is said, and "}]
THOUGHT = {"role": "assistant", "content": "No.", "reasoning_content": "They want to know whether it snows."}
DOCUMENTS = [{"title": "One", "text": words(5, 1)}, {"title": "Two", "text": words(9, 2)}]

CHATS: dict[str, dict[str, Any]] = {
    "one message": {"messages": [user("hello")]},
    "model": {"messages": [user("hello")], "model": MODEL},
    "system and turns": {"messages": TURNS},
    "25 kB": {"messages": [user(words(5000, 3))]},
    "tools": {"messages": TURNS, "tools": [WEATHER, TIME]},
    "tools, and none chosen": {"messages": TURNS, "tools": [WEATHER], "tool_choice": "auto"},
    "tools called": {"messages": CALLED, "tools": [WEATHER, TIME]},
    "parts": {"messages": PARTS},
    "reasoning": {"messages": [user("Snow?"), {**THOUGHT, "reasoning": "Other thoughts."}, user("Why?")]},
    "reasoning_content": {"messages": [user("Snow?"), THOUGHT, user("Why?")]},
    "documents": {"messages": TURNS, "documents": DOCUMENTS},
    "effort": {"messages": TURNS, "reasoning_effort": "high"},
    "no effort": {"messages": TURNS, "reasoning_effort": "none"},
    "effort and thinking": {
        "messages": TURNS,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "kwargs": {"messages": TURNS, "chat_template_kwargs": {"mood": {"glad": True}, "enable_thinking": None}},
    "kwargs below fields": {
        "messages": TURNS,
        "chat_template_kwargs": {"reasoning_effort": "of the kwargs", "documents": []},
        "reasoning_effort": "low",
        "documents": DOCUMENTS,
    },
    "kwargs alone": {"messages": TURNS, "chat_template_kwargs": {"reasoning_effort": "x", "documents": DOCUMENTS}},
    "no generation prompt": {"messages": TURNS, "add_generation_prompt": False},
    "continued": {"messages": ENDS, "add_generation_prompt": False, "continue_final_message": True},
    "special tokens": {"messages": TURNS, "add_special_tokens": True},
    "nulls": {"messages": TURNS, "tools": None, "documents": None, "chat_template_kwargs": None, "model": None},
    "what does not matter": {"messages": TURNS, "temperature": 0.5, "n": 2, "user": "anna", "stop": ["x"]},
}

TEXTS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Once upon a time – "},
    "no special tokens": {"prompt": "Once", "add_special_tokens": False},
    "texts": {"prompt": ["Once", " upon a time", words(40, 4)], "n": 2},
    "ids": {"prompt": [5, 6, 7]},
    "lists of ids": {"prompt": [[5, 6, 7], [8]]},
}


@pytest.mark.parametrize("name", CHATS)
def test_chats_are_counted_like_vllm(server: Vllm, local: LocalTokenizer, name: str) -> None:
    body = CHATS[name]
    tokens = usage(server, CHAT, body)
    assert asked(server, CHAT, body) == tokens
    assert counted(local, CHAT, body) == tokens


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_counted_like_vllm(server: Vllm, local: LocalTokenizer, name: str) -> None:
    body = TEXTS[name]
    tokens = usage(server, TEXT, body)
    assert asked(server, TEXT, body) == tokens
    assert counted(local, TEXT, body) == tokens


@pytest.mark.parametrize("name", ["parts", "system and turns", "tools called", "continued"])
def test_a_template_that_accepts_content_parts_is_counted_like_vllm(server: Vllm, tmp_path: Path, name: str) -> None:
    body = {**CHATS[name], "chat_template": PARTS_TEMPLATE}
    tokens = usage(server, CHAT, body)
    assert asked(server, CHAT, body) == tokens
    (tmp_path / "tokenizer.json").write_bytes((server.folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(PARTS_TEMPLATE)
    assert counted(LocalTokenizer(tmp_path), CHAT, CHATS[name]) == tokens
    assert counted(LocalTokenizer(server.folder), CHAT, body) is None  # a client's program does not run here


def test_an_unknown_model_does_not_end_the_counting(server: Vllm) -> None:
    async def count() -> list[int | None]:
        upstream = EngineClient(server.url)
        tokenizer = EngineTokenizer(upstream)
        try:
            bodies = [{"messages": [user("hello")], "model": model} for model in ("unknown", MODEL)]
            return [await tokenizer.count(APIS[CHAT].parse(json.dumps(body).encode())) for body in bodies]
        finally:
            await upstream.aclose()

    assert anyio.run(count) == [None, usage(server, CHAT, CHATS["one message"])]


def test_a_refused_prompt_has_no_count(server: Vllm) -> None:
    """vLLM answers 400 to both."""
    body = {"messages": ENDS, "add_generation_prompt": True, "continue_final_message": True}
    assert httpx.post(f"{server.url}{CHAT}", json=body, timeout=60, trust_env=False).status_code == 400
    assert asked(server, CHAT, body) is None
