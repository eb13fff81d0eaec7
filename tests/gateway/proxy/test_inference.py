"""The path of a request through a running gateway to an engine that the test steers."""

import http.client
import json
import socket
import time
from contextlib import closing
from typing import Any

import httpx
import pytest

from gateway.pricing.profile import Profile
from tests.support.running_gateway import TINY, RunningGateway, StartGateway
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, DONE, TEXT, chat, sse, token, usage

ROLE = sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})

# Never predicted to be over, so that only what happens gives a permit back.
ENDLESS = Profile(c_s=1000.0, a_s_per_token=0.0, b_s_per_token2=0.0, decode_s_per_token=0.0)

# How a request leaves at once what it held. The issue wants 100 ms; the rest is the patience of a busy machine.
AT_ONCE = 5.0


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    (content,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert set(content) == {"message", "type", "param", "code"}
    assert isinstance(content["message"], str)
    assert content["message"]
    assert isinstance(content, dict)
    return content


def respond(call: ReceivedRequest, stream: bool) -> None:
    """A whole answer of the kind that was asked for."""
    if stream:
        call.stream(token(), DONE)
    else:
        call.answer()


# Bytes


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stream_is_relayed_unchanged_except_unrequested_usage(
    engine: ScriptedEngine, gateway: RunningGateway, path: str
) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    asked = gateway.ask(body | {"stream": True}, path)
    call = engine.asked()
    assert (call.method, call.path) == ("POST", path)
    assert call.json == body | {"stream": True, "stream_options": {"include_usage": True}}
    odd = b'data: {"choices":[{"index":0,"text":"\xc3\xa9 \\n\\n {\\"usage\\""}], "x": [1,  2]}\n\n'
    pieces = [ROLE, b": a comment\n\n", token("one"), odd, token("two")]
    call.stream(*pieces, usage(), DONE)
    assert asked.status == 200
    assert asked.header("content-type") == "text/event-stream; charset=utf-8"
    assert asked.read() == b"".join([*pieces, DONE])


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}])
def test_a_stream_with_requested_usage_is_relayed_unchanged(
    engine: ScriptedEngine, gateway: RunningGateway, options: dict[str, bool]
) -> None:
    body = json.dumps(chat(stream=True, stream_options=options), indent=3).encode() + b" \n"
    asked = gateway.ask(body)
    call = engine.asked()
    assert call.body == body
    call.stream(ROLE, token(), usage(), DONE)
    assert asked.read() == ROLE + token() + usage() + DONE


def test_other_stream_options_are_kept(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(stream=True, stream_options={"include_usage": False, "x": [1]}))
    call = engine.asked()
    assert call.json == chat(stream=True, stream_options={"include_usage": True, "x": [1]})
    call.stream(token(), usage(), DONE)
    assert asked.read() == token() + DONE


def test_events_split_across_chunks_arrive_whole(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    whole = ROLE + token("one") + usage() + token("two") + DONE
    call.start()
    for at in range(0, len(whole), 7):
        call.send(whole[at : at + 7])
    call.end()
    assert asked.read() == ROLE + token("one") + token("two") + DONE


def test_each_chunk_is_relayed_before_the_next_arrives(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    assert asked.status == 200  # the headers before any chunk
    for word in ("one", "two", "three"):
        call.send(token(word))
        assert asked.event() == token(word)
    call.end(DONE)
    assert asked.read() == DONE


def test_an_unstreamed_answer_is_relayed(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    body = json.dumps(chat(temperature=0.5, unknown={"a": [1, None]}), indent=1).encode()
    asked = gateway.ask(body)
    call = engine.asked()
    assert call.body == body
    content = b'{ "choices": [],  "usage": {"prompt_tokens": 7, "completion_tokens": 3} }\n'
    call.answer(200, content)
    assert (asked.status, asked.read()) == (200, content)
    assert asked.header("content-type") == "application/json"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_engine_errors_are_relayed(engine: ScriptedEngine, gateway: RunningGateway, status: int, stream: bool) -> None:
    asked = gateway.ask(chat(stream=stream))
    content = json.dumps(
        {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": status}}
    ).encode()
    engine.asked().answer(status, content, x_other="passed", retry_after="17")
    assert (asked.status, asked.read()) == (status, content)
    assert asked.header("x-other") == "passed"
    assert asked.header("retry-after") == "17"
    assert asked.header("content-length") == str(len(content))
    gateway.wait_ended("engine_error")


def test_an_error_event_of_the_engine_is_relayed(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(stream=True))
    broken = sse({"error": {"message": "out of memory", "type": "InternalServerError", "param": None, "code": 500}})
    engine.asked().stream(token(), broken, DONE)
    assert asked.read() == token() + broken + DONE
    gateway.wait_ended("engine_error")


def test_models_are_listed_by_the_engine(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    response = gateway.get("/v1/models")
    assert response.status_code == 200
    assert response.json()["data"][0]["id"] == "scripted"
    assert response.headers["x-engine"] == "scripted"
    assert response.content == httpx.get(f"{engine.url}/v1/models").content


def test_health_is_answered(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    response = gateway.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "engine": "up"})


# Headers


def test_a_request_id_is_echoed_and_sent_on(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(), headers={"x-request-id": "abc-1/2:3"})
    call = engine.asked()
    call.answer()
    assert asked.header("x-request-id") == "abc-1/2:3"
    assert call.headers["x-request-id"] == "abc-1/2:3"


@pytest.mark.parametrize("odd", [None, "", "x" * 129, "two words", "tab\there", "\xe9t\xe9"])
def test_a_missing_or_invalid_request_id_is_replaced(
    engine: ScriptedEngine, gateway: RunningGateway, odd: str | None
) -> None:
    asked = gateway.ask(chat(), headers={} if odd is None else {"x-request-id": odd})
    call = engine.asked()
    call.answer()
    made = asked.header("x-request-id") or ""
    assert len(made) == 32
    assert int(made, 16)
    assert call.headers["x-request-id"] == made


def test_errors_have_a_request_id_too(gateway: RunningGateway) -> None:
    response = gateway.post(b"{", headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"


def test_the_engines_request_id_does_not_reach_the_client(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(), headers={"x-request-id": "mine"})
    engine.asked().answer(x_request_id="the engine's")
    assert asked.response.headers.get_all("x-request-id") == ["mine"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_queue_time_is_in_the_headers(engine: ScriptedEngine, start_gateway: StartGateway, stream: bool) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    first = gateway.ask(chat(stream=stream))
    call = engine.asked()
    second = gateway.ask(chat(stream=stream))
    gateway.wait_queued(1)
    start = time.perf_counter()
    wait_until(lambda: (time.perf_counter() - start) > 0.05)
    held = time.perf_counter() - start
    respond(call, stream)
    respond(engine.asked(), stream)
    at_once, queued = (int(each.header("x-fairlane-queue-ms") or "-1") for each in (first, second))
    assert 0 <= at_once < queued
    assert queued >= int(1e3 * held)
    assert float(first.header("x-fairlane-cost-s") or "-1") > 0
    first.read()
    second.read()


@pytest.mark.parametrize("key", [None, "the-engines"])
def test_the_upstream_key_replaces_the_clients_key(
    engine: ScriptedEngine, start_gateway: StartGateway, key: str | None
) -> None:
    gateway = start_gateway(engine.url, upstream_key=key, keys=({"key": "the-clients", "owner": "ada"},))
    headers = {"authorization": "Bearer the-clients", "cookie": "session=1", "x-vllm-priority": "-9", "x-other": "x"}
    asked = gateway.ask(chat(), headers=headers)
    call = engine.asked()
    call.answer()
    asked.read()
    assert call.headers.get("authorization") == (None if key is None else "Bearer the-engines")
    assert "the-clients" not in str(call.headers)
    assert "cookie" not in call.headers
    assert "x-vllm-priority" not in call.headers
    assert call.headers["x-other"] == "x"
    assert call.headers["host"] == httpx.URL(engine.url).netloc.decode()
    assert call.headers["content-type"] == "application/json"
    assert call.headers["accept-encoding"] == "identity"


# Leaving


def test_a_client_that_leaves_while_queued_is_removed_from_the_queue(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    first = gateway.ask(chat(stream=True))
    call = engine.asked()
    leaves = gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    stays = gateway.ask(chat(stream=True), headers={"x-request-id": "stays"})
    gateway.wait_queued(2)
    leaves.leave()
    wait_until(lambda: gateway.queued() == 1, AT_ONCE)
    # The engine was not asked, and its answer had nothing to do with it.
    assert engine.pending == 0
    assert gateway.seats() == 1
    call.stream(token(), DONE)
    assert first.read() == token() + DONE
    second = engine.asked()
    assert second.headers["x-request-id"] == "stays"
    second.stream(token(), DONE)
    assert stays.read() == token() + DONE
    assert engine.pending == 0
    gateway.wait_ended("client_left")
    gateway.wait_ended("completed", 2)


@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_a_stream_closes_the_engines_stream(
    engine: ScriptedEngine, start_gateway: StartGateway, begun: bool
) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    leaves = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    if begun:
        call.send(token())
        assert leaves.event() == token()
    else:
        assert leaves.status == 200
    waits = gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    leaves.leave()
    assert call.left.wait(AT_ONCE)
    second = engine.asked(AT_ONCE)  # the seat is the next one's
    second.stream(token(), DONE)
    assert waits.read() == token() + DONE
    gateway.wait_ended("client_left")


@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_before_an_unstreamed_answer_closes_the_engines_request(
    engine: ScriptedEngine, start_gateway: StartGateway, begun: bool
) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    leaves = gateway.ask(chat())
    call = engine.asked()
    if begun:
        call.start(200, "application/json", content_length="100")
        call.send(b'{"choices":')
    waits = gateway.ask(chat())
    gateway.wait_queued(1)
    leaves.leave()
    assert call.left.wait(AT_ONCE)
    engine.asked(AT_ONCE).answer()
    assert waits.status == 200
    gateway.wait_ended("client_left")


def test_a_client_that_leaves_while_sending_is_not_queued(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    address = httpx.URL(gateway.url)
    with socket.create_connection((address.host, address.port or 0)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    gateway.wait_ended("client_left")
    assert engine.pending == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_its_answer_and_goes_has_not_left(
    engine: ScriptedEngine, gateway: RunningGateway, stream: bool
) -> None:
    for count in range(1, 6):
        asked = gateway.ask(chat(stream=stream))
        respond(engine.asked(), stream)
        asked.read()
        asked.leave()
        gateway.wait_ended("completed", count)
    assert gateway.ended("client_left") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_engine_connections_are_reused(engine: ScriptedEngine, gateway: RunningGateway, stream: bool) -> None:
    connection = http.client.HTTPConnection(httpx.URL(gateway.url).host, httpx.URL(gateway.url).port, timeout=10)
    with closing(connection):
        connection.connect()
        port = connection.sock.getsockname()[1]
        for _ in range(3):
            connection.request("POST", CHAT, json.dumps(chat(stream=stream)))
            respond(engine.asked(), stream)
            assert connection.getresponse().read()
            assert connection.sock.getsockname()[1] == port


# The permit


def test_the_prefill_permit_is_released_at_the_first_data_not_at_a_comment(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(engine.url, ENDLESS, long_prompt_tokens=1)
    first = gateway.ask(chat("a long prompt", stream=True))
    call = engine.asked()
    waits = gateway.ask(chat("another long one", stream=True))
    gateway.wait_queued(1, "long")
    call.start()
    call.send(b": queued\n\n")
    assert first.event() == b": queued\n\n"  # so the gateway has seen it
    assert (gateway.in_prefill("long"), gateway.queued("long"), gateway.seats()) == (1, 1, 1)
    assert engine.pending == 0
    call.send(ROLE)
    second = engine.asked()  # while the first still streams
    assert (gateway.in_prefill("long"), gateway.queued("long"), gateway.seats()) == (1, 0, 2)
    call.end(DONE)
    second.stream(ROLE, DONE)
    assert first.read() == ROLE + DONE
    assert waits.read() == ROLE + DONE


def test_a_chunk_without_a_choice_does_not_end_prefill(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, ENDLESS)
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    empty = sse({"choices": [], "id": "chatcmpl-1"})
    call.send(empty)
    assert asked.event() == empty
    assert gateway.in_prefill() == 1
    call.send(token())
    asked.event()
    assert gateway.in_prefill() == 0
    call.end(DONE)
    asked.read()


@pytest.mark.parametrize("n", [1, 2])
def test_prefill_ends_when_each_prompt_has_its_first_token(
    engine: ScriptedEngine, start_gateway: StartGateway, n: int
) -> None:
    gateway = start_gateway(engine.url, ENDLESS)
    asked = gateway.ask({"prompt": ["one", "two", "three"], "n": n, "stream": True}, TEXT)
    call = engine.asked()
    assert gateway.seats() == 3 * n
    call.start()
    for prompt in (2, 0, 2, 0):
        call.send(token(index=prompt * n + (n - 1)))
        asked.event()
        assert gateway.in_prefill() == 1
    call.send(token(index=1 * n))
    asked.event()
    assert (gateway.in_prefill(), gateway.seats()) == (0, 3 * n)
    call.end(DONE)
    asked.read()


def test_the_permit_of_an_unstreamed_request_is_released_at_its_predicted_time(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(engine.url, TINY, long_prompt_tokens=1)
    first = gateway.ask(chat("a long prompt"))
    call = engine.asked()
    second = gateway.ask(chat("another long one"))
    other = engine.asked()  # though nothing of the first answer has come
    wait_until(lambda: gateway.in_prefill() == 0)
    assert gateway.seats() == 2
    call.answer()
    other.answer()
    assert (first.status, second.status) == (200, 200)


def test_the_predicted_time_includes_the_work_ahead(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Ahead of a short prompt is a long one that takes for ever; a stream's own first token counts nothing off."""
    per_token = Profile(c_s=0.0, a_s_per_token=1.0, b_s_per_token2=0.0, decode_s_per_token=0.0)
    gateway = start_gateway(engine.url, per_token, long_prompt_tokens=50)
    long = gateway.ask({"prompt": [1] * 1000, "stream": True}, TEXT)
    call = engine.asked()
    short = gateway.ask({"prompt": [1]}, TEXT)
    other = engine.asked()
    admission = gateway.gateway.core.admission
    predicted = {job.tokens: admission.ticket(job).predicted_prefill_s for job in gateway.jobs()}
    assert predicted == {1000: 1000.0, 1: 1001.0}
    other.answer()
    call.stream(token(), DONE)
    short.read()
    long.read()


def test_the_permit_of_an_unstreamed_request_is_released_with_its_answer(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(engine.url, ENDLESS, long_prompt_tokens=1)
    first = gateway.ask(chat("a long prompt"))
    call = engine.asked()
    second = gateway.ask(chat("another long one"))
    gateway.wait_queued(1)
    assert engine.pending == 0
    call.answer()
    engine.asked().answer()
    assert (first.status, second.status) == (200, 200)


# Stalling


def test_a_client_that_stops_reading_is_dropped(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, client_stall=0.3)
    stalls = gateway.ask(chat(stream=True), receive_buffer=4096)
    call = engine.asked()
    waits = gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    call.start()
    big = token("x" * 60_000)
    for _ in range(200):  # 12 MB: more than the buffers of all sockets on the way
        call.send(big)
    assert call.left.wait(5.0)
    gateway.wait_ended("client_stalled")
    second = engine.asked()
    second.stream(token(), DONE)
    assert waits.read() == token() + DONE
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        stalls.read()  # it is told that this is not all


def test_a_client_that_reads_slowly_is_not_dropped(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Each write waits less than `client_stall`, all of them together longer."""
    gateway = start_gateway(engine.url, client_stall=0.5)
    slow = gateway.ask(chat(stream=True), receive_buffer=4096)
    call = engine.asked()
    call.start()
    big = token("x" * 60_000)
    for _ in range(100):
        call.send(big)
    call.end(DONE)
    received, start = 0, time.perf_counter()
    while piece := slow.response.read(300_000):
        received += len(piece)
        time.sleep(0.05)  # the point: this client is slow
    assert received == 100 * len(big) + len(DONE)
    assert time.perf_counter() - start > 1.0
    gateway.wait_ended("completed")


def test_a_stream_that_pauses_is_not_a_client_that_stalls(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, client_stall=0.1)
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    call.send(token())
    assert asked.event() == token()
    start = time.perf_counter()
    wait_until(lambda: time.perf_counter() - start > 0.4)
    call.end(DONE)
    assert asked.read() == DONE


# The queue


@pytest.mark.parametrize(
    ("policy", "order"),
    [("fifo", ["ada 0", "ada 1", "ada 2", "ben 0", "ben 1"]), ("fair", ["ada 0", "ben 0", "ada 1", "ben 1", "ada 2"])],
)
@pytest.mark.parametrize("name", ["x-openwebui-user-id", "x-user-id", "user"])
def test_the_policy_decides_who_is_next(
    engine: ScriptedEngine, start_gateway: StartGateway, policy: str, order: list[str], name: str
) -> None:
    gateway = start_gateway(engine.url, policy=policy, engine={"max_num_seqs": 1})
    runs = gateway.ask(chat(stream=True), headers={"x-user-id": "somebody"})
    call = engine.asked()
    asked = []
    for count, request in enumerate(["ada 0", "ada 1", "ada 2", "ben 0", "ben 1"], start=1):
        user = request.split()[0]
        headers = {"x-request-id": request.replace(" ", "-")} | ({} if name == "user" else {name: user})
        asked.append(gateway.ask(chat(stream=True, **({"user": user} if name == "user" else {})), headers=headers))
        gateway.wait_queued(count)
    served = []
    for _ in order:
        call.stream(token(), DONE)
        call = engine.asked()
        served.append(call.headers["x-request-id"].replace("-", " "))
    call.stream(token(), DONE)
    assert served == order
    assert all(each.read() for each in [runs, *asked])


def test_a_long_prompt_does_not_block_a_short_one(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    long = [gateway.ask(chat("x" * 40_000, stream=True)) for _ in range(2)]
    call = engine.asked()
    gateway.wait_queued(1, "long")
    short = gateway.ask(chat("hi", stream=True))
    other = engine.asked()
    assert other.json["messages"][0]["content"] == "hi"
    other.stream(token(), DONE)
    assert short.read() == token() + DONE
    assert engine.pending == 0
    for _ in long:
        call.stream(token(), DONE)
        call = engine.asked() if call is engine.calls[0] else call
    assert [each.read() for each in long] == [token() + DONE] * 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_queue_timeout_answers_429_with_retry_after(
    engine: ScriptedEngine, start_gateway: StartGateway, stream: bool
) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, queue_timeout=0.2)
    runs = gateway.ask(chat(stream=True))
    call = engine.asked()
    start = time.perf_counter()
    response = gateway.post(chat(stream=stream))
    assert time.perf_counter() - start >= 0.2
    assert response.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["x-request-id"]
    assert (error(response)["type"], error(response)["code"]) == ("rate_limit_error", "queue_timeout")
    assert (gateway.queued(), gateway.seats(), engine.pending) == (0, 1, 0)
    call.stream(token(), DONE)
    assert runs.read() == token() + DONE
    gateway.wait_ended("queue_timeout")


# Bad input


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, b"", None),
        (CHAT, b"{", None),
        (CHAT, b"\xff\xfe", None),
        (CHAT, b'{"messages": [{"role": "user", "content": "\xff"}]}', None),
        (CHAT, b"[" * 100_000, None),
        (CHAT, b"[]", None),
        (CHAT, b"null", None),
        (CHAT, b'"text"', None),
        (CHAT, b"{}", None),
        (CHAT, b'{"messages": []}', "messages"),
        (CHAT, b'{"messages": "hi"}', "messages"),
        (CHAT, b'{"messages": null}', "messages"),
        (CHAT, b'{"messages": ["hi"]}', "messages[0]"),
        (CHAT, b'{"messages": [{"role": "user", "content": 7}]}', "messages[0].content"),
        (CHAT, json.dumps(chat(stream="yes")).encode(), "stream"),
        (CHAT, json.dumps(chat(stream_options=[])).encode(), "stream_options"),
        (CHAT, json.dumps(chat(max_tokens="many")).encode(), "max_tokens"),
        (CHAT, json.dumps(chat(n=0)).encode(), "n"),
        (CHAT, json.dumps(chat(n=1.5)).encode(), "n"),
        (CHAT, json.dumps(chat(model=7)).encode(), "model"),
        (CHAT, json.dumps(chat(user=["ada"])).encode(), "user"),
        (TEXT, b"{}", None),
        (TEXT, b'{"prompt": null}', "prompt"),
        (TEXT, b'{"prompt": []}', "prompt"),
        (TEXT, b'{"prompt": {"a": 1}}', "prompt"),
        (TEXT, b'{"prompt": ["a", 1]}', "prompt"),
        (TEXT, b'{"prompt": [1.5]}', "prompt[0]"),
    ],
)
def test_an_invalid_body_answers_400(
    engine: ScriptedEngine, gateway: RunningGateway, path: str, body: bytes, param: str | None
) -> None:
    response = gateway.post(body, path)
    assert response.status_code == 400
    content = error(response)
    assert (content["type"], content["code"]) == ("invalid_request_error", "bad_request")
    if param is not None:
        assert content["param"] is not None
        assert content["param"].replace("[...]", "[0]") == param
    assert engine.pending == 0
    gateway.wait_ended("bad_request")


@pytest.mark.parametrize(("settings", "limit"), [({"max_body": 1000}, 1000), ({}, 64 << 20)])
def test_a_body_with_too_large_a_content_length_is_not_read(
    engine: ScriptedEngine, start_gateway: StartGateway, settings: dict[str, Any], limit: int
) -> None:
    gateway = start_gateway(engine.url, **settings)
    address = httpx.URL(gateway.url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (limit + 1))
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    gateway.wait_ended("body_too_large")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_limit_answers_413(engine: ScriptedEngine, start_gateway: StartGateway, chunked: bool) -> None:
    gateway = start_gateway(engine.url, max_body=1000)
    body = json.dumps(chat("x" * 5000)).encode()
    content = iter([body[at : at + 100] for at in range(0, len(body), 100)]) if chunked else body
    response = httpx.post(gateway.url + CHAT, content=content)
    assert response.status_code == 413
    assert (error(response)["type"], error(response)["code"]) == ("invalid_request_error", "body_too_large")
    assert engine.pending == 0
    gateway.wait_ended("body_too_large")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_at_the_limit_is_accepted(engine: ScriptedEngine, start_gateway: StartGateway, chunked: bool) -> None:
    body = json.dumps(chat("x" * 5000)).encode()
    gateway = start_gateway(engine.url, max_body=len(body))
    headers = {"transfer-encoding": "chunked"} if chunked else {}
    asked = gateway.ask(
        b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
        if chunked
        else body,
        headers=headers,
    )
    call = engine.asked()
    assert call.body == body
    assert call.headers["content-length"] == str(len(body))
    call.answer()
    assert asked.status == 200


@pytest.mark.parametrize("key", [None, "Bearer wrong", "Basic right", "right"])
@pytest.mark.anyio
async def test_an_unknown_key_from_another_machine_answers_401(
    engine: ScriptedEngine, start_gateway: StartGateway, key: str | None
) -> None:
    gateway = start_gateway(engine.url, keys=({"key": "right", "owner": "ada"},))
    # Tests have no other machine: the app is told of one, past the socket.
    transport = httpx.ASGITransport(gateway.gateway.app, client=("203.0.113.9", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://fairlane") as client:
        headers = {} if key is None else {"authorization": key}
        for response in (
            await client.post(CHAT, json=chat(), headers=headers),
            await client.get("/v1/models", headers=headers),
        ):
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert (error(response)["type"], error(response)["code"]) == ("authentication_error", "invalid_api_key")
            assert "wrong" not in response.text
    assert engine.pending == 0
    gateway.wait_ended("invalid_api_key")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# A bad engine


def nobody() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_is_down_answers_503(start_gateway: StartGateway, stream: bool) -> None:
    gateway = start_gateway(nobody())
    response = gateway.post(chat(stream=stream))
    assert response.status_code == 503
    assert (error(response)["type"], error(response)["code"]) == ("server_error", "engine_down")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    gateway.wait_ended("engine_down")
    assert gateway.get("/v1/models").status_code == 503
    assert gateway.get("/health").json() == {"status": "ok", "engine": "engine_down"}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("garbage", [b"", b"HELLO 200 you\r\n\r\n", b"HTTP/1.1 200"])
def test_an_engine_that_hangs_up_before_its_headers_is_retried_then_answers_502(
    engine: ScriptedEngine, gateway: RunningGateway, garbage: bytes, stream: bool
) -> None:
    asked = gateway.ask(chat(stream=stream))
    for _ in range(2):  # asked once more, and no more than that
        call = engine.asked()
        if garbage:
            call.say(garbage)
        call.hang_up()
    assert asked.status == 502
    content = asked.json()["error"]
    assert (content["type"], content["code"]) == ("server_error", "bad_upstream")
    gateway.wait_ended("bad_upstream")


@pytest.mark.parametrize("garbage", [b"", b"zzz\r\n"])
def test_an_engine_that_hangs_up_mid_stream_ends_the_stream_with_an_error(
    engine: ScriptedEngine, gateway: RunningGateway, garbage: bytes
) -> None:
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    call.send(token("one"))
    assert asked.event() == token("one")
    call.send(token("two") + b'data: {"choices":[{"index":0,"del')  # half an event must not reach anybody
    if garbage:
        call.say(garbage)
    call.hang_up()
    assert asked.event() == token("two")
    content = json.loads(asked.event().removeprefix(b"data: "))["error"]
    assert (content["type"], content["code"]) == ("server_error", "bad_upstream")
    assert asked.read() == DONE  # and the answer is a whole one, as HTTP goes
    gateway.wait_ended("bad_upstream")


def test_an_engine_that_hangs_up_between_headers_and_stream_is_an_error(
    engine: ScriptedEngine, gateway: RunningGateway
) -> None:
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    assert asked.status == 200
    call.hang_up()
    assert json.loads(asked.event().removeprefix(b"data: "))["error"]["code"] == "bad_upstream"
    assert asked.read() == DONE


def test_an_engine_that_hangs_up_mid_answer_answers_502(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat())
    call = engine.asked()
    call.start(200, "application/json", content_length="100")
    call.send(b'{"choices":')
    call.hang_up()
    assert asked.status == 502
    assert asked.json()["error"]["code"] == "bad_upstream"
    gateway.wait_ended("bad_upstream")


@pytest.mark.parametrize("stream", [True, False])
def test_a_silent_engine_answers_504(engine: ScriptedEngine, start_gateway: StartGateway, stream: bool) -> None:
    gateway = start_gateway(engine.url, upstream_timeout=0.2)
    asked = gateway.ask(chat(stream=stream))
    call = engine.asked()
    assert asked.status == 504
    content = asked.json()["error"]
    assert (content["type"], content["code"]) == ("server_error", "upstream_timeout")
    assert call.left.wait(AT_ONCE)
    gateway.wait_ended("upstream_timeout")


def test_an_engine_that_falls_silent_mid_stream_ends_the_stream_with_an_error(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(engine.url, upstream_timeout=0.2)
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    call.send(token())
    assert asked.event() == token()
    assert json.loads(asked.event().removeprefix(b"data: "))["error"]["code"] == "upstream_timeout"
    assert asked.read() == DONE
    assert call.left.wait(AT_ONCE)
    gateway.wait_ended("upstream_timeout")


def test_the_seat_is_free_again_after_every_fault(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """After everything that can go wrong, the one seat there is serves the next one."""
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, upstream_timeout=0.5)
    for wrong in ("hang up", "silent", "mid-stream", "error"):
        asked = gateway.ask(chat(stream=True))
        call = engine.asked()
        if wrong == "hang up":
            call.hang_up()
            call = engine.asked()
        if wrong == "mid-stream":
            call.start()
            call.send(token())
        if wrong == "error":
            call.answer(500)
        elif wrong != "silent":
            call.hang_up()
        assert asked.read()
    asked = gateway.ask(chat(stream=True))
    engine.asked().stream(token(), DONE)
    assert asked.read() == token() + DONE
