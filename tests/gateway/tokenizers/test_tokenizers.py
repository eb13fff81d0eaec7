"""Counting prompt tokens before the engine has the prompt."""

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import anyio.from_thread
import httpx
import pytest
import tokenizers
from anyio.from_thread import BlockingPortal
from anyio.lowlevel import checkpoint

from gateway.api.base import InferenceRequest
from gateway.api.chat import CHAT
from gateway.api.completions import COMPLETIONS
from gateway.engine.client import EngineClient
from gateway.tokenizers.engine import MAX_BODY_BYTES, RETRY_MISSING_S, BoundedTokenizer, EngineTokenizer, Ids
from gateway.tokenizers.fields import MAX_TEXTS
from gateway.tokenizers.local import LocalTokenizer
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.tiny_model import make_model, words
from tests.support.waiting import DEADLINE


def user(content: object = "hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def completion(body: dict[str, Any]) -> InferenceRequest:
    return (COMPLETIONS if "prompt" in body else CHAT).parse(json.dumps(body).encode())


def chat(*messages: dict[str, Any], **fields: Any) -> InferenceRequest:
    return completion({"messages": messages or [user()], **fields})


def text(prompt: object, **fields: Any) -> InferenceRequest:
    return completion({"prompt": prompt, **fields})


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    """An event loop beside the test, as the gateway's is."""
    with anyio.from_thread.start_blocking_portal(backend_options={"use_uvloop": True}) as portal:
        yield portal


class Asking:
    """A tokenizer that asks an engine, and the loop that it does so on."""

    def __init__(self, portal: BlockingPortal, url: str) -> None:
        self.now = 0.0
        self.upstream = EngineClient(url)
        self.tokenizer = EngineTokenizer(self.upstream, clock=lambda: self.now)
        self._portal = portal

    def start(self, asked: InferenceRequest) -> "Future[int | None]":
        return self._portal.start_task_soon(self.tokenizer.count, asked)

    def count(self, asked: InferenceRequest) -> int | None:
        return self.start(asked).result(DEADLINE)

    def close(self) -> None:
        self._portal.call(self.upstream.aclose)


@pytest.fixture
def asking(portal: BlockingPortal, engine: ScriptedEngine) -> Iterator[Asking]:
    asking = Asking(portal, engine.url)
    yield asking
    asking.close()


def answered(asking: Asking, engine: ScriptedEngine, status: int, content: object) -> int | None:
    """What it counts when the engine says this."""
    counting = asking.start(chat())
    engine.asked().answer(status, content)
    return counting.result(DEADLINE)


# Asked of the engine


@pytest.mark.parametrize(
    "body",
    [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                user("Snö?"),
                user([{"type": "text", "text": "Now!"}]),
            ]
        },
        {"messages": [user("word " * 5000)]},
        {"prompt": "Once upon a time"},
        {"prompt": ["Once", "upon a time", "– there was"]},
        {"prompt": [5, 6, 7]},
        {"prompt": [[5, 6, 7], [8]]},
        {"prompt": ["Once", [8, 9]]},
    ],
)
def test_the_engines_count_equals_its_usage(portal: BlockingPortal, spark: str, body: dict[str, Any]) -> None:
    route = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    answer = httpx.post(f"{spark}{route}", json={**body, "max_tokens": 1}, timeout=DEADLINE, trust_env=False)
    asking = Asking(portal, spark)
    try:
        assert asking.count(completion(body)) == answer.raise_for_status().json()["usage"]["prompt_tokens"]
    finally:
        asking.close()


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
THOUGHT = {"role": "assistant", "content": "No.", "reasoning_content": "Thinking."}


@pytest.mark.parametrize(
    ("fields", "carried"),
    [
        ({}, {}),
        ({"temperature": 0.5, "max_tokens": 7, "stream": True, "user": "anna", "stop": "x"}, {}),
        ({"model": "m"}, {"model": "m"}),
        ({"tools": TOOLS}, {"tools": TOOLS}),
        ({"tools": TOOLS, "tool_choice": "auto"}, {"tools": TOOLS}),
        ({"tool_choice": "none"}, {}),
        ({"chat_template": "{{ messages }}"}, {"chat_template": "{{ messages }}"}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": True}),
        ({"add_special_tokens": True}, {"add_special_tokens": True}),
        ({"chat_template_kwargs": {"a": [1]}}, {"chat_template_kwargs": {"a": [1]}}),
        ({"chat_template_kwargs": {}}, {}),
        ({"documents": [{"text": "d"}]}, {"chat_template_kwargs": {"documents": [{"text": "d"}]}}),
        (
            {"reasoning_effort": "low"},
            {"chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": True}},
        ),
        (
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {"reasoning_effort": "none", "enable_thinking": False}},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": None, "a": 1}},
            {"chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": None, "a": 1}},
        ),
        (
            {"documents": [{}], "chat_template_kwargs": {"documents": [], "a": 1}},
            {"chat_template_kwargs": {"documents": [{}], "a": 1}},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "x", "enable_thinking": False}},
            {"chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": False}},
        ),
        (
            dict.fromkeys(("model", "tools", "documents", "chat_template_kwargs", "truncate_prompt_tokens", "suffix")),
            {},
        ),
        (
            {"messages": [{**user(), "reasoning_content": None}, THOUGHT]},
            {"messages": [user(), {"role": "assistant", "content": "No.", "reasoning": "Thinking."}]},
        ),
        (
            {"messages": [{**THOUGHT, "reasoning": "Other."}]},
            {"messages": [{"role": "assistant", "content": "No.", "reasoning": "Other."}]},
        ),
    ],
)
def test_a_tokenize_request_has_every_field_that_shapes_a_chat_prompt(
    asking: Asking, engine: ScriptedEngine, fields: dict[str, Any], carried: dict[str, Any]
) -> None:
    counting = asking.start(completion({"messages": [user("hé")], **fields}))
    call = engine.asked()
    call.answer(200, {"count": 11, "max_model_len": 4096, "tokens": list(range(11)), "token_strs": None})
    assert counting.result(DEADLINE) == 11
    assert (call.method, call.path, call.headers["content-type"]) == ("POST", "/tokenize", "application/json")
    assert call.json == {"messages": [user("hé")], **carried}


def test_messages_are_sent_to_tokenize_byte_for_byte(asking: Asking, engine: ScriptedEngine) -> None:
    messages = rb'[ {"role":"user", "content" : "h\u00e9", "x": 1.0}]'
    counting = asking.start(CHAT.parse(b'{"messages": ' + messages + b"}"))
    call = engine.asked()
    call.answer(200, {"count": 3})
    assert counting.result(DEADLINE) == 3
    assert messages in call.body


def test_a_tokenize_request_has_every_field_that_shapes_a_text_prompt(asking: Asking, engine: ScriptedEngine) -> None:
    counting = asking.start(
        text("hé", model="m", add_special_tokens=False, temperature=1, tools=TOOLS, messages=[user()])
    )
    call = engine.asked()
    call.answer(200, {"count": 2})
    assert counting.result(DEADLINE) == 2
    assert call.json == {"prompt": "hé", "model": "m", "add_special_tokens": False}


def test_each_text_is_tokenized_by_its_own_request(asking: Asking, engine: ScriptedEngine) -> None:
    prompts = [f"prompt {number}" for number in range(MAX_TEXTS)]
    counting = asking.start(text([*prompts, [4, 5]]))
    for number, prompt in enumerate(prompts):
        call = engine.asked()
        assert call.json == {"prompt": prompt}
        assert engine.pending == 0
        call.answer(200, {"count": 10 + number})
    assert counting.result(DEADLINE) == sum(range(10, 10 + MAX_TEXTS)) + 2


def test_one_text_without_a_count_leaves_no_total(asking: Asking, engine: ScriptedEngine) -> None:
    counting = asking.start(text(["one", "two"]))
    engine.asked().answer(200, {"count": 5})
    engine.asked().answer(400, {"error": {"message": "no"}})
    assert counting.result(DEADLINE) is None


@pytest.mark.parametrize(
    "uncountable",
    [
        chat(user([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:image/png,"}}])),
        chat(user([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}])),
        chat(user([{"type": "video_url", "video_url": {"url": "http://v"}}])),
        chat(user([{"type": "image_embeds", "image_embeds": ""}])),
        chat(user([{"image_url": "http://i"}])),
        chat(user([{"type": "text", "text": "", "uuid": "1", "image_url": "http://i"}])),
        chat(user(), {"role": "tool", "content": [{"type": "image_url", "image_url": {"url": "http://i"}}]}),
        chat(tools=TOOLS, tool_choice="none"),
        chat(truncate_prompt_tokens=5),
        chat(kv_transfer_params={"prompt_token_ids": [1]}),
        chat(chat_template_kwargs="none"),
        text("once", suffix="end"),
        text("once", prompt_embeds="AAAA"),
        text("once", truncate_prompt_tokens=-1),
        text(["once"] * (MAX_TEXTS + 1)),
    ],
    ids=lambda each: each.body.decode()[:60],
)
def test_prompts_that_cannot_be_counted_are_not_sent_to_tokenize(
    asking: Asking, engine: ScriptedEngine, local: LocalTokenizer, uncountable: InferenceRequest
) -> None:
    assert asking.count(uncountable) is None
    assert engine.calls == []
    assert counted(local, uncountable) is None


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b"no json", b'{"prompt": "of the other kind"}', b'{"messages": 7}', b'{"messages": [7]}'),
        b'{"messages": [{"content": "\xff"}]}',
        b'{"messages": [], "chat_template_kwargs": {"\xff": 1}}',
        b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_an_unreadable_body_has_no_count(
    asking: Asking, engine: ScriptedEngine, local: LocalTokenizer, body: bytes
) -> None:
    garbage = replace(chat(), body=body)
    assert asking.count(garbage) is None
    assert engine.calls == []
    assert counted(local, garbage) is None


def test_token_ids_are_counted_without_the_engine(asking: Asking, engine: ScriptedEngine) -> None:
    assert asking.count(text([4, 5, 6])) == 3
    assert asking.count(text([[4, 5], [6]])) == 3
    assert engine.calls == []


# A server without /tokenize

MISSING = {"detail": "Not Found"}
UNKNOWN_MODEL = {"error": {"message": "The model `m` does not exist.", "type": "NotFoundError", "param": "model"}}


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_engine_without_tokenize_is_asked_again_later(
    asking: Asking, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    assert answered(asking, engine, status, MISSING) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fairlane", logging.WARNING)
    assert record.getMessage() == f"the engine has no /tokenize: prompt tokens are estimated (HTTP {status})"

    asking.now = RETRY_MISSING_S - 1
    assert asking.count(chat()) is None
    assert asking.count(text([1, 2])) == 2  # which it never needed it for
    assert len(engine.calls) == 1

    asking.now = RETRY_MISSING_S
    assert answered(asking, engine, status, MISSING) is None  # said once
    asking.now = RETRY_MISSING_S + 1
    assert asking.count(chat()) is None
    assert len(engine.calls) == 2

    asking.now = 2 * RETRY_MISSING_S
    assert answered(asking, engine, 200, {"count": 7}) == 7
    assert answered(asking, engine, 200, {"count": 8}) == 8
    assert len(caplog.records) == 1

    assert answered(asking, engine, status, MISSING) is None  # another server: said again
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("status", "content"), [(404, UNKNOWN_MODEL), (400, MISSING), (401, {}), (500, b"oops"), (503, b""), (307, b"")]
)
def test_a_failed_count_affects_only_its_own_request(
    asking: Asking, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture, status: int, content: object
) -> None:
    assert answered(asking, engine, status, content) is None
    assert answered(asking, engine, 200, {"count": 7}) == 7
    assert [record for record in caplog.records if record.name == "fairlane"] == []


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no json", b"[]", b'{"count": 7', b"\xff", {}, {"tokens": [1, 2]}),
        *({"count": None}, {"count": "7"}, {"count": 7.5}, {"count": True}),
        *({"count": 0}, {"count": -1}, {"count": 1 << 31}, {"count": 10**30}),
    ],
)
def test_an_answer_without_a_count_is_none(asking: Asking, engine: ScriptedEngine, content: object) -> None:
    assert answered(asking, engine, 200, content) is None


def test_an_engine_that_hangs_up_gives_no_count(asking: Asking, engine: ScriptedEngine) -> None:
    counting = asking.start(chat())
    engine.asked().hang_up()
    assert counting.result(DEADLINE) is None


def test_an_engine_that_is_down_gives_no_count(portal: BlockingPortal) -> None:
    asking = Asking(portal, "http://127.0.0.1:9")
    assert asking.count(chat()) is None
    asking.close()


# Bounds


class Held:
    """A tokenizer that counts 7 when it is let; shielded, it cannot be told to stop."""

    def __init__(self, *, shield: bool = False) -> None:
        self.shield = shield
        self.asked = self.running = self.most = 0
        self.released = anyio.Event()

    async def count(self, completion: InferenceRequest) -> int | None:
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            with anyio.CancelScope(shield=self.shield):
                await self.released.wait()
            return 7
        finally:
            self.running -= 1

    async def encode(self, completion: InferenceRequest) -> Ids | None:
        counted = await self.count(completion)
        return None if counted is None else [0] * counted


def test_the_number_of_concurrent_counts_is_limited() -> None:
    async def check() -> None:
        held, counts = Held(), list[int | None]()
        bounded = BoundedTokenizer(held, concurrent=2, patience=DEADLINE)

        async def count() -> None:
            counts.append(await bounded.count(chat()))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(count)
            await anyio.wait_all_tasks_blocked()
            assert held.running == 2
            held.released.set()
        assert (counts, held.most) == ([7] * 5, 2)

    anyio.run(check)


def test_patience_limits_waiting_and_counting() -> None:
    async def check() -> None:
        held, counts = Held(), list[int | None]()
        bounded = BoundedTokenizer(held, concurrent=1, patience=0.05)

        async def count() -> None:
            counts.append(await bounded.count(chat()))

        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(count)
        assert (counts, held.running, held.most) == ([None] * 3, 0, 1)
        held.released.set()
        assert await bounded.count(chat()) == 7  # their place is free again

    anyio.run(check)


def test_patience_limits_waiting_for_a_place() -> None:
    async def check() -> None:
        held = Held(shield=True)
        bounded = BoundedTokenizer(held, concurrent=1, patience=0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bounded.count, chat())
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(DEADLINE):
                assert await bounded.count(chat()) is None
            assert held.asked == 1
            held.released.set()

    anyio.run(check)


def test_cancellation_frees_the_place() -> None:
    async def check() -> None:
        held = Held()
        bounded = BoundedTokenizer(held, concurrent=1, patience=DEADLINE)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):  # one counts, two wait
                tasks.start_soon(bounded.count, chat())
            await anyio.wait_all_tasks_blocked()
            assert held.running == 1
            tasks.cancel_scope.cancel()
        assert (held.running, held.asked) == (0, 1)
        held.released.set()
        assert await bounded.count(chat()) == 7

    anyio.run(check)


def test_a_body_over_the_limit_is_not_counted() -> None:
    async def check() -> None:
        held = Held()
        held.released.set()
        bounded = BoundedTokenizer(held)
        room = MAX_BODY_BYTES - len(text("").body)
        assert await bounded.count(text("x" * room)) == 7
        assert await bounded.count(text("x" * (room + 1))) is None
        assert held.asked == 1

    anyio.run(check)


def test_a_request_to_a_silent_engine_is_closed(portal: BlockingPortal, asking: Asking, engine: ScriptedEngine) -> None:
    patient = BoundedTokenizer(asking.tokenizer, patience=0.05)
    assert portal.start_task_soon(patient.count, chat()).result(DEADLINE) is None
    assert engine.asked().left.wait(DEADLINE)


def test_cancellation_closes_the_engines_request(asking: Asking, engine: ScriptedEngine) -> None:
    counting = asking.start(chat())
    call: ReceivedRequest = engine.asked()
    counting.cancel()
    assert call.left.wait(DEADLINE)
    assert answered(asking, engine, 200, {"count": 7}) == 7


# Counted here: each byte is a token, so that a template's text can be counted by hand


def write_tokenizer(folder: Path, *, beginning: bool = False, limit: int | None = None) -> None:
    """`tokenizer.json` of bytes; `beginning` makes it begin a text with a token of its own."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<s>"])
    if beginning:
        begin = made.token_to_id("<s>")
        made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", begin)])
    if limit is not None:
        made.enable_truncation(limit)
        made.enable_padding(length=limit)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))


def write_config(folder: Path, **config: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


TEMPLATE = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"


def templated(folder: Path, template: str = TEMPLATE) -> LocalTokenizer:
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    return LocalTokenizer(folder)


@pytest.fixture
def local(tmp_path: Path) -> LocalTokenizer:
    return templated(tmp_path)


def counted(tokenizer: LocalTokenizer, asked: InferenceRequest) -> int | None:
    return anyio.run(tokenizer.count, asked)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é<"}'}}


def calls(arguments: object) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


TOOL_CALLS = "{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m['content'] | list %}({{ p.type }} {{ p.text }}){% endfor %}{% endfor %}"
ONE, TWO = {"type": "text", "text": "one"}, {"type": "refusal", "refusal": "two"}
KWARGS = {"chat_template_kwargs": {"mood": "glad"}}


@pytest.mark.parametrize(
    ("template", "asked", "prompt"),
    [
        (TEMPLATE, chat(user("hé")), "[user:hé]>"),
        (TEMPLATE, chat({"role": "system", "content": "be"}, user("a")), "[system:be][user:a]>"),
        (TEMPLATE, chat(user([ONE, "x", TWO])), "[user:one\nx\ntwo]>"),
        (TEMPLATE, chat({"role": "assistant", "content": None}), "[assistant:]>"),
        (TEMPLATE, chat(user("a"), add_generation_prompt=False), "[user:a]"),
        (TEMPLATE, chat(user("a"), add_generation_prompt="false"), "[user:a]"),
        (TEMPLATE, chat(user("a "), add_generation_prompt=False, continue_final_message=True), "[user:a "),
        ("{{ messages[0].content | trim }}.", chat(user("a "), continue_final_message=True), "a"),
        (PARTS, chat(user([ONE, TWO])), "(text one)(text two)"),
        (PARTS, chat(user("one")), "(text one)"),
        (PARTS + ".", chat(user([ONE]), continue_final_message=True), "(text one"),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", chat(user("one")), "one"),
        ("{% set content = messages[0].content %}{% for p in content %}{{ p.text }}{% endfor %}", chat(user("o")), "o"),
        ("{{ messages[0].content }}", chat({"role": "tool", "content": [ONE, ONE]}), "one\none"),
        ("{% for p in messages[0].content %}{% endfor %}{{ messages[0].content }}.", chat({"role": "tool"}), "."),
        (TOOL_CALLS, chat(calls('{"a": "é<"}')), '{"a": "é<"}'),
        (TOOL_CALLS, chat(calls({"a": 1})), '{"a": 1}'),
        (TOOL_CALLS, chat(calls("[1]")), "{}"),
        (TOOL_CALLS, chat(calls("{")), "{}"),
        (TOOL_CALLS, chat(calls(None)), "{}"),
        ("{{ messages[0].tool_calls is defined }}", chat({**calls(None), "tool_calls": []}), "False"),
        ("{{ messages[0].reasoning }}{{ messages[0].reasoning_content }}", chat(THOUGHT), "Thinking." * 2),
        ("{{ messages[0].tool_call_id }}", chat({"role": "tool", "content": "", "tool_call_id": "c1"}), "c1"),
        ("{{ messages[0].name }}", chat({**user(), "name": "anna"}), "anna"),
        ("{# 'developer' #}{{ messages[0].role }}", chat({"role": "developer", "content": "x"}), "developer"),
        ("{{ tools }}{{ documents }}", chat(), "NoneNone"),
        (
            "{{ tools | tojson }}",
            chat(tools=[{"type": "function", "function": {"parameters": {}, "name": "f", "x": 1, "strict": True}}]),
            '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {}, "strict": true}}]',
        ),
        ("{{ documents[0].text }}", chat(documents=[{"text": "d"}]), "d"),
        ("{{ mood }}", chat(**KWARGS), "glad"),
        ("{{ mood is defined }}", chat(chat_template_kwargs={"mood": None}), "False"),
        ("{{ enable_thinking }}{{ reasoning_effort }}", chat(reasoning_effort="low"), "Truelow"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", chat(user("a")), "a"),
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", chat(user("a"), user("b")), "a"),
        ("{{ {'é': '<'} | tojson }}{{ [1] | tojson(indent=1) }}", chat(), '{"é": "<"}[\n 1\n]'),
        ("  {% if true %}\na\n  {% endif %}\nb", chat(), "a\nb"),
        ("{{ strftime_now('%Y') }}", chat(), "2000"),
        ("{{ bos_token }}{{ eos_token }}{{ pad_token }}", chat(), "<s></s>"),
        ("{{ padding_side is defined }}", chat(), "False"),
    ],
)
def test_a_template_gets_the_same_variables_as_in_vllm(
    tmp_path: Path, template: str, asked: InferenceRequest, prompt: str
) -> None:
    write_config(tmp_path, bos_token="<s>", eos_token={"content": "</s>"}, pad_token=None, padding_side="left")
    local = templated(tmp_path, template)
    special = prompt.count("<s>")
    assert counted(local, asked) == len(prompt.replace("<s>", "").encode()) + special


@pytest.mark.parametrize(
    ("template", "asked"),
    [
        ("{{ raise_exception('roles must alternate') }}", chat()),
        ("{{ 1 / 0 }}", chat()),
        ("{{ messages.append(1) }}", chat()),
        ("{{ messages.__class__.__mro__ }}", chat()),
        ("{{ messages[0].role }}", chat({"role": "developer", "content": "x"})),
        (TEMPLATE, chat(chat_template="{{ messages }}")),
        (TEMPLATE, chat(chat_template_kwargs={"chat_template": "x"})),
        (TEMPLATE, chat(chat_template_kwargs={"messages": []})),
        ("gone", chat(continue_final_message=True)),
    ],
)
def test_a_chat_that_the_template_refuses_has_no_count(
    tmp_path: Path, template: str, asked: InferenceRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert counted(templated(tmp_path, template), asked) is None
    (record,) = (record for record in caplog.records if record.name == "fairlane")
    # A template can say the prompt when it refuses it; prompts are never logged.
    assert re.fullmatch(r"a prompt cannot be counted: \w+", record.getMessage())
    assert record.levelno == logging.DEBUG


def test_an_empty_prompt_has_no_count(tmp_path: Path) -> None:
    """vLLM takes none."""
    local = templated(tmp_path, "")
    assert [counted(local, asked) for asked in (chat(), text(""), text([[]]))] == [None] * 3


def test_texts_and_token_ids_are_counted(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, beginning=True, limit=4)
    local = LocalTokenizer(tmp_path / "tokenizer.json")
    assert counted(local, text("hé, you")) == 1 + 8
    assert counted(local, text("hé, you", add_special_tokens=False)) == 8
    assert counted(local, text(["a", "bc", [1, 2, 3]])) == 2 + 3 + 3
    assert counted(local, text([1, 2])) == 2
    assert counted(local, text("")) == 1


def test_a_chat_adds_special_tokens_when_told(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, beginning=True)
    write_config(tmp_path, chat_template="{{ messages[0].content }}")
    local = LocalTokenizer(tmp_path)
    assert counted(local, chat(user("abc"))) == 3
    assert counted(local, chat(user("abc"), add_special_tokens=True)) == 4


def test_the_named_template_is_used(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    named = [{"name": "default", "template": "default"}, {"name": "tool_use", "template": "with tools"}]
    write_config(tmp_path, chat_template=named)
    local = LocalTokenizer(tmp_path)
    assert counted(local, chat()) == len("default")
    assert counted(local, chat(tools=TOOLS)) == len("with tools")
    (tmp_path / "chat_template.jinja").write_text("the file's")
    assert counted(LocalTokenizer(tmp_path), chat()) == len("the file's")


@pytest.mark.parametrize("config", [None, {}, {"chat_template": []}])
def test_without_a_template_texts_are_counted(tmp_path: Path, config: dict[str, Any] | None) -> None:
    write_tokenizer(tmp_path)
    if config is not None:
        write_config(tmp_path, **config)
    local = LocalTokenizer(tmp_path)
    assert counted(local, chat()) is None
    assert counted(local, text("abc")) == 3


def test_a_missing_tokenizer_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "gone"):
        with pytest.raises(ValueError, match=r"does not exist: name a model's tokenizer\.json, or the folder"):
            LocalTokenizer(path)


def test_an_invalid_tokenizer_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json of Hugging Face's: "):
        LocalTokenizer(tmp_path)


def test_a_missing_tokenizers_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'fairlane\[tokenizer\]'"):
        LocalTokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"chat_template": "{% if %}"}',
        '{"chat_template": 7}',
        '{"chat_template": [{}]}',
        '{"bos_token": {}}',
    ],
)
def test_an_invalid_tokenizer_configuration_is_reported(tmp_path: Path, config: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=r"The chat template of .* cannot be used: "):
        LocalTokenizer(tmp_path)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator["type[Stuck]"]:
    monkeypatch.setattr("gateway.tokenizers.chat_template.datetime", Stuck)
    yield Stuck
    Stuck.released.set()


class Stuck(datetime):
    """A clock in a template that stands still until it is released."""

    released = threading.Event()
    entered = 0

    @classmethod
    def now(cls, tz: object = None) -> "Stuck":
        cls.entered += 1
        assert cls.released.wait(DEADLINE)
        return cls(2000, 1, 1)


def test_an_abandoned_count_keeps_its_thread_and_starts_no_other(tmp_path: Path, stuck: type[Stuck]) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    local = LocalTokenizer(tmp_path, threads=1)
    stuck.entered = 0
    stuck.released.clear()

    async def check() -> None:
        bounded = BoundedTokenizer(local, patience=0.05)
        with anyio.fail_after(DEADLINE):
            assert [await bounded.count(chat()) for _ in range(3)] == [None] * 3  # the loop goes on
        assert stuck.entered == 1
        stuck.released.set()
        assert await local.count(chat()) == 4
        assert stuck.entered == 2  # those that had left before their turn are never begun

    anyio.run(check)


def test_streams_are_not_stalled_while_a_long_prompt_is_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Beside what the library's `encode` does to the loop from a thread, for that holds the GIL all the time."""
    folder = make_model(tmp_path_factory.mktemp("model"))
    local = LocalTokenizer(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    novel = words(25_000, 1)
    asked = chat(user(novel))
    assert len(asked.body) > 100_000

    async def worst_gap(work: Any) -> float:
        """Seconds that a stream, due every millisecond, waited in vain at most."""
        worst, over = 0.0, anyio.Event()

        async def stream() -> None:
            nonlocal worst
            while not over.is_set():
                before = time.perf_counter()
                await anyio.sleep(0.001)
                worst = max(worst, time.perf_counter() - before)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream)
            await checkpoint()
            await work()
            over.set()
        return worst

    async def check() -> None:
        prompt = f"<|start|>user\n{novel}<|end|><|start|>assistant\n"
        assert await local.count(asked) == len(library.encode(prompt)) > 25_000
        ours, theirs = [], []
        for _ in range(5):
            theirs.append(await worst_gap(lambda: anyio.to_thread.run_sync(library.encode, novel)))
            ours.append(await worst_gap(lambda: local.count(asked)))
        assert median(ours) < median(theirs) / 3

    anyio.run(check, backend_options={"use_uvloop": True})
