"""Reading a stream while it is relayed: only unrequested usage is removed, however the stream is split into chunks."""

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.openai import read
from gateway.api.sse import MAX_EVENT, EventStream
from gateway.pricing.usage import EngineTimes, PromptDetails, Usage


def event(end: bytes = b"\n\n", /, **fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + end


def token(index: int = 0, content: str = "x", end: bytes = b"\n\n", **fields: Any) -> bytes:
    return event(end, choices=[{"index": index, "delta": {"content": content}}], **fields)


USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2})
DONE = b"data: [DONE]\n\n"


def account(body: bytes) -> tuple[Usage | None, EngineTimes | None]:
    said = read(body)
    return said.usage, said.times


def relayed(stream: EventStream, chunks: Iterable[bytes]) -> bytes:
    return b"".join(map(stream.feed, chunks)) + stream.end()


# What passes and what does not.


def test_unrequested_usage_is_removed_and_the_rest_is_unchanged() -> None:
    stream = EventStream(read, drop_usage=True)
    assert relayed(stream, [token(), token(), USAGE, DONE]) == token() + token() + DONE
    assert stream.usage == Usage(7, 2)


def test_requested_usage_is_kept() -> None:
    stream = EventStream(read, drop_usage=False)
    assert relayed(stream, [token(), USAGE, DONE]) == token() + USAGE + DONE
    assert stream.usage == Usage(7, 2)


def test_usage_beside_choices_is_always_kept() -> None:
    """As with `continuous_usage_stats`. What it says last holds."""
    stream = EventStream(read, drop_usage=True)
    chunks = [token(usage={"prompt_tokens": 7, "completion_tokens": n}) for n in (1, 2)]
    assert relayed(stream, chunks) == b"".join(chunks)
    assert stream.usage == Usage(7, 2)


def test_null_usage_counts_as_missing() -> None:
    stream = EventStream(read, drop_usage=True)
    chunks = [token(usage=None), event(choices=[], usage=None)]
    assert relayed(stream, chunks) == b"".join(chunks)
    assert stream.usage is None


@pytest.mark.parametrize(
    "odd",
    [
        b": a comment\n\n",
        b': "usage" in a comment\n\n',
        b"event: ping\n\n",
        b"\n\n",
        b"data:\n\n",
        b"data: garbage\n\n",
        b'data: \xff\xfe "usage"\n\n',
        b'data: {"usage": "none"}\n\n',
        b'data: {"usage": {}}\n\n',
        b'data: ["usage"]\n\n',
        b'data: {"choices": 5, "usage": {"prompt_tokens": 1}}\n\n',
        b"data: " + b"[" * 5000 + b"\n\n",
        b"id: 5\nretry: 10\ndata: {}\n\n",
        token(content='he said "usage" and "error"'),
        token(content="usage"),
        token(content="error"),
    ],
)
def test_unknown_events_are_kept(odd: bytes) -> None:
    stream = EventStream(read, drop_usage=True)
    assert relayed(stream, [odd, token(), odd, USAGE, odd, DONE]) == odd + token() + odd + odd + DONE
    assert stream.first_token
    assert stream.usage == Usage(7, 2)
    assert not stream.failed


def test_mixed_line_endings_are_understood() -> None:
    mixed = b": ping\n\n" + USAGE + token(end=b"\r\n\r\n")
    assert relayed(EventStream(read, drop_usage=True), [mixed]) == b": ping\n\n" + token(end=b"\r\n\r\n")


@pytest.mark.parametrize(
    "error", [b'data: {"choices": null, "error": {}}\n\n', b'data: { "error": {}}\n\n', b'data:{"error":{}}\n\n']
)
def test_an_error_is_recognised_however_its_json_is_written(error: bytes) -> None:
    stream = EventStream(read)
    stream.feed(error)
    assert stream.failed
    assert not stream.first_token


def test_a_choice_without_an_index_is_choice_0() -> None:
    stream = EventStream(read)
    stream.feed(event(choices=[{"index": None, "delta": {}}]))
    assert stream.first_token


def test_usage_in_an_unterminated_last_event_is_read_and_removed() -> None:
    stream = EventStream(read, drop_usage=True)
    assert relayed(stream, [token(), USAGE.rstrip()]) == token()
    assert stream.usage == Usage(7, 2)


def test_the_first_token_is_recognised_whatever_its_usage_says() -> None:
    stream = EventStream(read)
    stream.feed(token(usage={"prompt_tokens": "bad"}))
    assert stream.first_token


def test_an_incomplete_last_event_is_sent_at_the_end() -> None:
    stream = EventStream(read, drop_usage=True)
    assert stream.feed(token() + b"data: {") == token()
    assert stream.end() == b"data: {"
    assert stream.end() == b""


def test_only_incomplete_events_are_held_back() -> None:
    stream = EventStream(read, drop_usage=True)
    assert stream.feed(token() + token()[:9]) == token()
    assert stream.feed(token()[9:-1]) == b""
    assert stream.feed(token()[-1:] + b"da") == token()


def test_an_endless_event_is_held_up_to_a_limit() -> None:
    stream = EventStream(read, drop_usage=True)
    chunk, held, passed = b"x" * 65536, 0, b""
    for _ in range(40):
        out = stream.feed(chunk)
        passed += out
        held += len(chunk) - len(out)
        assert held <= MAX_EVENT
    assert passed + stream.end() == chunk * 40


# What is recognised.


def test_the_first_token_is_the_first_choice() -> None:
    stream = EventStream(read)
    for before in (b": queued\n\n", b"data: {}\n\n", event(choices=[]), token()[:-1]):
        stream.feed(before)
        assert not stream.first_token
    stream.feed(b"\n")
    assert stream.first_token


def test_prefill_ends_when_each_prompt_has_its_first_token() -> None:
    """Choice i is an answer to prompt i // n."""
    stream = EventStream(read, prompts=3, n=2)
    begun = []
    for index in (0, 1, 4, 0, 2, 3):
        stream.feed(token(index))
        begun.append(stream.first_token)
    assert begun == [False, False, False, False, True, True]


def test_n_answers_to_one_prompt_need_one_first_token() -> None:
    stream = EventStream(read, prompts=1, n=4)
    stream.feed(token(3))
    assert stream.first_token


def test_several_choices_in_one_chunk_are_counted() -> None:
    stream = EventStream(read, prompts=2)
    stream.feed(event(choices=[{"index": 0}, {"index": 1}]))
    assert stream.first_token


@pytest.mark.parametrize("before", [b"", token() + token()])
def test_an_error_event_is_kept_and_recognised(before: bytes) -> None:
    error = event(error={"message": "out of memory", "code": 500})
    stream = EventStream(read, drop_usage=True)
    assert relayed(stream, [before, error, DONE]) == before + error + DONE
    assert stream.failed
    assert stream.first_token == bool(before)


def test_chunks_are_counted_as_they_come() -> None:
    stream = EventStream(read)
    relayed(stream, [token(), token(), DONE])
    assert stream.chunks == 3


# However it is cut.

ends = st.sampled_from([b"\n\n", b"\r\n\r\n"])
texts = st.text(st.characters(codec="utf-8"), max_size=10)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], set[int]]:
    """A stream's events, and which of them are pure usage."""
    end = draw(ends)
    kinds = draw(st.lists(st.sampled_from(["token", "comment", "usage", "garbage", "error"]), max_size=8))
    events, usage = [], set()
    for place, kind in enumerate(kinds):
        if kind == "token":
            events.append(token(draw(st.integers(0, 3)), draw(texts), end))
        elif kind == "comment":
            events.append(b": waiting" + end)
        elif kind == "garbage":
            events.append(b"data: " + draw(texts).encode().replace(b"\r", b"").replace(b"\n", b"") + end)
        elif kind == "error":
            events.append(event(end, error={"message": draw(texts)}))
        else:
            usage.add(place)
            events.append(event(end, choices=[], usage={"prompt_tokens": place, "completion_tokens": 2}))
    return [*events, b"data: [DONE]" + end], usage


@given(streams(), st.lists(st.integers(0, 400)), st.sampled_from([b"", b"data: {", b"\r", b"\n", b": x"]))
def test_output_is_the_same_however_the_stream_is_split(
    drawn: tuple[list[bytes], set[int]], cuts: list[int], tail: bytes
) -> None:
    events, usage = drawn
    whole = b"".join(events) + tail
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    chunks = [whole[start:end] for start, end in pairwise(places)]
    expected = b"".join(each for place, each in enumerate(events) if place not in usage) + tail

    dropping, passing, at_once = (
        EventStream(read, 2, 2, True),
        EventStream(read, 2, 2, False),
        EventStream(read, 2, 2, True),
    )
    assert relayed(dropping, chunks) == expected
    assert relayed(passing, chunks) == whole
    assert relayed(at_once, [whole]) == expected
    assert dropping.usage == passing.usage == at_once.usage == (Usage(max(usage), 2) if usage else None)
    assert dropping.first_token == at_once.first_token
    assert dropping.failed == at_once.failed == any(each.startswith(b'data: {"error"') for each in events)


@given(st.lists(st.binary(max_size=30)))
def test_garbage_is_relayed_unchanged(chunks: list[bytes]) -> None:
    assert relayed(EventStream(read, drop_usage=True), chunks) == b"".join(chunks)


# An answer in one piece.


def test_usage_of_a_whole_answer_is_read() -> None:
    said = read(b'{"choices": [], "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}}')
    usage = said.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.output_tokens, usage.cached, said.times) == (9, 0, 4, None)


@pytest.mark.parametrize(
    ("details", "cached"),
    [(b"null", None), (b"{}", None), (b'{"cached_tokens": null}', None), (b'{"cached_tokens": 0}', 0)],
)
def test_a_missing_count_is_none_and_not_zero(details: bytes, cached: int | None) -> None:
    usage = read(
        b'{"usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": %s}}' % details
    ).usage
    assert usage is not None
    assert (usage.output_tokens, usage.cached) == (3, cached)


def test_times_of_a_whole_answer_are_read() -> None:
    said = read(
        b'{"usage": {"prompt_tokens": 9}, "metrics": {"queue_time_ms": 250, "generation_time_ms": 1.5, "more": []}}'
    )
    usage, times = said.usage, said.times
    assert usage == Usage(9)
    assert times == EngineTimes(250, 1.5)
    assert (times.queue_s, times.generation_s) == (0.25, 0.0015)
    assert (EngineTimes().queue_s, EngineTimes().generation_s) == (None, None)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"oops", b'{"usage": null}', b'{"usage": 5}', b"\xff", b"[" * 9999]
)
def test_an_answer_without_usage_has_none(body: bytes) -> None:
    assert account(body) == (None, None)


# One that is broken does not take the other with it.
@pytest.mark.parametrize("metrics", [b"null", b"5", b"[]", b'{"queue_time_ms": "soon"}', b'{"queue_time_ms": 1e999}'])
def test_invalid_times_are_ignored(metrics: bytes) -> None:
    body = b'{"choices": [], "usage": {"prompt_tokens": 9}, "metrics": %s}' % metrics
    assert account(body) == (Usage(9), None)
    stream = EventStream(read)
    relayed(stream, [token(), b"data: " + body + b"\n\n"])
    assert (stream.usage, stream.times) == (Usage(9), None)


@pytest.mark.parametrize("usage", [b"5", b"{}", b'{"prompt_tokens": null}', b'{"prompt_tokens": 1e30}'])
def test_invalid_usage_is_ignored(usage: bytes) -> None:
    body = b'{"choices": [], "usage": %s, "metrics": {"queue_time_ms": 1}}' % usage
    assert account(body) == (None, EngineTimes(1))
    stream = EventStream(read)
    relayed(stream, [token(), b"data: " + body + b"\n\n"])
    assert stream.usage is None


def test_times_of_a_stream_are_read_from_the_usage_event() -> None:
    stream = EventStream(read, drop_usage=True)
    details = {"cached_tokens": 4}
    last = event(choices=[], usage={"prompt_tokens": 7, "prompt_tokens_details": details}, metrics={"queue_time_ms": 5})
    assert relayed(stream, [token(), last, DONE]) == token() + DONE
    assert stream.usage == Usage(7, None, PromptDetails(4))
    assert stream.times == EngineTimes(5)


numbers = st.integers() | st.floats() | st.none() | st.booleans() | st.text(max_size=3)
counts = st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "prompt_tokens_details"]), numbers)
said = st.dictionaries(st.sampled_from(["queue_time_ms", "generation_time_ms"]), numbers)


@given(st.lists(st.fixed_dictionaries({}, optional={"usage": counts, "metrics": said}), max_size=4))
def test_invalid_usage_and_times_do_not_break_the_stream(events: list[dict[str, Any]]) -> None:
    stream = EventStream(read)
    chunks = [token(), *(event(choices=[], **fields) for fields in events), DONE]
    assert relayed(stream, chunks) == b"".join(chunks)
    assert stream.usage is None or isinstance(stream.usage.prompt_tokens, int)
    for fields in events:
        usage, times = account(json.dumps(fields).encode())
        assert usage is None or isinstance(usage.output_tokens, int)
        assert times is None or times.queue_s is None or isinstance(times.queue_s, float)
