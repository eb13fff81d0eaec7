"""Comments that a streamed request gets while it waits."""

import json
import re
import time
from typing import Any

import pytest

from gateway.config.settings import Settings
from tests.support.client import PendingRequest
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.waiting import DEADLINE, wait_until
from tests.support.wire import CHAT, DONE, TEXT, chat, token, usage

# Waits are told of soon and often, so that the tests are quick; what the defaults are is said in one of them.
SOON: dict[str, Any] = {"silent_grace": 0.05, "comment_interval": 0.05}
ONE_SEAT: dict[str, Any] = {"engine": {"max_num_seqs": 1}}

QUEUED = re.compile(rb": queued position=(\d+) eta=(\d+\.\d)s\n")
PREFILL = re.compile(rb": prefill eta=\d+\.\ds\n")
ACCOUNT = re.compile(rb": dispatched x-fairlane-queue-ms=(\d+) x-fairlane-cost-s=\d+\.\d{3}\n")


def line(asked: PendingRequest) -> bytes:
    return asked.response.readline()


def occupied(engine: ScriptedEngine, gateway: RunningGateway) -> tuple[PendingRequest, ReceivedRequest]:
    """The one seat is taken, by an answer that has begun."""
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    call.send(token("first"))
    assert asked.event().endswith(token("first"))  # on a slow machine a comment comes before it
    return asked, call


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_queued_stream_gets_comments_and_then_its_answer_unchanged(
    engine: ScriptedEngine, start_gateway: StartGateway, path: str
) -> None:
    gateway = start_gateway(engine.url, **ONE_SEAT, **SOON)
    runs, call = occupied(engine, gateway)
    body = chat(stream=True) if path == CHAT else {"prompt": "hi", "stream": True}
    waits = gateway.ask(body, path, headers={"x-request-id": "mine"})
    gateway.wait_queued(1)
    last = gateway.ask(chat(stream=True))
    assert (waits.status, waits.header("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert waits.header("x-request-id") == "mine"
    assert waits.header("x-accel-buffering") == "no"
    said = [QUEUED.fullmatch(line(waits)) for _ in range(3)]
    assert [match and match[1] for match in said] == [b"1"] * 3
    assert (QUEUED.fullmatch(line(last)) or b"??")[1] == b"2"

    call.end(DONE)
    assert runs.read() == DONE
    answers = engine.asked()
    rest = [line(waits)]
    while not PREFILL.fullmatch(rest[-1]):
        assert QUEUED.fullmatch(rest[-1])
        rest.append(line(waits))
    answers.stream(token("one"), token("two"), usage(), DONE)
    told = waits.read()
    comments, answer = told[: told.index(b"data:")], told[told.index(b"data:") :]
    assert answer == token("one") + token("two") + DONE
    *waiting, account = comments.splitlines(keepends=True)
    assert all(PREFILL.fullmatch(each) for each in waiting)
    assert ACCOUNT.fullmatch(account)
    engine.asked().stream(token(), DONE)
    assert b"\n\n:" not in told
    assert last.read().endswith(token() + DONE)
    gateway.wait_ended("completed", 3)


def test_the_dispatch_comment_has_the_queue_time(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, **ONE_SEAT, **SOON)
    start = time.perf_counter()
    _, call = occupied(engine, gateway)
    waits = gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    since = time.perf_counter()
    line(waits)
    wait_until(lambda: time.perf_counter() - since > 0.1)
    call.end(DONE)
    engine.asked().stream(token(), DONE)
    found = ACCOUNT.search(waits.read())
    assert found
    assert 100 <= int(found[1]) <= 1e3 * (time.perf_counter() - start)
    assert waits.header("x-fairlane-queue-ms") is None


def test_within_the_grace_no_comment_is_sent_and_errors_keep_their_status(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    impatient = start_gateway(engine.url, **ONE_SEAT, queue_timeout=0.2)
    _, call = occupied(engine, impatient)
    assert impatient.post(chat(stream=True)).status_code == 429
    call.end(DONE)
    gateway = start_gateway(engine.url, **ONE_SEAT, silent_grace=DEADLINE)
    _, call = occupied(engine, gateway)
    waits = gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    call.end(DONE)
    engine.asked().answer(400, {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}})
    assert waits.status == 400


def test_the_grace_is_three_seconds_and_the_interval_five_by_default() -> None:
    assert (Settings().silent_grace, Settings().comment_interval) == (3.0, 5.0)


def test_comments_come_after_the_grace_and_then_once_an_interval(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    grace, interval = 0.4, 0.6
    gateway = start_gateway(engine.url, **ONE_SEAT, silent_grace=grace, comment_interval=interval)
    _, call = occupied(engine, gateway)
    start = time.perf_counter()
    waits = gateway.ask(chat(stream=True))
    assert QUEUED.fullmatch(line(waits))
    assert time.perf_counter() - start >= grace
    assert QUEUED.fullmatch(line(waits))
    assert time.perf_counter() - start >= grace + interval
    call.end(DONE)
    engine.asked().stream(token(), DONE)
    assert waits.read().endswith(token() + DONE)


def test_an_unstreamed_request_gets_no_early_response(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, **ONE_SEAT, **SOON)
    _, call = occupied(engine, gateway)
    start = time.perf_counter()
    waits = gateway.ask(chat())
    streams = gateway.ask(chat(stream=True))
    for _ in range(3):
        line(streams)  # by then the other one's grace is over, too
    assert time.perf_counter() - start > 0.1
    call.end(DONE)
    engine.asked().answer(418, {"error": "a teapot"})
    assert (waits.status, waits.json()) == (418, {"error": "a teapot"})
    engine.asked().stream(token(), DONE)
    assert streams.read().endswith(token() + DONE)


def test_comments_fill_the_engines_silence_until_its_first_byte(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    """vLLM sends its headers at once and its first chunk when the prompt is done."""
    gateway = start_gateway(engine.url, **SOON)
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start(x_engine="scripted")
    assert asked.header("x-engine") == "scripted"  # not waited for: the headers are the engine's, and ours with them
    assert asked.header("x-fairlane-queue-ms") is not None
    assert all(PREFILL.fullmatch(line(asked)) for _ in range(3))
    call.send(b'data: {"choices":[{"index":0,"delta":{"content":"hal')
    # Half an event is held back. From then on there are no comments, for the other half may come at any moment.
    start = time.perf_counter()
    wait_until(lambda: time.perf_counter() - start > 1.0)
    due = (time.perf_counter() - start) / SOON["comment_interval"]
    call.send(b'f"}}]}\n\n')
    call.end(DONE)
    told = asked.read()
    comments, _, answer = told.partition(b"data: ")
    assert answer == b'{"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n' + DONE
    assert len(comments.splitlines()) < due / 2  # only those that were sent before the half event arrived


def test_no_comments_are_sent_inside_a_slow_stream(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, **SOON)
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    call.send(token("one"))
    assert asked.event().endswith(token("one"))
    start = time.perf_counter()
    wait_until(lambda: time.perf_counter() - start > 0.3)
    call.end(token("two") + DONE)
    assert asked.read() == token("two") + DONE


def last_event(told: bytes) -> Any:
    """The error at the end of a stream."""
    events = told.removesuffix(DONE)
    assert events != told
    return json.loads(events.rpartition(b"data: ")[2])["error"]


def test_a_rejection_after_the_grace_is_an_error_event(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, **ONE_SEAT, **SOON, queue_timeout=0.3)
    _, call = occupied(engine, gateway)
    asked = gateway.ask(chat(stream=True))
    told = asked.read()
    assert asked.status == 200
    assert QUEUED.match(told)
    assert last_event(told)["code"] == "queue_timeout"
    gateway.wait_ended("queue_timeout")
    call.end(DONE)


@pytest.mark.parametrize(
    ("status", "content", "code", "outcome"),
    [
        (
            400,
            {"error": {"message": "no\nno", "type": "BadRequestError", "param": None, "code": 400}},
            400,
            "engine_error",
        ),
        (401, {"error": "Unauthorized"}, None, "engine_error"),
        (500, b"Internal Server Error", "bad_upstream", "bad_upstream"),
        (200, {"choices": []}, "bad_upstream", "bad_upstream"),
    ],
)
def test_an_unstreamed_engine_answer_after_comments_becomes_an_error_event(
    engine: ScriptedEngine, start_gateway: StartGateway, status: int, content: object, code: object, outcome: str
) -> None:
    gateway = start_gateway(engine.url, **ONE_SEAT, **SOON)
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    assert PREFILL.fullmatch(line(asked))
    call.answer(status, json.dumps(content, indent=2).encode() if isinstance(content, dict) else content)
    error = last_event(asked.read())
    if isinstance(content, dict) and status >= 400:
        assert error == content["error"]
    else:
        assert error["code"] == code
    gateway.wait_ended(outcome)


def test_a_client_that_leaves_during_comments_is_removed_from_the_queue(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(engine.url, **ONE_SEAT, **SOON)
    _, call = occupied(engine, gateway)
    waits = gateway.ask(chat(stream=True))
    assert QUEUED.fullmatch(line(waits))
    waits.leave()
    gateway.wait_ended("client_left")
    assert gateway.queued() == 0
    call.end(DONE)


def test_the_grace_may_end_before_the_tokens_are_counted(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, **SOON, tokenizer="engine", long_prompt_tokens=100)
    asked = gateway.ask(chat("word " * 200, stream=True))
    counts = engine.asked()
    assert counts.path == "/tokenize"
    start = time.perf_counter()
    wait_until(lambda: time.perf_counter() - start > 0.1)
    counts.answer(200, {"count": 201, "max_model_len": 32768, "tokens": []})
    call = engine.asked()
    assert asked.response.readline().startswith(b": prefill")
    call.stream(token(), DONE)
    assert asked.read().endswith(token() + DONE)
