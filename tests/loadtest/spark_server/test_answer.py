"""The length of the simulated model's answers, and the details that are returned with them."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from loadtest.spark_server.answer import FINGERPRINT
from loadtest.workloads.texts import Texts
from tests.support.simulated_spark import (
    BF16,
    FLAT,
    chat,
    metric,
    post,
    post_for_json,
    request_in_engine,
    simulated_spark,
    stream_chunks,
)
from tests.support.timing import smallest
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, TEXT

USAGE = {"stream_options": {"include_usage": True}}
HEADED = Texts(nonce="n").message(3, "random", answer_tokens=30, size=200)


@pytest.fixture(scope="module")
def spark() -> Iterator[str]:
    with simulated_spark(speed=500.0) as url:
        yield url


# Where an answer ends


@pytest.mark.parametrize(
    ("text", "fields", "tokens", "reason"),
    [
        ("hi", {"max_tokens": 5}, 5, "length"),
        ("hi", {}, 256, "stop"),
        ("hi", {"min_tokens": 300}, 300, "stop"),
        (HEADED, {}, 30, "stop"),
        (HEADED, {"max_tokens": 100}, 30, "stop"),
        (HEADED, {"max_tokens": 30}, 30, "stop"),
        (HEADED, {"max_tokens": 29}, 29, "length"),
        (HEADED, {"max_tokens": 100, "ignore_eos": True}, 100, "length"),
        (HEADED, {"max_tokens": 100, "min_tokens": 40}, 40, "stop"),
        (HEADED.replace("answer=30", "answer=0"), {}, 1, "stop"),
        (HEADED.replace("random", "verse"), {"max_tokens": 40}, 40, "length"),
        ("x" + HEADED, {}, 30, "stop"),
    ],
)
def test_the_requested_answer_length_is_used(
    spark: str, text: str, fields: dict[str, Any], tokens: int, reason: str
) -> None:
    answer = post_for_json(spark, chat(text, **fields))
    assert answer["usage"]["completion_tokens"] == tokens
    assert answer["choices"][0]["finish_reason"] == reason
    assert stream_chunks(spark, chat(text, **fields))[-1]["choices"][0]["finish_reason"] == reason


def test_the_answer_length_is_read_from_the_last_user_message(spark: str) -> None:
    other = HEADED.replace("answer=30", "answer=7")
    messages = [
        {"role": role, "content": text} for role, text in (("user", HEADED), ("assistant", "a"), ("user", other))
    ]
    assert post_for_json(spark, {"messages": messages})["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("ids", [False, True])
def test_the_answer_length_of_a_text_completion_is_read(spark: str, ids: bool) -> None:
    tokens = post_for_json(spark, {"prompt": HEADED}, "/tokenize")["tokens"]
    body = {"prompt": tokens if ids else HEADED}
    assert post_for_json(spark, body, TEXT)["usage"]["completion_tokens"] == 16  # the default of vLLM
    assert post_for_json(spark, body | {"max_tokens": 50}, TEXT)["usage"]["completion_tokens"] == 30


def test_the_answer_is_limited_by_the_context() -> None:
    with simulated_spark(BF16.with_flags(max_model_len=400), speed=1000.0) as url:
        answer = post_for_json(url, chat("x" * 320, ignore_eos=True))
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (300, "length")


def test_the_kind_of_text_is_read_from_the_heading() -> None:
    """Words at random cost twice as much to prefill here."""
    profile = replace(FLAT, tf_s=0.0, tt_s_per_token=1.0, tt_factor={"random": 2.0})
    with simulated_spark(profile, speed=10_000.0) as url:
        took = [
            post_for_json(url, chat(Texts().message(1, kind, 1, 320)))["metrics"]["time_to_first_token_ms"]
            for kind in ("mixed", "random")
        ]
    assert took == [pytest.approx(10), pytest.approx(20)]


# What is told


@pytest.mark.parametrize("body", [chat("hi", n=2), {"prompt": ["a", "b"], "n": 2}])
def test_chunks_have_one_choice_each_and_the_fingerprint_at_the_end(spark: str, body: dict[str, Any]) -> None:
    path = CHAT if "messages" in body else TEXT
    body = body | {"max_tokens": 3}
    for chunks, end in ((stream_chunks(spark, body, path), None), (stream_chunks(spark, body | USAGE, path), -1)):
        said = chunks[:end]
        assert {len(chunk["choices"]) for chunk in said} == {1}
        assert not any("usage" in chunk for chunk in said)
        finishing = [bool(chunk["choices"][0]["finish_reason"]) for chunk in said]
        assert [chunk.get("system_fingerprint") == FINGERPRINT for chunk in said] == (
            finishing if end is None else [False] * len(said)
        )
    assert (chunks[-1]["choices"], chunks[-1]["system_fingerprint"]) == ([], FINGERPRINT)


def test_the_roles_of_all_choices_come_first(spark: str) -> None:
    choices = [chunk["choices"][0] for chunk in stream_chunks(spark, chat("hi", n=3, max_tokens=2))]
    assert [(choice["index"], choice["delta"].get("role")) for choice in choices[:3]] == [
        (index, "assistant") for index in range(3)
    ]
    assert not any("role" in choice["delta"] for choice in choices[3:])


def test_continuous_usage_is_in_every_chunk(spark: str) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "max_tokens": 3}
    chunks = stream_chunks(spark, chat("x" * 32, **options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 3]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {10}
    assert [chunk["usage"]["total_tokens"] for chunk in chunks] == [10, 11, 12, 13, 13]

    chunks = stream_chunks(spark, {"prompt": ["x" * 32, "x" * 64], **options}, TEXT)
    assert chunks[-1]["usage"]["prompt_tokens"] == 30
    for index, prompt in ((0, 10), (1, 20)):
        usages = [chunk["usage"] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == index]
        assert [usage["completion_tokens"] for usage in usages] == [1, 2, 3]
        assert {usage["prompt_tokens"] for usage in usages} == {prompt}


def test_continuous_usage_needs_include_usage(spark: str) -> None:
    chunks = stream_chunks(spark, chat("hi", max_tokens=2, stream_options={"continuous_usage_stats": True}))
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_token_ids_are_returned_on_request(spark: str, path: str) -> None:
    text = "x" * 32
    body = {**(chat(text) if path == CHAT else {"prompt": text}), "max_tokens": 4, "return_token_ids": True}
    prompt = post_for_json(spark, {"prompt": text}, "/tokenize")["tokens"]
    answer, chunks = post_for_json(spark, body, path), stream_chunks(spark, body, path)
    ids = answer["choices"][0]["token_ids"]
    holder = answer if path == CHAT else answer["choices"][0]
    assert holder["prompt_token_ids"] == prompt
    said = answer["choices"][0]["message"]["content"] if path == CHAT else answer["choices"][0]["text"]
    assert post_for_json(spark, {"tokens": ids}, "/detokenize")["prompt"] == said

    first, *tokens = [chunk if path == CHAT else chunk["choices"][0] for chunk in chunks]
    assert first["prompt_token_ids"] == prompt
    assert not any(token.get("prompt_token_ids") for token in tokens)
    told = [chunk["choices"][0].get("token_ids") for chunk in chunks[1 if path == CHAT else 0 :]]
    assert told == [[token] for token in ids]


def test_token_ids_are_not_returned_by_default(spark: str) -> None:
    answer = post_for_json(spark, chat("hi", max_tokens=1))
    assert (answer["prompt_token_ids"], answer["choices"][0]["token_ids"]) == (None, None)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_details_and_metrics_can_be_left_out(path: str) -> None:
    body = {**(chat("hi") if path == CHAT else {"prompt": "hi"}), "max_tokens": 2}
    with simulated_spark(speed=500.0, enable_prompt_tokens_details=False, enable_per_request_metrics=False) as url:
        answer, last = post_for_json(url, body, path), stream_chunks(url, body | USAGE, path)[-1]
    assert (answer["metrics"], answer["usage"]["prompt_tokens_details"]) == (None, None)
    assert "metrics" not in last
    assert "prompt_tokens_details" not in last["usage"]


@pytest.mark.parametrize("body", [chat("hi", n=2), {"prompt": ["a", "b"]}])
def test_several_answers_have_no_times(spark: str, body: dict[str, Any]) -> None:
    path = CHAT if "messages" in body else TEXT
    assert post_for_json(spark, body | {"max_tokens": 2}, path)["metrics"] is None
    assert "metrics" not in stream_chunks(spark, body | USAGE | {"max_tokens": 2}, path)[-1]


# Times


def test_reported_times_are_those_of_the_steps() -> None:
    """Alone at an engine of 20 ms a step: a prefill of three steps, then four steps of decoding."""
    with simulated_spark(FLAT, speed=50.0) as url:
        body = {"prompt": [1] * 2500, "max_tokens": 5}

        def queued() -> float:
            return float(post_for_json(url, body, TEXT)["metrics"]["queue_time_ms"])

        assert 0 <= smallest(queued, enough=10) < 10
        whole, last = post_for_json(url, body, TEXT)["metrics"], stream_chunks(url, body | USAGE, TEXT)[-1]["metrics"]
        one = post_for_json(url, body | {"max_tokens": 1}, TEXT)["metrics"]
    for metrics in (whole, last):
        assert metrics["time_to_first_token_ms"] == pytest.approx(60, abs=0.01)
        assert metrics["generation_time_ms"] == pytest.approx(80, abs=0.01)
        assert metrics["mean_itl_ms"] == pytest.approx(20, abs=0.01)
        assert metrics["tokens_per_second"] == pytest.approx(5 / 0.14, rel=0.001)
    assert (one["generation_time_ms"], one["mean_itl_ms"]) == (0, None)


@pytest.mark.parametrize(("seats", "asynchronous", "steps"), [(10, False, 1), (10, True, 2), (1, True, 1)])
def test_a_prefill_is_timed_from_when_it_is_composed(seats: int, asynchronous: bool, steps: int) -> None:
    """Ahead of its step, with async scheduling; but not before there is a seat. Until then it queues."""
    profile = FLAT.with_flags(max_num_seqs=seats, async_scheduling=asynchronous)
    with simulated_spark(profile, speed=20.0) as url:
        first = threading.Thread(target=post, args=(url, TEXT, {"prompt": [1], "max_tokens": 30}))
        first.start()
        wait_until(lambda: metric(url, "num_requests_running") == 1)
        asked = (post_for_json(url, {"prompt": [1], "max_tokens": 1}, TEXT)["metrics"] for _ in range(3))
        # On a busy machine a step may start late. A request that arrives in between does not queue, and has less time.
        metrics = next(each for each in asked if each["queue_time_ms"] > 0)
        first.join()
    assert metrics["time_to_first_token_ms"] == pytest.approx(50 * steps, abs=0.01)
    # The first has most of its 30 steps of 50 ms before it.
    assert (metrics["queue_time_ms"] > 400) == (seats == 1)


# Priority


@pytest.mark.parametrize(
    ("policy", "headers", "fields", "first"),
    [
        ("fcfs", {}, {"priority": -1}, "patient"),
        ("priority", {}, {"priority": -1}, "urgent"),
        ("priority", {}, {"priority": 1}, "patient"),
        ("priority", {"x-vllm-priority": "-1"}, {"priority": 1}, "urgent"),
        ("priority", {"x-vllm-priority": "soon"}, {"priority": -1}, "urgent"),
    ],
)
def test_priority_orders_waiting_requests(
    policy: Any, headers: dict[str, str], fields: dict[str, Any], first: str
) -> None:
    """One has the only seat and two wait for it, until it leaves."""
    ended: list[str] = []

    def ask(name: str, fields: dict[str, Any], headers: dict[str, str]) -> None:
        post_for_json(url, {"prompt": [1], "max_tokens": 2, **fields}, TEXT, **headers)
        ended.append(name)

    threads: list[threading.Thread] = []
    with simulated_spark(FLAT.with_flags(max_num_seqs=1, scheduling_policy=policy), speed=20.0) as url:
        with request_in_engine(url):
            for request in (("patient", {}, {}), ("urgent", fields, headers)):
                threads.append(threading.Thread(target=ask, args=request))
                threads[-1].start()
                wait_until(lambda: metric(url, "num_requests_waiting") == len(threads))
        for thread in threads:
            thread.join()
    assert ended[0] == first
