"""Requests that the simulated vLLM refuses, and unusual ones that it accepts."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.simulated_spark import BF16, chat, post, post_for_json, simulated_spark


@pytest.fixture(scope="module")
def spark() -> Iterator[str]:
    with simulated_spark() as url:
        yield url


BROKEN, BAD = "Bad Request", "BadRequestError"  # what pydantic refuses, and what vLLM does


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        ("chat/completions", b"{", 400, BROKEN, "body.1"),
        ("chat/completions", b"", 400, BROKEN, "body"),
        ("chat/completions", b"[" * 100_000, 400, None, None),
        ("chat/completions", {}, 400, BROKEN, "body.messages"),
        ("chat/completions", chat("hi", max_tokens="x"), 400, BROKEN, "body.max_tokens"),
        ("chat/completions", {"messages": "hi"}, 400, BROKEN, "body.messages"),
        ("chat/completions", {"messages": [{"content": "hi"}]}, 400, BROKEN, "body.messages.0.role"),
        ("chat/completions", {"messages": []}, 400, BAD, None),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, BAD, None),
        ("chat/completions", chat("hi", max_tokens=0), 400, BAD, "max_tokens"),
        ("chat/completions", chat("hi", max_tokens=131073), 400, BAD, "max_tokens"),
        ("chat/completions", chat("hi", max_completion_tokens=131073), 400, BAD, "max_completion_tokens"),
        ("chat/completions", chat("hi", max_tokens=3, min_tokens=4), 400, BAD, None),
        ("chat/completions", chat("hi", min_tokens=-1), 400, BAD, None),
        ("chat/completions", chat("hi", n=0), 400, BAD, None),
        ("chat/completions", chat("hi", priority=1 << 63), 400, BROKEN, "body.priority"),
        ("chat/completions", chat("hi", cache_salt=""), 400, BAD, "cache_salt"),
        ("chat/completions", chat("hi", cache_salt="a/b"), 400, BAD, "cache_salt"),
        ("chat/completions", chat("hi", cache_salt="a" * 129), 400, BAD, "cache_salt"),
        ("chat/completions", chat("hi", stream_options={"include_usage": False}), 400, BAD, "stream_options"),
        ("chat/completions", chat("hi", echo=True), 400, BAD, "echo"),
        ("chat/completions", chat("x" * 419_434), 400, BAD, "input_tokens"),
        ("chat/completions", chat("\ud800"), 400, BAD, None),
        ("chat/completions", chat("hi", model="gpt-5"), 404, "NotFoundError", "model"),
        ("completions", {}, 400, BAD, "prompt"),
        ("completions", {"prompt": ""}, 400, BAD, "prompt"),
        ("completions", {"prompt": []}, 400, BAD, None),
        ("completions", {"prompt": ["a", ""]}, 400, BAD, None),
        ("completions", {"prompt": [[7], []]}, 400, BAD, None),
        ("completions", {"prompt": ["a", 1]}, 400, BROKEN, "body.prompt"),
        ("completions", {"prompt": [1, -1]}, 400, BROKEN, "body.prompt.1"),
        ("completions", {"prompt": [1] * 131073}, 400, BAD, "input_tokens"),
    ],
)
def test_invalid_requests_are_refused_as_vllm_does(
    spark: str, path: str, body: object, status: int, kind: str | None, param: str | None
) -> None:
    response = post(spark, f"/v1/{path}", body)
    assert response.status_code == status
    if kind is None:  # what no parser reads
        assert response.json() == {"detail": "There was an error parsing the body"}
        return
    error = response.json()["error"]
    assert error.pop("message")
    assert error == {"type": kind, "param": param, "code": status}


@pytest.mark.parametrize("kind", [None, "text/plain", "application/vnd.api+json"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_the_content_type_must_be_json(spark: str, path: str, kind: str | None) -> None:
    response = httpx.post(f"{spark}{path}", content=b"{}", headers={"content-type": kind} if kind else {})
    assert response.status_code == 400
    assert "Only 'application/json' is allowed" in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_other_json_content_types_are_accepted(spark: str, kind: str) -> None:
    post_for_json(spark, chat("hi", max_tokens=1), **{"content-type": kind})


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": "2"}, 2),
        ({"max_tokens": 2.0}, 2),
        ({"max_tokens": 2, "temperature": float("nan")}, 2),
        ({"max_tokens": 3, "max_completion_tokens": 2}, 2),
        ({"max_tokens": 2, "stream_options": {}}, 2),
        ({"max_tokens": 2, "n": None, "stream": None, "model": None, "logprobs": True, "nonsense": 1}, 2),
    ],
)
def test_fields_are_coerced_as_vllm_does(spark: str, fields: dict[str, Any], tokens: int) -> None:
    assert post_for_json(spark, chat("hi", **fields))["usage"]["completion_tokens"] == tokens


def test_unknown_routes_get_fastapis_error(spark: str) -> None:
    missing, wrong = httpx.get(f"{spark}/v1/nothing"), httpx.get(f"{spark}/v1/chat/completions")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    assert (wrong.status_code, wrong.json(), wrong.headers["allow"]) == (405, {"detail": "Method Not Allowed"}, "POST")


def test_a_body_that_is_not_utf8_gets_fastapis_error(spark: str) -> None:
    response = post(spark, "/v1/completions", b'{"prompt": "\xff"}')
    assert (response.status_code, response.json()) == (400, {"detail": "There was an error parsing the body"})


def test_the_longest_prompt_gets_the_remaining_tokens() -> None:
    with simulated_spark(BF16.with_flags(max_model_len=1000), speed=1000.0) as url:
        for prompt, tokens in ((990, 10), (995, 5), (999, 1)):
            answer = post_for_json(url, {"prompt": [1] * prompt, "max_tokens": 10}, "/v1/completions")
            assert answer["usage"]["completion_tokens"] == tokens
            assert answer["choices"][0]["finish_reason"] == "length"
        assert post(url, "/v1/completions", {"prompt": [1] * 1000, "max_tokens": 10}).status_code == 400


def test_a_prompt_that_never_fits_the_cache_is_refused() -> None:
    with simulated_spark(BF16.with_flags(kv_cache_tokens=160), speed=1000.0) as url:
        assert post(url, "/v1/completions", {"prompt": [1] * 150, "max_tokens": 10}).status_code == 200
        response = post(url, "/v1/completions", {"prompt": [1] * 150, "max_tokens": 11})
        assert response.status_code == 400
        assert "KV cache" in response.json()["error"]["message"]
