"""Embeddings, scores and other pooling APIs: how many prompts a request has, and how large they are."""

import json
from typing import Any

import pytest

from gateway.api.conversation import MEDIA_TOKENS
from gateway.api.pooling import EMBEDDINGS, SCORE
from gateway.errors import BadRequest
from gateway.pricing.prompt import PromptSize
from gateway.pricing.usage import Usage

HELLO = [{"role": "user", "content": "abc"}]
ABC = PromptSize(words=3, messages=1)
IMAGE = {"type": "image_url", "image_url": {"url": "data:,a"}}


def sizes(**fields: Any) -> list[PromptSize]:
    return [prompt.size for prompt in EMBEDDINGS.parse(json.dumps(fields).encode()).prompts]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("abc", [PromptSize(3)]),
        (["abc", "de"], [PromptSize(3), PromptSize(2)]),
        ([1, 2, 3], [PromptSize(tokens=3)]),
        ([[1, 2], [3]], [PromptSize(tokens=2), PromptSize(tokens=1)]),
        (HELLO, [ABC]),
        ([HELLO, HELLO + HELLO], [ABC, ABC.plus(ABC)]),
        ([], [PromptSize()]),
        (None, [PromptSize()]),
    ],
)
def test_all_forms_of_an_input_are_read(given: Any, prompts: list[PromptSize]) -> None:
    assert sizes(input=given) == prompts


def test_messages_are_read_as_an_input() -> None:
    assert sizes(messages=HELLO) == [ABC]
    assert sizes(messages=[HELLO, HELLO]) == [ABC, ABC]
    assert sizes(messages=[{"role": "user", "content": [IMAGE]}]) == [PromptSize(messages=1, tokens=MEDIA_TOKENS)]


def test_input_for_a_plugin_counts_as_its_json_text() -> None:
    (size,) = sizes(data={"content": "abc"})
    assert size == PromptSize(3)


def test_each_scored_pair_is_a_prompt() -> None:
    assert sizes(query="ab", documents=["c", "def"]) == [PromptSize(3), PromptSize(5)]
    assert sizes(queries="ab", items="c") == [PromptSize(3)]
    assert sizes(text_1=["a", "bc"], text_2=["d", "ef"]) == [PromptSize(2), PromptSize(4)]
    assert sizes(data_1=["a", "bc"], data_2="d") == [PromptSize(2), PromptSize(3)]
    assert sizes(query="ab", documents=["c"], instruction="de") == [PromptSize(5)]
    document = {"content": [{"type": "text", "text": "c"}, IMAGE]}
    assert sizes(query="ab", documents=[document]) == [PromptSize(3, tokens=MEDIA_TOKENS)]


def test_each_prompt_takes_a_seat_and_reserves_no_output() -> None:
    request = SCORE.parse(b'{"query": "a", "documents": ["b", "c"], "user": "ann", "model": "m"}')
    assert (request.seats, request.max_tokens, request.stream) == (2, 1, False)
    assert (request.user, request.model) == ("ann", "m")


def test_pooled_prompts_have_no_prefix_names() -> None:
    assert all(prompt.prefixes == () for prompt in EMBEDDINGS.parse(b'{"input": ["a", "b"]}').prompts)


def test_a_missing_input_is_left_for_the_engine_to_refuse() -> None:
    assert sizes() == [PromptSize()]
    assert sizes(query="a") == [PromptSize()]


@pytest.mark.parametrize("body", [b"", b"[]", b"hello", b'{"model": []}', b'{"input": [9223372036854775808]}'])
def test_an_invalid_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        EMBEDDINGS.parse(body)


def test_usage_counts_the_prompts() -> None:
    assert EMBEDDINGS.read(b'{"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}').usage == Usage(3)
