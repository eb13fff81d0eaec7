"""The simulated vLLM's tokenizer and prefix cache, as a client sees them."""

from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.workloads.texts import Texts
from tests.support.simulated_spark import BF16, chat, metric, post, post_for_json, simulated_spark, stream_chunks
from tests.support.wire import CHAT, TEXT

CACHING = BF16.with_flags(enable_prefix_caching=True)
TEXTS = Texts(nonce="cache")


@pytest.fixture
def spark() -> Iterator[str]:
    with simulated_spark(CACHING, speed=500.0) as url:
        yield url


def cached(url: str, body: dict[str, Any], path: str = CHAT) -> int:
    return int(post_for_json(url, {"max_tokens": 1, **body}, path)["usage"]["prompt_tokens_details"]["cached_tokens"])


def said(number: int, tokens: int) -> str:
    return TEXTS.message(number, "mixed", 1000, int(tokens * 3.2))


def test_a_repeated_prompt_hits_the_cache(spark: str) -> None:
    body = chat(said(1, 1000), max_tokens=1)
    counts = [post_for_json(spark, body)["usage"]["prompt_tokens_details"] for _ in range(2)]
    assert [(count["cached_tokens"], count["created_cache_tokens"]) for count in counts] == [(0, 992), (992, 0)]
    chunk = stream_chunks(spark, body | {"stream_options": {"include_usage": True}})[-1]
    assert chunk["usage"]["prompt_tokens_details"] == {"cached_tokens": 992, "created_cache_tokens": 0}
    assert (metric(spark, "prefix_cache_queries_total"), metric(spark, "prefix_cache_hits_total")) == (3000, 1984)


def test_the_next_turn_hits_the_previous_turn_and_its_answer(spark: str) -> None:
    messages = [{"role": "system", "content": said(1, 333)}, {"role": "user", "content": said(2, 555)}]
    answer = post_for_json(spark, {"messages": messages, "max_tokens": 111})
    messages += [answer["choices"][0]["message"], {"role": "user", "content": said(3, 222)}]
    assert cached(spark, {"messages": messages}) == 992  # of 333 + 555 + 111, what is in whole blocks of 16


def test_a_system_message_is_shared_between_requests(spark: str) -> None:
    system = {"role": "system", "content": TEXTS.system("office", 500)}
    found = [
        cached(spark, {"messages": [system, {"role": "user", "content": said(number, 300)}]}) for number in range(2)
    ]
    assert found == [0, 496]


def test_a_cache_salt_separates_requests(spark: str) -> None:
    body = chat(said(1, 500))
    salts = [{}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": "a"}, {}]
    assert [cached(spark, body | salt) for salt in salts] == [0, 0, 0, 496, 496]


def test_slices_of_its_tokens_warm_the_cache_for_a_chat(spark: str) -> None:
    body = {"messages": [{"role": "system", "content": said(1, 700)}, {"role": "user", "content": said(2, 2300)}]}
    tokens = post_for_json(spark, body, "/tokenize")["tokens"]
    found = [cached(spark, {"prompt": tokens[:end]}, TEXT) for end in (1024, 2048)]
    assert found == [0, 1024]
    assert cached(spark, body) == 2048


def test_without_prefix_caching_nothing_is_cached() -> None:
    with simulated_spark(speed=500.0) as url:
        body = chat(said(1, 500), max_tokens=1)
        details = [post_for_json(url, body)["usage"]["prompt_tokens_details"] for _ in range(2)]
    assert details == [{"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None}] * 2


# /tokenize and /detokenize


@pytest.mark.parametrize(
    "body", [chat(said(1, 77)), {"messages": [{"role": "user"}, {"role": "user", "content": "é"}]}]
)
def test_tokenize_counts_a_chat_like_its_usage(spark: str, body: dict[str, Any]) -> None:
    told = post_for_json(spark, body, "/tokenize")
    assert told == {"count": len(told["tokens"]), "max_model_len": 131072, "tokens": told["tokens"], "token_strs": None}
    assert told["count"] == post_for_json(spark, body | {"max_tokens": 1})["usage"]["prompt_tokens"]


@pytest.mark.parametrize("text", ["", "a", "the spark said « é »", said(1, 50)])
def test_detokenize_returns_the_text(spark: str, text: str) -> None:
    told = post_for_json(spark, {"prompt": text, "return_token_strs": True}, "/tokenize")
    assert post_for_json(spark, {"tokens": told["tokens"]}, "/detokenize") == {"prompt": text}
    assert len(told["token_strs"]) == told["count"] == -(-len(text.encode()) // 3.2)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "body.prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "body.prompt"),
        ("/tokenize", {"messages": []}, 400, None),
        ("/tokenize", {"model": "nope", "prompt": "a"}, 404, "model"),
        ("/detokenize", {}, 400, "body.tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "body.tokens.0"),
        ("/detokenize", {"model": "nope", "tokens": [1]}, 404, "model"),
    ],
)
def test_invalid_tokenize_requests_are_refused(
    spark: str, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    response = post(spark, path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
