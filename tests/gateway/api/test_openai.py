"""Chat and text completions: what counts as the prompt, what is forwarded, and what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.api.base import Api, InferenceRequest
from gateway.api.chat import CHAT
from gateway.api.completions import COMPLETIONS as TEXT
from gateway.api.conversation import MEDIA_TOKENS
from gateway.errors import BadRequest
from gateway.pricing.prompt import STRIDE, PromptSize
from gateway.types import OPENING_CHARS


def parse(api: Api, body: bytes) -> InferenceRequest:
    return api.parse(body)


def chat(*contents: Any, **options: Any) -> InferenceRequest:
    messages = [{"role": "user", "content": content} for content in contents]
    return parse(CHAT, json.dumps({"messages": messages, **options}).encode())


def text(prompt: Any, **options: Any) -> InferenceRequest:
    return parse(TEXT, json.dumps({"prompt": prompt, **options}).encode())


def sizes(completion: InferenceRequest) -> list[PromptSize]:
    return [prompt.size for prompt in completion.prompts]


# What the prompt is.


def test_a_chat_is_one_prompt_of_all_its_texts() -> None:
    assert sizes(chat("abcde", "678")) == [PromptSize(words=5, marks=3, messages=2)]


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ("naïve", PromptSize(words=4, wide=2)),
        ("日本", PromptSize(wide=6)),
        ("🙂", PromptSize(wide=4)),
        ("f(x)\n\t=", PromptSize(words=4, marks=3)),
        ("", PromptSize()),
        (None, PromptSize()),
    ],
)
def test_text_counts_in_bytes_of_utf8(content: str | None, size: PromptSize) -> None:
    size = size.plus(PromptSize(messages=1))
    assert sizes(chat(content)) == [size]
    escaped = parse(CHAT, json.dumps({"messages": [{"content": content}]}, ensure_ascii=True).encode())
    assert sizes(escaped) == [size]


def test_a_list_of_parts_counts_its_texts() -> None:
    assert sizes(chat([{"type": "text", "text": "abc"}, "de"])) == [PromptSize(words=5, messages=1)]


def test_an_image_counts_a_constant_whatever_its_size() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    prompt = chat([{"type": "text", "text": "abc"}, image, image])
    assert sizes(prompt) == [PromptSize(words=3, messages=1, tokens=2 * MEDIA_TOKENS)]


def test_tools_count_as_they_are_written() -> None:
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    body = f'{{"messages": [{{"content": "abc"}}], "tools": {tools}}}'.encode()
    (size,) = sizes(parse(CHAT, body))
    assert size.text_bytes == 3 + len(tools)


def test_tool_calls_and_reasoning_in_the_history_count() -> None:
    calls = '[{"id": "1", "function": {"name": "f", "arguments": "{}"}}]'
    body = f'{{"messages": [{{"content": null, "tool_calls": {calls}, "reasoning": "hm"}}]}}'.encode()
    (size,) = sizes(parse(CHAT, body))
    assert (size.text_bytes, size.messages) == (len(calls) + 2, 1)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("four", [PromptSize(words=4)]),
        (["one", "three"], [PromptSize(words=3), PromptSize(words=5)]),
        ([1, 2, 3], [PromptSize(tokens=3)]),
        ([[1, 2], [3]], [PromptSize(tokens=2), PromptSize(tokens=1)]),
    ],
)
def test_all_four_forms_of_a_prompt_are_read(prompt: Any, prompts: list[PromptSize]) -> None:
    assert sizes(text(prompt)) == prompts


# Which beginnings it shares with others: the names in common, from the shortest on.


def shared(one: InferenceRequest, other: InferenceRequest) -> int:
    """How many messages at the begin are one text to the engine, for short ones; tools count as one."""
    names = zip(one.prompts[0].prefixes, other.prompts[0].prefixes, strict=False)
    return len(list(takewhile(lambda pair: pair[0].digest == pair[1].digest, names)))


def turns(*turns: tuple[str, Any], **options: Any) -> InferenceRequest:
    messages = [{"role": role, "content": content} for role, content in turns]
    return parse(CHAT, json.dumps({"messages": messages, **options}).encode())


SYSTEM, ASKED, ANSWERED = ("system", "Be brief."), ("user", "Why?"), ("assistant", "Because.")


def test_each_turn_shares_its_prefix_names_with_the_previous_turn() -> None:
    before = turns(SYSTEM, ASKED)
    after = turns(SYSTEM, ASKED, ANSWERED, ("user", "And then?"))
    assert shared(before, after) == len(before.prompts[0].prefixes) == 2
    assert [prefix.answered for prefix in after.prompts[0].prefixes] == [False, True, False, False]
    assert shared(turns(SYSTEM, ("user", "Who?")), after) == 1
    assert shared(turns(ASKED), after) == 0


def test_a_text_in_parts_has_the_same_prefix_names_as_the_whole() -> None:
    assert shared(chat("Why not?"), chat([{"type": "text", "text": "Why "}, "not?"])) == 1


def test_the_role_is_part_of_the_prefix_name() -> None:
    assert shared(turns(("user", "Why?")), turns(("system", "Why?"))) == 0


def test_equal_texts_with_another_salt_or_model_have_other_prefix_names() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,a"}}
    for one, other in (
        ({"model": "gemma"}, {"model": "an-adapter"}),
        ({"cache_salt": "ann"}, {"cache_salt": "ben"}),
        ({"cache_salt": "ann"}, {}),
        ({"tools": [{"name": "f"}]}, {"tools": [{"name": "g"}]}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ):
        assert shared(turns(ASKED, **one), turns(ASKED, **one)) > 0
        assert shared(turns(ASKED, **one), turns(ASKED, **other)) == 0
    assert shared(chat([image]), chat([image])) == 1
    assert shared(chat([image]), chat([image | {"image_url": {"url": "data:,b"}}])) == 0
    assert shared(text("Why?", cache_salt="ann"), text("Why?", cache_salt="ben")) == 0


def test_fields_outside_the_prompt_do_not_change_its_prefix_names() -> None:
    assert shared(turns(ASKED, temperature=0, user="ann", n=2), turns(ASKED, stream=True, max_tokens=5)) == 1


def test_prompts_of_token_ids_share_prefix_names() -> None:
    ids = list(range(5000))
    assert shared(text(ids), text([*ids[:4000], *ids])) == 4000 * 8 // STRIDE


def test_seats_are_prompts_times_n() -> None:
    assert chat("a").seats == 1
    assert chat("a", n=3).seats == 3
    assert text(["a", "b"]).seats == 2
    assert text([[1], [2]], n=3).seats == 6


# What else is read.


def test_missing_and_null_options_have_defaults() -> None:
    for completion in (chat("a"), chat("a", n=None, stream=None, user=None, max_tokens=None, model=None)):
        assert (completion.n, completion.stream, completion.drop_usage) == (1, False, False)
        assert (completion.user, completion.max_tokens, completion.model) == (None, None, None)


def test_options_are_read() -> None:
    completion = chat("a", model="m", user="u", max_tokens=5, n=2, stream=True, unknown={"to": "us"})
    assert (completion.model, completion.user, completion.max_tokens) == ("m", "u", 5)
    assert (completion.n, completion.stream) == (2, True)


def test_a_prompt_that_the_engine_may_truncate_is_marked() -> None:
    for ask in (chat, text):
        cut = [ask("a", truncate_prompt_tokens=tokens).truncatable for tokens in (None, 5, -1)]
        assert cut == [False, True, True]
        assert not ask("a").truncatable


def test_max_completion_tokens_takes_precedence_over_max_tokens() -> None:
    assert chat("a", max_completion_tokens=7).max_tokens == 7
    assert chat("a", max_tokens=5, max_completion_tokens=7).max_tokens == 7


# What goes to the engine.

ODDLY_WRITTEN = b'\n{ "stream" : false,\t"messages":[ {"content":"a","z":1e3} ] , "seed":1E0} \n'


@pytest.mark.parametrize(
    "body",
    [
        ODDLY_WRITTEN,
        b'{"messages":[{"content":"a"}],"stream":true,"stream_options": { "include_usage" : true } }',
        b'{"stream_options":{"include_usage":false},"messages":[{"content":"not streamed"}]}',
    ],
)
def test_a_body_that_needs_no_change_is_forwarded_byte_for_byte(body: bytes) -> None:
    completion = parse(CHAT, body)
    assert completion.body is body
    assert not completion.drop_usage


def test_a_streamed_body_only_gains_include_usage() -> None:
    body = ODDLY_WRITTEN.replace(b"false", b"true")
    completion = parse(CHAT, body)
    head, tail = body.rstrip()[:-1], b"} \n"
    assert completion.body == head + b',"stream_options":{"include_usage":true}' + tail
    assert completion.drop_usage


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": None}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        ({"continuous_usage_stats": True}, {"include_usage": True}),
    ],
)
def test_the_clients_own_stream_options_are_kept(options: Any, sent: dict[str, Any]) -> None:
    body = {"messages": [{"content": "a"}], "stream": True, "stream_options": options, "seed": 1}
    completion = parse(CHAT, json.dumps(body).encode())
    assert completion.drop_usage
    assert completion.body.count(b'"stream_options"') == 1
    assert json.loads(completion.body) == body | {"stream_options": sent}


def test_a_prompt_that_mentions_stream_options_is_not_taken_for_the_option() -> None:
    body = {"messages": [{"content": "stream_options"}], "stream": True}
    sent = json.loads(parse(CHAT, json.dumps(body).encode()).body)
    assert sent == body | {"stream_options": {"include_usage": True}}


finite = st.floats(allow_nan=False, allow_infinity=False)
# msgspec takes no lone surrogates; neither does any other client's JSON.
words = st.text(st.characters(codec="utf-8"))
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(
    extra=st.dictionaries(words, anything, max_size=4),
    options=st.none() | st.dictionaries(words, anything, max_size=2),
    ask=st.sampled_from([None, True, False]),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_adding_include_usage_changes_nothing_else(
    extra: dict[str, Any], options: dict[str, Any] | None, ask: bool | None, ascii: bool, indent: int | None
) -> None:
    read = ("n", "user", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens")
    extra = {key: value for key, value in extra.items() if key not in read}
    if options is not None:
        options["include_usage"] = ask
    body = {**extra, "messages": [{"content": "a"}], "stream": True, "stream_options": options}
    completion = parse(CHAT, json.dumps(body, ensure_ascii=ascii, indent=indent).encode())
    assert completion.drop_usage == (ask is not True or options is None)
    assert json.loads(completion.body) == body | {"stream_options": (options or {}) | {"include_usage": True}}


# What is refused.


@pytest.mark.parametrize(
    ("api", "body", "says", "param"),
    [
        (CHAT, b"", "not valid JSON", None),
        (CHAT, b"hello", "not valid JSON", None),
        (CHAT, b'{"messages": [{"content": "a"}]', "not valid JSON", None),
        (CHAT, b'{"messages": [{"content": "a"}]} {}', "not valid JSON", None),
        (CHAT, b'{"messages": [{"content": "\xff"}]}', "not valid JSON", None),
        (CHAT, b'{"messages": [{"content": [{"a": ' + b"[" * 5000, "not valid JSON", None),
        (CHAT, b"[]", "Expected `object`", None),
        (CHAT, b"null", "Expected `object`", None),
        (CHAT, b"{}", "`messages`", None),
        (TEXT, b"{}", "`prompt`", None),
        (CHAT, b'{"messages": []}', "length >= 1", "messages"),
        (CHAT, b'{"messages": null}', "Expected `array`", "messages"),
        (CHAT, b'{"messages": "hi"}', "Expected `array`", "messages"),
        (CHAT, b'{"messages": ["hi"]}', "Expected `object`", "messages[0]"),
        (CHAT, b'{"messages": [{"content": {}}]}', "Expected", "messages[0].content"),
        (CHAT, b'{"messages": [{}, {"content": [null]}]}', "Expected", "messages[1].content[0]"),
        (CHAT, b'{"messages": [{}], "n": 0}', ">= 1", "n"),
        (CHAT, b'{"messages": [{}], "n": -3}', ">= 1", "n"),
        (CHAT, b'{"messages": [{}], "n": "many"}', "Expected `int", "n"),
        (CHAT, b'{"messages": [{}], "n": 1.5}', "Expected `int", "n"),
        (CHAT, b'{"messages": [{}], "max_tokens": {}}', "Expected `int", "max_tokens"),
        (CHAT, b'{"messages": [{}], "stream": {}}', "Expected `bool", "stream"),
        (CHAT, b'{"messages": [{}], "stream_options": []}', "Expected `object", "stream_options"),
        (
            CHAT,
            b'{"messages": [{}], "stream_options": {"include_usage": []}}',
            "Expected",
            "stream_options.include_usage",
        ),
        (CHAT, b'{"messages": [{}], "user": 5}', "Expected `str", "user"),
        (CHAT, b'{"messages": [{}], "model": []}', "Expected `str", "model"),
        (TEXT, b'{"prompt": null}', "Expected", "prompt"),
        (TEXT, b'{"prompt": 5}', "Expected", "prompt"),
        (TEXT, b'{"prompt": {}}', "Expected", "prompt"),
        (TEXT, b'{"prompt": []}', "at least one prompt", "prompt"),
        (TEXT, b'{"prompt": [1, "a"]}', "not both", "prompt"),
        (TEXT, b'{"prompt": [[1], 2]}', "not both", "prompt"),
        (TEXT, b'{"prompt": [true]}', "Expected", "prompt[0]"),
        (TEXT, b'{"prompt": [[1, null]]}', "Expected `int`", "prompt[0][1]"),
        (TEXT, b'{"prompt": [9223372036854775808]}', "that a vocabulary has", "prompt"),
    ],
)
def test_an_invalid_body_is_a_bad_request_that_names_the_place(
    api: Api, body: bytes, says: str, param: str | None
) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(api, body)
    assert says in refused.value.message
    assert refused.value.param == param
    assert json.loads(refused.value.body())["error"]["param"] == param


apis = st.sampled_from((CHAT, TEXT))


def read_or_refused(api: Api, body: bytes) -> None:
    try:
        completion = parse(api, body)
    except BadRequest:
        return
    assert completion.prompts
    assert completion.seats >= 1


@given(api=apis, body=st.binary(max_size=60))
def test_random_bytes_are_read_or_refused(api: Api, body: bytes) -> None:
    read_or_refused(api, body)


VALID = (
    b'{"messages":[{"content":[{"type":"text","text":"\xc3\xa9\\n"}],"tool_calls":[]}],'
    b'"prompt":[[1,2]],"stream":true,"n":2}'
)


@given(api=apis, at=st.integers(0, len(VALID)), cut=st.integers(0, 5), put=st.binary(max_size=4))
@example(api=CHAT, at=0, cut=0, put=b"\xef\xbb\xbf")
def test_damaged_requests_are_read_or_refused(api: Api, at: int, cut: int, put: bytes) -> None:
    read_or_refused(api, VALID[:at] + put + VALID[at + cut :])


@pytest.mark.parametrize(
    "options", [b'{"x": 1e999}', b'{"x": "\xff"}', b'{"include_usage": "\xff"}', b"[" * 5000], ids=repr
)
def test_stream_options_that_cannot_be_read_are_refused(options: bytes) -> None:
    body = b'{"messages":[{"content":"a"}],"stream":true,"stream_options":' + options + b"}"
    with pytest.raises(BadRequest):
        parse(CHAT, body)


@pytest.mark.parametrize("n", [0, -1, 16385, 10**30])
def test_n_must_be_in_range(n: int) -> None:
    with pytest.raises(BadRequest):
        parse(CHAT, json.dumps({"messages": [{}], "n": n}).encode())


keys = st.sampled_from(
    [
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "n",
        "user",
        "max_tokens",
        "max_completion_tokens",
        "tools",
        "model",
        "cache_salt",
        "chat_template_kwargs",
    ]
)
messages = st.lists(
    st.dictionaries(st.sampled_from(["content", "tool_calls", "reasoning", "role"]), anything) | anything, max_size=3
)


@given(
    api=apis,
    body=anything | st.dictionaries(keys, anything),
    messages=messages,
    prompt=anything | st.lists(anything, max_size=3),
)
def test_random_json_is_read_or_refused(api: Api, body: Any, messages: list[Any], prompt: Any) -> None:
    read_or_refused(api, json.dumps(body).encode())
    if isinstance(body, dict):
        read_or_refused(api, json.dumps(body | {"messages": messages, "prompt": prompt}).encode())
        read_or_refused(api, json.dumps({"messages": [{"content": "a"}], "prompt": "a"} | body).encode())


# Which conversation it is, and what kind of request.


def said(*roles_and_contents: tuple[str | None, Any]) -> InferenceRequest:
    messages = [{"role": role, "content": content} for role, content in roles_and_contents]
    return CHAT.parse(json.dumps({"messages": messages}).encode())


def test_the_session_is_derived_from_the_first_user_message() -> None:
    first = said(("user", "hello"))
    later = said(("user", "hello"), ("assistant", "hi"), ("user", "and now?"))
    assert first.session == later.session == said(("system", "be kind"), ("user", "hello")).session
    assert first.session != said(("user", "Hello")).session
    assert re.fullmatch("[0-9a-f]{16}", first.session)


def test_content_parts_are_read_by_their_type() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "hel"}, image, {"type": "text", "text": "lo"}]
    assert said(("user", parts)).session == said(("user", "hello")).session
    assert said(("user", parts)).opening == "hel"


@pytest.mark.parametrize("content", [None, "", [], [{"type": "image_url"}]])
def test_without_a_message_there_is_no_session(content: Any) -> None:
    assert (said(("user", content)).session, said(("user", content)).opening) == ("", "")


def test_without_a_user_message_the_session_is_derived_from_the_first_message() -> None:
    assert said((None, "be kind")).session == said(("system", "be kind"), ("assistant", "hi")).session != ""


def test_sessions_of_long_texts_differ_by_start_end_and_length() -> None:
    texts = ["a" + "x" * 20_000, "b" + "x" * 20_000, "x" * 20_000 + "a", "x" * 20_000 + "b", "x" * 20_001, "x" * 20_002]
    assert len({said(("user", text)).session for text in texts}) == len(texts)


def test_a_text_completion_has_no_session() -> None:
    assert (text("hello").session, text("hello").opening) == ("", "hello")
    assert text(["hello"]).opening == text([1, 2]).opening == ""


def test_the_opening_of_the_last_message_is_kept() -> None:
    assert said(("user", "first"), ("user", "\n last" + "x" * 300)).opening == "last" + "x" * (OPENING_CHARS - 6)


def test_a_session_contains_no_text_of_the_message() -> None:
    """Nor can it be guessed: in another process the same text has another name."""
    completion = said(("user", "Kanarienvogel"))
    assert "Kanarienvogel" not in completion.session + repr(replace(completion, body=b""))
    code = "from gateway.api.chat import parse;import sys;print(parse(sys.argv[1].encode()).session)"
    body = '{"messages": [{"role": "user", "content": "Kanarienvogel"}]}'
    other = subprocess.run([sys.executable, "-c", code, body], capture_output=True, text=True, check=True)
    assert re.fullmatch("[0-9a-f]{16}\n", other.stdout)
    assert other.stdout.strip() != completion.session
