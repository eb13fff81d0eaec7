"""What the gateway takes for granted about vLLM, asked of a real one without the gateway in between."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from tests.support.tiny_model import POSITIONS, words
from tests.support.vllm import Vllm, becomes_true
from tests.support.vllm_requests import BROKEN, CHAT, COMPLETION, JSON, TIMEOUT, USAGE, chat, completion


def post(vllm: Vllm, path: str, body: dict[str, Any] | str | bytes, **headers: str) -> httpx.Response:
    content = json.dumps(body) if isinstance(body, dict) else body
    return httpx.post(f"{vllm.url}{path}", content=content, headers=JSON | headers, timeout=TIMEOUT)


def answer(vllm: Vllm, path: str, body: dict[str, Any] | str | bytes) -> dict[str, Any]:
    return dict(post(vllm, path, body).raise_for_status().json())


def chunks(vllm: Vllm, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a whole stream, which must be nothing but `data:` events with `[DONE]` at the end."""
    response = post(vllm, path, body).raise_for_status()
    *events, done, rest = response.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def fingerprinted(found: list[dict[str, Any]]) -> list[int]:
    return [number for number, chunk in enumerate(found) if chunk.get("system_fingerprint")]


def finishing(found: list[dict[str, Any]]) -> list[int]:
    return [number for number, chunk in enumerate(found) if chunk["choices"] and chunk["choices"][0]["finish_reason"]]


class TestStream:
    def test_headers_come_at_once_and_the_role_with_the_first_token(self, vllm: Vllm) -> None:
        body = chat(words(6000, seed=1), stream=True)
        started = time.monotonic()
        with httpx.stream("POST", f"{vllm.url}{CHAT}", json=body, timeout=TIMEOUT) as response:
            headers = time.monotonic() - started
            events = ((time.monotonic() - started, line) for line in response.iter_lines() if line)
            role, role_event = next(events)
            token, token_event = next(events)
        assert json.loads(role_event[6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "role" not in json.loads(token_event[6:])["choices"][0]["delta"]
        assert headers < role / 3, "the headers waited for the prefill"
        assert token - role < role / 3, "the role did not wait for the prefill"

    @pytest.mark.parametrize("path", [CHAT, COMPLETION])
    def test_is_an_event_stream_in_http_chunks(self, vllm: Vllm, path: str) -> None:
        response = post(vllm, path, (chat if path == CHAT else completion)(stream=True))
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in response.headers
        assert "cache-control" not in response.headers
        assert b"\r" not in response.content
        assert all(line == b"" or line.startswith(b"data: ") for line in response.content.split(b"\n"))

    @pytest.mark.parametrize(("path", "body"), [(CHAT, chat(n=2)), (COMPLETION, completion([" baba", " koko"], n=2))])
    def test_fingerprint_without_usage_is_in_each_finishing_chunk(
        self, vllm: Vllm, path: str, body: dict[str, Any]
    ) -> None:
        found = chunks(vllm, path, body | {"stream": True})
        assert fingerprinted(found) == finishing(found)
        assert all(chunk["choices"] and "usage" not in chunk for chunk in found)

    @pytest.mark.parametrize(("path", "body"), [(CHAT, chat(n=2)), (COMPLETION, completion([" baba", " koko"], n=2))])
    def test_fingerprint_with_usage_is_in_the_usage_chunk_alone(
        self, vllm: Vllm, path: str, body: dict[str, Any]
    ) -> None:
        found = chunks(vllm, path, body | USAGE)
        assert fingerprinted(found) == [len(found) - 1]
        assert found[-1]["choices"] == []
        assert all(chunk["choices"] and "usage" not in chunk for chunk in found[:-1])

    @pytest.mark.parametrize("path", [CHAT, COMPLETION])
    def test_usage_chunk_carries_details_and_metrics(self, vllm: Vllm, path: str) -> None:
        *_, last = chunks(vllm, path, (chat if path == CHAT else completion)() | USAGE)
        usage, metrics = last["usage"], last["metrics"]
        assert usage["completion_tokens"] == 3
        assert usage["total_tokens"] == usage["prompt_tokens"] + 3
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert {"queue_time_ms", "time_to_first_token_ms", "generation_time_ms"} <= metrics.keys()

    @pytest.mark.parametrize(("path", "body"), [(CHAT, chat(n=2)), (COMPLETION, completion([" baba", " koko"]))])
    def test_metrics_are_left_out_of_an_answer_of_several(self, vllm: Vllm, path: str, body: dict[str, Any]) -> None:
        assert "metrics" not in chunks(vllm, path, body | USAGE)[-1]
        assert answer(vllm, path, body)["metrics"] is None

    def test_continuous_usage_counts_tokens_in_every_chunk(self, vllm: Vllm) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        found = chunks(vllm, CHAT, chat(stream=True, stream_options=options))
        counts = [chunk["usage"]["completion_tokens"] for chunk in found]
        assert counts[0] == 0, "the role comes before any token"
        assert counts == sorted(counts)
        assert counts[-1] == 3

    def test_continuous_usage_needs_include_usage(self, vllm: Vllm) -> None:
        found = chunks(vllm, CHAT, chat(stream=True, stream_options={"continuous_usage_stats": True}))
        assert all("usage" not in chunk for chunk in found)

    def test_the_roles_of_all_choices_come_first(self, vllm: Vllm) -> None:
        found = [chunk["choices"][0] for chunk in chunks(vllm, CHAT, chat(n=3, stream=True))]
        assert [(choice["index"], choice["delta"].get("role")) for choice in found[:3]] == [
            (0, "assistant"),
            (1, "assistant"),
            (2, "assistant"),
        ]
        assert all("role" not in choice["delta"] for choice in found[3:])

    @pytest.mark.parametrize("stream", [False, True])
    def test_index_counts_the_choices_of_each_prompt_in_turn(self, vllm: Vllm, stream: bool) -> None:
        prompts = [" baba", " koko", " lulu"]
        body = completion(prompts, n=2, temperature=1, echo=True, stream=stream)
        texts = [""] * 6
        for part in chunks(vllm, COMPLETION, body) if stream else [answer(vllm, COMPLETION, body)]:
            for choice in part["choices"]:
                texts[choice["index"]] += choice["text"]
        for index, text in enumerate(texts):
            assert text.startswith(prompts[index // 2])

    @pytest.mark.parametrize("path", [CHAT, COMPLETION])
    def test_each_chunk_has_one_choice(self, vllm: Vllm, path: str) -> None:
        body = chat(n=2, stream=True) if path == CHAT else completion([" baba", " koko"], n=2, stream=True)
        assert {len(chunk["choices"]) for chunk in chunks(vllm, path, body)} == {1}


class TestAbort:
    """A client that closes its connection takes its request out of the engine."""

    # Whichever part of it is under way, it would go on for much longer than the fixture waits.
    LONG = chat(words(6000, seed=2), max_tokens=8000)

    @pytest.fixture
    def running(self, vllm: Vllm) -> Iterator[Callable[[], bool]]:
        """A condition: a request of this test is running. After the test it must not be."""
        assert becomes_true(lambda: vllm.metric("vllm:num_requests_running") == 0)
        yield lambda: vllm.metric("vllm:num_requests_running") == 1
        # The running requests are all there is to see: `vllm:request_success_total` has a label for aborts, but
        # counts none of these.
        assert becomes_true(lambda: vllm.metric("vllm:num_requests_running") == 0, seconds=5)

    def test_in_prefill(self, vllm: Vllm, running: Callable[[], bool]) -> None:
        body = self.LONG | {"stream": True}
        with httpx.stream("POST", f"{vllm.url}{CHAT}", json=body, timeout=TIMEOUT):
            assert becomes_true(running)

    def test_in_decode(self, vllm: Vllm, running: Callable[[], bool]) -> None:
        body = chat(max_tokens=8000, stream=True)
        with httpx.stream("POST", f"{vllm.url}{CHAT}", json=body, timeout=TIMEOUT) as response:
            lines = response.iter_lines()  # kept: httpx closes the response with its iterator
            assert "assistant" in next(lines)
            assert becomes_true(running)

    def test_of_an_answer_in_one_piece(self, vllm: Vllm, running: Callable[[], bool]) -> None:
        # httpx would wait for the headers, which come with the whole answer.
        with closing(HTTPConnection(vllm.url.removeprefix("http://"), timeout=TIMEOUT)) as connection:
            connection.request("POST", CHAT, json.dumps(self.LONG), JSON)
            assert becomes_true(running)


class TestPrefixCache:
    def test_tokens_of_a_chat_warm_the_cache_for_it_in_slices(self, vllm: Vllm) -> None:
        body = chat(words(2000, seed=3))
        tokens = httpx.post(f"{vllm.url}/tokenize", json=body, timeout=TIMEOUT).raise_for_status().json()
        cached = []
        for end in (1024, 2048):
            usage = answer(vllm, COMPLETION, completion(tokens["tokens"][:end], max_tokens=1))["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        usage = answer(vllm, CHAT, body)["usage"]
        assert tokens["count"] == usage["prompt_tokens"] == len(tokens["tokens"]) < 2048
        block = 128  # of the CPU; the last block of a prompt is not shared unless it is whole
        assert cached == [0, 1024]
        assert usage["prompt_tokens_details"]["cached_tokens"] == (usage["prompt_tokens"] - 1) // block * block


REFUSED = "BadRequestError"  # what vLLM refuses


class TestErrors:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", [CHAT, COMPLETION])
    def test_unknown_model(self, vllm: Vllm, path: str, stream: bool) -> None:
        response = post(vllm, path, (chat if path == CHAT else completion)(model="nope", stream=stream))
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {
            "error": {
                "message": "The model `nope` does not exist. Valid aliases: tiny.",
                "type": "NotFoundError",
                "param": "model",
                "code": 404,
            }
        }

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", [CHAT, COMPLETION])
    def test_prompt_too_long(self, vllm: Vllm, path: str, stream: bool) -> None:
        text = words(POSITIONS + 100, seed=4)
        response = post(vllm, path, (chat if path == CHAT else completion)(text, stream=stream))
        error = response.json()["error"]
        message = error.pop("message")
        assert response.status_code == 400
        assert error == {"type": REFUSED, "param": "input_tokens", "code": 400}
        # It stops counting one token past its limit, so that this is no price.
        assert message.startswith(f"This model's maximum context length is {POSITIONS} tokens. However, your prompt")
        assert f"at least {POSITIONS + 1} input tokens" in message

    @pytest.mark.parametrize(
        ("body", "kind", "param"),
        [
            pytest.param('{"model":', BROKEN, "body.9", id="broken JSON"),
            pytest.param("", BROKEN, "body", id="no body"),
            pytest.param("[]", BROKEN, "body", id="no object"),
            pytest.param('{"model": "tiny"}', BROKEN, "body.messages", id="no messages"),
            pytest.param(chat(messages=[]), REFUSED, None, id="empty messages"),
            pytest.param(chat(max_tokens="x"), BROKEN, "body.max_tokens", id="max_tokens a word"),
            pytest.param(chat(max_tokens=1.5), BROKEN, "body.max_tokens", id="max_tokens a fraction"),
            pytest.param(chat(max_tokens=0), REFUSED, "max_tokens", id="max_tokens zero"),
            pytest.param(chat(max_tokens=POSITIONS + 1), REFUSED, "max_tokens", id="max_tokens over the context"),
            pytest.param(chat(n=0), REFUSED, None, id="n zero"),
            pytest.param(chat(temperature=float("nan")), REFUSED, "temperature", id="not a number"),
            pytest.param(
                chat(stream=False, stream_options={"include_usage": False}),
                REFUSED,
                "stream_options",
                id="stream_options with stream false",
            ),
            pytest.param(chat(stream=True, stream_options=5), BROKEN, "body.stream_options", id="stream_options 5"),
            pytest.param(chat("\ud800"), REFUSED, None, id="lone surrogate"),
        ],
    )
    def test_refused(self, vllm: Vllm, body: dict[str, Any] | str, kind: str, param: str | None) -> None:
        response = post(vllm, CHAT, body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert isinstance(error.pop("message"), str)
        assert error == {"type": kind, "param": param, "code": 400}

    @pytest.mark.parametrize(
        ("content", "headers"),
        [
            pytest.param(b'{"model": "tiny", "prompt": "\xff"}', {}, id="not UTF-8"),
            pytest.param(b"\x1f\x8b", {"Content-Encoding": "gzip"}, id="compressed"),
        ],
    )
    def test_of_what_cannot_be_decoded_have_another_shape(
        self, vllm: Vllm, content: bytes, headers: dict[str, str]
    ) -> None:
        response = post(vllm, COMPLETION, content, **headers)
        assert (response.status_code, response.json()) == (
            400,
            {"detail": "There was an error parsing the body"},
        )

    def test_of_the_router_have_another_shape(self, vllm: Vllm) -> None:
        missing, wrong = httpx.get(f"{vllm.url}/v1/nothing"), httpx.get(f"{vllm.url}{CHAT}")
        assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
        assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})
        assert wrong.headers["allow"] == "POST"

    @pytest.mark.parametrize("kind", [None, "text/plain", "application/vnd.api+json"])
    def test_content_type_must_be_json(self, vllm: Vllm, kind: str | None) -> None:
        headers = {"Content-Type": kind} if kind else {}
        response = httpx.post(f"{vllm.url}{CHAT}", content=json.dumps(chat()), headers=headers)
        assert response.status_code == 400
        assert "Only 'application/json' is allowed" in response.json()["error"]["message"]
        assert response.json()["error"]["type"] == BROKEN


class TestAccepts:
    @pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
    def test_content_type_in_other_words(self, vllm: Vllm, kind: str) -> None:
        assert post(vllm, CHAT, chat(), **{"Content-Type": kind}).status_code == 200

    @pytest.mark.parametrize(
        ("fields", "tokens"),
        [
            ({"max_tokens": "2"}, 2),
            ({"max_tokens": 2.0}, 2),
            ({"max_tokens": True}, 1),
            ({"max_tokens": 1, "max_completion_tokens": 2}, 2),
            ({"stream_options": None}, 3),
            ({"stream_options": {}}, 3),
            ({"stream": None}, 3),
            ({"n": None}, 3),
            ({"model": None}, 3),
            ({"nonsense": 1}, 3),
        ],
    )
    def test_fields(self, vllm: Vllm, fields: dict[str, Any], tokens: int) -> None:
        assert answer(vllm, CHAT, chat(**fields))["usage"]["completion_tokens"] == tokens

    @pytest.mark.parametrize("fields", [{"stream": "true"}, {"stream": 1}, {"stream": True, "stream_options": None}])
    def test_stream_in_other_words(self, vllm: Vllm, fields: dict[str, Any]) -> None:
        assert all("usage" not in chunk for chunk in chunks(vllm, CHAT, chat(**fields)))

    def test_the_last_of_a_repeated_key(self, vllm: Vllm) -> None:
        body = json.dumps(chat(stream=True, max_tokens=1))
        assert answer(vllm, CHAT, f'{body[:-1]}, "max_tokens": 2, "stream": false}}')["usage"]["completion_tokens"] == 2

    def test_more_tokens_than_the_prompt_leaves_room_for(self, vllm: Vllm) -> None:
        body = chat(max_tokens=POSITIONS, stop=["a", "e", "i", "o"])
        assert answer(vllm, CHAT, body)["choices"][0]["finish_reason"] == "stop"

    def test_request_id_of_the_header(self, vllm: Vllm) -> None:
        response = post(vllm, CHAT, chat(), **{"X-Request-Id": "abc"})
        assert response.json()["id"] == "chatcmpl-abc"
        assert "x-request-id" not in response.headers
