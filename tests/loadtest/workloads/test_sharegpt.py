"""Conversation lengths: read from a file by vLLM's rules, or synthetic when there is no file."""

import json
from random import Random
from typing import Any

import pytest

from loadtest.results.records import percentile
from loadtest.workloads.open_loops import arrivals
from loadtest.workloads.sharegpt import chosen, replay, synthetic
from loadtest.workloads.workload import Dataset, Options


def entry(*tokens: int) -> dict[str, Any]:
    """A conversation whose turns have so many tokens."""
    return {"id": "x", "conversations": [{"from": "human", "value": "four" * count} for count in tokens]}


def conversations(*entries: Any) -> Dataset:
    return Dataset("conversations.json", json.dumps(entries).encode())


def test_synthetic_lengths_have_the_published_totals_and_quantiles() -> None:
    requests = replay(Options(42)).requests
    assert sum(request.prompt_tokens for request in requests) == pytest.approx(60_269, rel=0.005)
    answers = [request.output_tokens for request in requests]
    assert sum(answers) == pytest.approx(51_200, rel=0.005)
    assert 110 <= percentile(answers, 50) <= 130
    assert 500 <= percentile(answers, 90) <= 515
    assert 610 <= percentile(answers, 95) <= 660
    assert percentile(answers, 99) == pytest.approx(865, rel=0.02)


def test_synthetic_lengths_pass_vllms_filter() -> None:
    for prompt, answer in synthetic(2000, 3):
        assert 4 <= prompt <= 1024
        assert answer >= 4
        assert prompt + answer <= 2048


def test_a_seed_changes_only_the_pairing_of_lengths() -> None:
    one, other = synthetic(250, 1), synthetic(250, 2)
    assert one != other
    for mine, theirs in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        assert sorted(mine) == sorted(theirs)
    assert one == synthetic(250, 1)


def test_prompt_and_answer_lengths_are_independent() -> None:
    lengths = sorted(synthetic(250, 42))
    halves = [sum(answer for _, answer in half) for half in (lengths[:125], lengths[125:])]
    assert max(halves) < 1.5 * min(halves)


@pytest.mark.parametrize(
    ("turns", "taken"),
    [
        ((4, 4), True),
        ((3, 4), False),
        ((4, 3), False),
        ((1024, 1024), True),
        ((1024, 1025), False),
        ((1025, 4), False),
        ((10, 2038), True),
        ((100,), False),
        ((), False),
        ((5, 6, 7), True),
    ],
)
def test_too_short_and_too_long_conversations_are_skipped(turns: tuple[int, ...], taken: bool) -> None:
    dataset = conversations(entry(*turns), entry(50, 60))
    if taken:
        assert set(chosen(dataset, 2, 1)) == {(50, 60), turns[:2]}
    else:
        with pytest.raises(ValueError, match="only 1 conversations"):
            chosen(dataset, 2, 1)


def test_an_entry_without_conversations_is_skipped() -> None:
    assert chosen(conversations({"id": "y", "items": 3}, entry(8, 9)), 1, 1) == [(8, 9)]


def test_the_order_is_that_of_the_shuffled_file() -> None:
    """Of what has two turns: those that are too long take part in the shuffle."""
    turns = [(number, 2000 if number % 3 else 10) for number in range(4, 100)]
    dataset = conversations(*(entry(*each) for each in turns), entry(7))
    Random(42).shuffle(turns)
    assert chosen(dataset, 20, 42) == [each for each in turns if sum(each) <= 2048][:20]


def test_tokens_are_estimated_from_bytes_not_letters() -> None:
    dataset = conversations({"conversations": [{"value": "é" * 20}, {"value": "x" * 22}]})
    assert chosen(dataset, 1, 1) == [(10, 6)]


def test_a_file_is_replayed() -> None:
    dataset = conversations(*(entry(10 + number, 300) for number in range(400)))
    requests = replay(Options(42, dataset=dataset)).requests
    assert len(requests) == 250
    assert [request.at for request in requests] == arrivals(250, 0.3, 0.7, 42)
    assert {(request.kind, request.text, request.output_tokens) for request in requests} == {("sharegpt", "mixed", 300)}
    assert [request.prompt_tokens - 13 for request in requests] == [prompt for prompt, _ in chosen(dataset, 250, 42)]


def test_synthetic_lengths_are_labelled_in_results() -> None:
    requests = replay(Options(42)).requests
    assert {request.kind for request in requests} == {"synthetic"}
    assert [request.at for request in requests] == arrivals(250, 0.3, 0.7, 42)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"{}", b'[{"conversations": [{"from": "human"}]}]', b'[{"conversations": 3}]', b'["\xff"]'],
)
def test_another_file_is_refused_with_the_name_of_the_right_one(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"other\.json.*ShareGPT_V3_unfiltered_cleaned_split\.json"):
        replay(Options(42, dataset=Dataset("other.json", content)))


def test_a_file_with_too_few_conversations_is_refused() -> None:
    with pytest.raises(ValueError, match="only 2 conversations of a usable length, and 250 are needed"):
        replay(Options(42, dataset=conversations(entry(5, 5), entry(6, 6), entry(1, 1))))
