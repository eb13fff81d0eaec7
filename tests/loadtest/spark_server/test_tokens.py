"""Tokens of the simulated model: text, ids and cache blocks agree."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.spark_server.tokens import Ids, Text, answer, answer_token, block_keys, decode, prepare, token_bytes

texts = st.text(st.characters(codec="utf-8"), min_size=1)
sizes = st.floats(min_value=1, max_value=6)
blocks = st.integers(min_value=1, max_value=8)


def text(*messages: str, size: float = 3.2) -> Text:
    return Text([message.encode() for message in messages], size)


@given(st.lists(texts, min_size=1, max_size=4), sizes)
def test_text_and_token_ids_convert_both_ways(messages: list[str], size: float) -> None:
    prompt = text(*messages, size=size)
    ids = Ids(prompt.ids)
    assert prompt.count == ids.count == len(prompt.spans) == sum(ceil(len(each.encode()) / size) for each in messages)
    assert decode(ids.spans) == "".join(messages)
    assert all(0 < token < 1 << 53 for token in ids.ids)


@given(st.lists(texts, min_size=1, max_size=4), sizes, blocks, st.integers(min_value=1, max_value=40))
def test_text_and_ids_have_the_same_cache_blocks(messages: list[str], size: float, block: int, made: int) -> None:
    prompt, said = text(*messages, size=size), answer(made, size)
    keys = block_keys(prompt, said, block)
    assert keys == block_keys(Ids(prompt.ids), said, block)
    assert len(keys) == (prompt.count + made) // block


@given(texts, texts, sizes, blocks, st.integers(min_value=1, max_value=40))
def test_the_next_turn_starts_with_the_blocks_of_the_last(
    first: str, second: str, size: float, block: int, made: int
) -> None:
    said = answer(made, size)
    before = block_keys(text(first, size=size), said, block)
    after = block_keys(text(first, decode([said.data]), second, size=size), said, block)
    assert after[: len(before)] == before


@given(sizes, st.integers(min_value=1, max_value=300))
def test_an_answer_counts_the_same_in_the_next_prompt(size: float, count: int) -> None:
    whole = answer(count, size)
    assert whole.count == count
    assert whole.data == b"".join(answer_token(number, size) for number in range(count))
    assert whole.spans == [answer_token(number, size) for number in range(count)]


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_block_keys_differ_from_the_first_difference_on(at: int) -> None:
    one = "x" * 128
    other = one[:at] + "y" + one[at + 1 :]
    keys, others = (block_keys(text(each, size=2), answer(1, 2), 8) for each in (one, other))
    same = at // 16
    assert keys[:same] == others[:same]
    assert not set(keys[same:]) & set(others[same:])


def test_a_salt_changes_every_key() -> None:
    prompt, said = text("x" * 200), answer(20, 3.2)
    assert not set(block_keys(prompt, said, 4)) & set(block_keys(prompt, said, 4, "salt"))
    assert block_keys(prompt, said, 4, "salt") == block_keys(prompt, said, 4, "salt")


def test_no_token_spans_two_messages() -> None:
    assert text("abcd", "ef").spans == [b"abc", b"d", b"ef"]


@pytest.mark.parametrize("token", [0, 2, 7, 200, 0x2FF, 1 << 62])
def test_an_unknown_token_id_is_a_token_without_text(token: int) -> None:
    assert decode([token_bytes(token)]) == ""
    said = answer(1, 3.2)
    assert block_keys(Ids([token] * 8), said, 8) != block_keys(Ids([token] * 7 + [token + 8]), said, 8)


@pytest.mark.parametrize("size", [0.0, 0.99, 6.01, float("nan")])
def test_a_token_has_one_to_six_bytes(size: float) -> None:
    with pytest.raises(ValueError, match="from 1 to 6"):
        prepare(size)
