"""The load generator against real servers: what it sends and when, and how it records every kind of answer.

Most tests play the server: `engine.asked()` waits for the next request, and the test answers it.
"""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httptools
import pytest
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from loadtest.results.records import Outcome, Record, percentile
from loadtest.runs.load_client import Endpoint, LoadClient
from loadtest.runs.probe import ServerError, latency, measure, served_model, server_version
from loadtest.runs.process import running
from loadtest.runs.streamed_answer import StreamedAnswer
from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.texts import Texts, read_heading
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.servers import run_in_thread, serve
from tests.support.timing import withheld
from tests.support.waiting import wait_until
from tests.support.wire import DONE, sse, token, usage

ROLE = sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def portal(request: pytest.FixtureRequest) -> Iterator[BlockingPortal]:
    """A loop of its own for the client, in a thread; the test stays at the server's end."""
    with start_blocking_portal(backend_options={"use_uvloop": request.param}) as portal:
        yield portal
        portal.call(portal.stop, True)  # a test that failed leaves its load behind


class Load:
    """A run under way."""

    def __init__(self, portal: BlockingPortal, client: LoadClient, plan: Plan) -> None:
        self.ended: list[Record] = []
        self._client = client
        self._future: Future[list[Record]] = portal.start_task_soon(client.run, plan, self.ended.append)

    @property
    def so_far(self) -> list[Record]:
        return self._client.records

    def records(self) -> list[Record]:
        """When it is over."""
        return self._future.result(10)

    def cancel(self) -> list[Record]:
        """Cut it off; what there is of it."""
        self._future.cancel()
        with pytest.raises(CancelledError):
            self._future.result(10)
        return self.so_far


def request(at: float = 0.0, prompt_tokens: int = 100, output_tokens: int = 5, **fields: Any) -> Request:
    return Request(at, fields.pop("user", "ada"), "short", prompt_tokens, output_tokens, **fields)


def plan(*requests: Request, **options: Any) -> Plan:
    return Plan(requests, **options)


def one(portal: BlockingPortal, engine: ScriptedEngine, **options: Any) -> tuple[Load, ReceivedRequest]:
    """A plan of one request, which has reached the engine."""
    return Load(portal, LoadClient(Endpoint(engine.url, "tiny", **options)), plan(request())), engine.asked()


def answer(call: ReceivedRequest, *words: str) -> None:
    call.stream(ROLE, *map(token, words or ("word",)), usage(), DONE)


# What it sends


def test_a_request_has_its_body_and_headers(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load = Load(
        portal, LoadClient(Endpoint(engine.url, "tiny"), Texts(nonce="a1")), plan(request(user="Zoë", session="s"))
    )
    call = engine.asked()
    assert (call.method, call.path) == ("POST", "/v1/chat/completions")
    (message,) = call.json["messages"]
    assert {**call.json, "messages": ...} == {
        "model": "tiny",
        "messages": ...,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "Zoë",
    }
    assert message == {"role": "user", "content": Texts(nonce="a1").prompt(0, request())}
    assert call.headers["x-openwebui-user-id"] == "Zo%C3%AB"
    assert call.headers["x-session-id"] == "s"
    assert call.headers["content-type"] == "application/json"
    assert "authorization" not in call.headers
    assert "accept-encoding" not in call.headers
    answer(call)
    load.records()


def test_without_a_session_there_is_no_session_header(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine)
    assert "x-session-id" not in call.headers
    answer(call)
    load.records()


def test_client_options_apply_to_every_request(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine, api_key="sk-1", user_header="x-user", ignore_eos=True)
    assert call.headers["authorization"] == "Bearer sk-1"
    assert call.headers["x-user"] == "ada"
    assert call.json["ignore_eos"] is True
    answer(call)
    load.records()


def test_a_shorter_answer_is_requested_in_the_heading(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load = Load(
        portal, LoadClient(Endpoint(engine.url, "tiny")), plan(request(max_tokens=500, output_tokens=20, text="random"))
    )
    call = engine.asked()
    assert call.json["max_tokens"] == 500
    assert read_heading(call.json["messages"][0]["content"]) == ("random", 20)
    answer(call)
    load.records()


@pytest.mark.parametrize(
    ("ending", "path"),
    [("", "/v1"), ("/", "/v1"), ("/v1", "/v1"), ("/v1/", "/v1"), ("/openai/v1", "/openai/v1")],
)
def test_the_address_may_end_in_v1(portal: BlockingPortal, engine: ScriptedEngine, ending: str, path: str) -> None:
    load = Load(portal, LoadClient(Endpoint(engine.url + ending, "tiny")), plan(request()))
    call = engine.asked()
    assert call.path == f"{path}/chat/completions"
    assert call.headers["host"] == engine.url.removeprefix("http://")
    answer(call)
    assert load.records()[0].completed


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://spark/", "http://", "", "http://spark:port"])
def test_an_invalid_address_is_reported(address: str) -> None:
    with pytest.raises(ValueError, match=r"address|[Pp]ort"):
        LoadClient(Endpoint(address, "tiny"))


def test_a_host_name_with_several_addresses_is_tried_in_turn(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `localhost` may be ::1 first, where nobody listens. It is looked up once."""
    asked = []

    def found(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.9.9.9", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    url = engine.url.replace("127.0.0.1", "spark.example")
    with start_blocking_portal() as portal:
        load = Load(portal, LoadClient(Endpoint(url, "tiny")), plan(request(), request(), max_concurrency=1))
        for _ in range(2):
            call = engine.asked()
            assert call.headers["host"] == url.removeprefix("http://")
            answer(call)
        assert all(record.completed for record in load.records())
    assert asked == ["spark.example"]


def test_proxies_of_the_environment_are_ignored(
    portal: BlockingPortal, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert served_model(engine.url) == "scripted"
    load, call = one(portal, engine)
    answer(call)
    assert load.records()[0].completed


def test_https_is_spoken(
    portal: BlockingPortal, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a certificate that is trusted, and with one that is not."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        engine, ws="none", log_config=None, ssl_keyfile=key, ssl_certfile=certificate, timeout_graceful_shutdown=1
    )
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    with run_in_thread(uvicorn.Server(config), listener):
        (stranger,) = Load(portal, LoadClient(Endpoint(url, "tiny")), plan(request())).records()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        load = Load(portal, LoadClient(Endpoint(url, "tiny")), plan(request()))
        answer(engine.asked(), "one", "two")
        (friend,) = load.records()
    assert (stranger.outcome, "certificate" in stranger.detail.lower()) == (Outcome.UNREACHABLE, True)
    assert (friend.outcome, len(friend.tokens)) == (Outcome.COMPLETED, 2)


# The conversation so far


def conversation(turns: int, **fields: Any) -> Plan:
    """One person's, each question after the answer before."""
    first = request(system="handbook", system_tokens=50, session="s", **fields)
    after = [request(after=(turn,), continues=turn, session="s", **fields) for turn in range(turns - 1)]
    return plan(first, *after)


def test_a_later_turn_contains_the_actual_answers(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    texts = Texts(nonce="a1")
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny"), texts), conversation(3))
    expected = [{"role": "system", "content": texts.system("handbook", 50)}]
    for turn in range(3):
        expected.append({"role": "user", "content": texts.prompt(turn, request())})
        call = engine.asked()
        assert call.json["messages"] == expected
        answer(call, f"answer {turn}", " é")
        expected.append({"role": "assistant", "content": f"answer {turn} é"})
    assert [record.completed for record in load.records()] == [True] * 3


def test_a_failed_turn_counts_as_an_empty_answer(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny")), conversation(3))
    call = engine.asked()
    call.start()
    call.send(ROLE + token("half of"))
    call.hang_up()
    engine.asked().answer(429)
    said = [message["content"] for message in engine.asked().json["messages"] if message["role"] == "assistant"]
    assert said == ["", ""]
    load.cancel()


def test_two_requests_may_continue_one_conversation(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    """An agent and the ones that it starts."""
    forks = [request(after=(0,), continues=0, user=user) for user in ("left", "right")]
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny")), plan(request(), *forks))
    answer(engine.asked(), "both")
    calls = [engine.asked(), engine.asked()]
    assert {call.json["user"] for call in calls} == {"left", "right"}
    for call in calls:
        assert [message["role"] for message in call.json["messages"]] == ["user", "assistant", "user"]
        assert call.json["messages"][1]["content"] == "both"
        answer(call)
    load.records()


# When


def test_no_request_is_sent_before_its_time(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    """Of several, in whatever order the plan has them."""
    times = [0.3, 0.0, 0.15, 0.15]
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny")), plan(*map(request, times)))
    for _ in times:
        answer(engine.asked())
    records = load.records()
    assert [record.number for record in records] == [0, 1, 2, 3]
    for record, at in zip(records, times, strict=True):
        assert record.scheduled == at
        assert record.sent is not None
        assert at <= record.sent
        assert record.lag == record.sent - at


def test_a_dependent_request_is_sent_a_delay_after_the_last_it_waits_for(
    portal: BlockingPortal, engine: ScriptedEngine
) -> None:
    late = request(after=(0, 1), delay=0.2)
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny")), plan(request(), request(), late))
    calls = [engine.asked(), engine.asked()]
    answer(calls[0])
    wait_until(lambda: len(load.ended) == 1)
    assert engine.pending == 0
    answer(calls[1])
    answer(engine.asked())
    first, second, third = load.records()
    assert first.ended is not None
    assert second.ended is not None
    assert third.sent is not None
    assert third.scheduled == max(first.ended, second.ended) + 0.2
    assert third.scheduled <= third.sent
    assert third.lag == third.sent - third.scheduled


def test_waiting_for_the_concurrency_cap_is_not_lag(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load = Load(
        portal, LoadClient(Endpoint(engine.url, "tiny")), plan(request(), request(), request(), max_concurrency=2)
    )
    calls = [engine.asked(), engine.asked()]
    time.sleep(0.1)  # for that long it waits
    assert engine.pending == 0
    answer(calls[0])
    answer(engine.asked())
    answer(calls[1])
    records = load.records()
    held = records[2]
    assert held.sent is not None
    assert records[0].ended is not None
    assert held.scheduled == 0.0
    assert held.sent >= records[0].ended >= 0.1
    assert held.lag == held.sent - records[0].ended


def test_times_are_scaled_to_the_servers_clock(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    """Which runs ten times as fast as life."""
    began = time.perf_counter()
    load = Load(
        portal, LoadClient(Endpoint(engine.url, "tiny", speed=10.0)), plan(request(2.0), request(after=(0,), delay=2.0))
    )
    call = engine.asked()
    assert time.perf_counter() - began >= 0.2
    call.start(x_fairlane_queue_ms="30")
    call.send(ROLE)
    call.end(token() + DONE)
    answer(engine.asked())
    first, second = load.records()
    assert first.queue == pytest.approx(0.3)
    assert first.ended is not None
    assert second.ended is not None
    assert first.ended < second.ended <= 10 * (time.perf_counter() - began)
    assert second.scheduled == first.ended + 2.0
    assert 2.0 <= first.tokens[0] <= first.ended


class Slow(Texts):
    """Texts that take their time to make."""

    def prompt(self, number: int, request: Request) -> str:
        time.sleep(0.05)
        return super().prompt(number, request)


def test_the_clients_own_lag_is_recorded(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny"), Slow()), plan(request(), request()))
    for _ in range(2):
        answer(engine.asked())
    first, second = sorted(load.records(), key=lambda record: record.lag)
    assert first.lag >= 0.05
    assert second.lag >= 0.1
    assert (first.sent, second.sent) == (first.lag, second.lag)


def test_an_empty_plan_ends_at_once(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    assert Load(portal, LoadClient(Endpoint(engine.url, "tiny")), plan()).records() == []


def test_a_client_can_be_run_again(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    client = LoadClient(Endpoint(engine.url, "tiny"))
    for _ in range(2):
        began = time.perf_counter()
        load = Load(portal, client, plan(request(0.1)))
        answer(engine.asked())
        (record,) = load.records()
        assert record.completed
        assert record.sent is not None
        assert 0.1 <= record.sent <= time.perf_counter() - began  # counted from the start of this run


# What it measures


def test_tokens_are_timed_on_arrival(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    """The engine takes 50 ms for a token; the role chunk comes with the first."""
    load, call = one(portal, engine)
    call.start()
    before = time.perf_counter()
    call.send(ROLE + token("a"))
    seen, sent = [], [before]
    for count in (1, 2, 3):
        wait_until(lambda count=count: len(load.so_far[0].tokens) == count)  # type: ignore[misc]
        seen.append(time.perf_counter())
        time.sleep(0.05)
        sent.append(time.perf_counter())
        call.send(token("b") if count < 3 else usage(7, 3) + DONE)
    call.end()
    (record,) = load.records()
    over = time.perf_counter()
    assert record.sent is not None
    assert record.ended is not None
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == (Outcome.COMPLETED, 7, 3)
    assert record.sent < record.tokens[0]
    # A token arrives after it was sent and before it is seen here.
    for gap, begin, end in zip(record.itls, sent, seen[1:], strict=False):
        assert 0.05 <= gap <= end - begin
    assert 0.05 <= record.ended - record.tokens[-1] <= over - sent[-2]
    assert load.ended == [record]


def test_an_unstreamed_answer_is_recorded(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine)
    call.answer()
    (record,) = load.records()
    assert (record.outcome, len(record.tokens)) == (Outcome.COMPLETED, 1)
    assert (record.prompt_tokens, record.output_tokens) == (7, 3)


def test_a_truncated_unstreamed_answer_is_a_failure(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine)
    call.start(content_type="application/json", content_length="99")
    call.send(b'{"choices": ')
    call.hang_up()
    (record,) = load.records()
    assert (record.outcome, record.detail) == (Outcome.DISCONNECTED, "unfinished")


def test_an_answer_without_a_length_ends_with_the_connection(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine)
    call.say(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n")
    call.say(b'{"choices": [{"message": {"content": "hi"}}]}')
    call.hang_up()
    assert load.records()[0].completed


def test_informational_responses_are_skipped(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine)
    call.say(b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\nx-fairlane-queue-ms: 5\r\n\r\n")
    answer(call)
    (record,) = load.records()
    assert record.completed
    assert record.queue is None


# How a request ends


def test_a_refused_connection_is_recorded(portal: BlockingPortal) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        (record,) = Load(portal, LoadClient(Endpoint(url, "tiny")), plan(request())).records()
    assert record.outcome is Outcome.UNREACHABLE
    assert record.detail
    assert record.ended is not None
    assert record.tokens == []


def test_an_unknown_host_is_recorded(portal: BlockingPortal) -> None:
    (record,) = Load(portal, LoadClient(Endpoint("http://nobody.invalid:8000", "tiny")), plan(request())).records()
    assert record.outcome is Outcome.UNREACHABLE


@pytest.mark.parametrize("begun", [False, True], ids=["no head", "in the stream"])
def test_a_server_that_hangs_up_is_recorded(portal: BlockingPortal, engine: ScriptedEngine, begun: bool) -> None:
    load, call = one(portal, engine)
    if begun:
        call.start()
        call.send(ROLE + token("a") + token("b"))
    call.hang_up()
    (record,) = load.records()
    assert record.outcome is Outcome.DISCONNECTED
    assert len(record.tokens) == (2 if begun else 0)


@contextmanager
def rude_server() -> Iterator[str]:
    """Resets each connection once it has been sent something."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one() -> None:
            connection, _ = listener.accept()
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()

        thread = threading.Thread(target=serve_one)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join()


def test_a_connection_reset_is_recorded(portal: BlockingPortal) -> None:
    with rude_server() as url:
        (record,) = Load(portal, LoadClient(Endpoint(url, "tiny")), plan(request())).records()
    assert record.outcome is Outcome.DISCONNECTED


def test_a_server_that_does_not_speak_http_is_recorded(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine)
    call.say(b"SSH-2.0-OpenSSH_9.2\r\n")
    (record,) = load.records()
    assert record.outcome is Outcome.DISCONNECTED
    wait_until(call.left.is_set)


@pytest.mark.parametrize("begun", [False, True], ids=["no head", "in the stream"])
def test_a_request_that_takes_too_long_times_out(portal: BlockingPortal, engine: ScriptedEngine, begun: bool) -> None:
    """On the server's clock. It is told by the connection, and the others go on."""
    slow, quick = request(), request(after=(0,))
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny", timeout=10.0, speed=10.0)), plan(slow, quick))
    call = engine.asked()
    if begun:
        call.start()
        call.send(ROLE)
    wait_until(call.left.is_set)
    answer(engine.asked())
    first, second = load.records()
    assert first.outcome is Outcome.TIMEOUT
    assert first.ended is not None
    assert first.ended >= 9.9  # a loop's timers go by milliseconds, of which the speed makes ten
    assert len(first.tokens) == (1 if begun else 0)
    assert second.completed


@pytest.mark.parametrize(
    ("status", "outcome", "detail"),
    [
        (429, Outcome.REJECTED, "queue_full"),
        (503, Outcome.UNAVAILABLE, "queue_full"),
        (500, Outcome.HTTP_ERROR, "500 queue_full"),
        (307, Outcome.HTTP_ERROR, "307 queue_full"),
    ],
)
def test_a_refusal_is_recorded_with_its_reason(
    portal: BlockingPortal, engine: ScriptedEngine, status: int, outcome: Outcome, detail: str
) -> None:
    """Once: nobody is asked again, nor elsewhere."""
    load, call = one(portal, engine)
    call.answer(status, {"error": {"message": "Full.", "code": "queue_full"}}, retry_after="0", location=engine.url)
    (record,) = load.records()
    assert (record.outcome, record.detail) == (outcome, detail)
    assert engine.pending == 0


def test_an_error_event_is_recorded(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    load, call = one(portal, engine)
    call.stream(ROLE, token("a"), sse({"error": {"message": "x", "code": "engine_down"}}), DONE)
    (record,) = load.records()
    assert (record.outcome, record.detail) == (Outcome.STREAM_ERROR, "engine_down")


def test_a_cancelled_run_keeps_its_records(portal: BlockingPortal, engine: ScriptedEngine) -> None:
    """What has ended stays as it ended; the rest is nobody's fault. The server is told at once."""
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny")), plan(request(), request(0.01), request(3600.0)))
    answer(engine.asked())
    call = engine.asked()
    call.start()
    call.send(ROLE)
    wait_until(lambda: len(load.ended) == 1 and load.so_far[1].tokens)
    records = load.cancel()
    assert [record.outcome for record in records] == [Outcome.COMPLETED, *[Outcome.INTERRUPTED] * 2]
    assert (len(records[1].tokens), records[1].ended) == (1, None)
    assert (records[2].scheduled, records[2].sent, records[2].ended) == (3600.0, None, None)
    assert len(load.ended) == 1
    wait_until(call.left.is_set)


def test_a_cancelled_run_sends_nothing_more(
    portal: BlockingPortal, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    load = Load(portal, LoadClient(Endpoint(engine.url, "tiny")), plan(request(), request(1.0)))
    engine.asked()
    load.cancel()
    portal.call(anyio.sleep, 1.1)
    assert engine.pending == 0
    assert caplog.records == []


def test_an_error_of_the_client_itself_is_raised(
    portal: BlockingPortal, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run, wherever it happens."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    def failing(on_end: Any) -> BaseException | None:
        client = LoadClient(Endpoint(engine.url, "tiny"))
        future = portal.start_task_soon(client.run, plan(request(), request(3600.0)), on_end)
        answer(engine.asked())
        return future.exception(10)

    at_the_end = failing(fail)
    assert isinstance(at_the_end, ExceptionGroup)
    assert at_the_end.subgroup(ZeroDivisionError)
    monkeypatch.setattr(StreamedAnswer, "feed", fail)
    within = failing(None)
    assert isinstance(within, ExceptionGroup)
    assert within.subgroup(httptools.HttpParserCallbackError)


# What it costs

TWENTY_A_SECOND = """
[twenty]
tf_s = 0.05
te_s = 0.0
td_s = 0.0
tt_s_per_token = 0.0
ta_s_per_token2 = 0.0
tk_s_per_token = 0.0
to_s = 0.0
q = 0.0
d = 1.0
max_num_batched_tokens = 100000
max_num_seqs = 400
long_prefill_token_threshold = 0
async_scheduling = true
"""


# Timers of a process that does nothing else: what lag the machine itself makes, meanwhile.
IDLE_TIMERS = """
import asyncio, time

async def late():
    lags, due = [], time.perf_counter()
    while len(lags) < 400:
        due += 0.0117
        await asyncio.sleep(due - time.perf_counter())
        lags.append(time.perf_counter() - due)
    print(sorted(lags)[int(0.99 * len(lags))])

asyncio.run(late())
"""


@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_two_hundred_streams_are_read_without_lag(tmp_path: Path, uvloop: bool) -> None:
    """Of 20 tokens a second each, all of them at the same moments; meanwhile requests are due every 12 ms, and must be
    sent on time: within 10 ms, or within what the machine itself is late by. The best of three runs counts. Runs in
    which other work on the machine had the processor say nothing about lag."""
    profile = tmp_path / "twenty.toml"
    profile.write_text(TWENTY_A_SECOND)
    streams = [request(0.004 * number, output_tokens=80) for number in range(200)]
    probes = [request(1.0 + 0.0117 * number, output_tokens=1, user="probe") for number in range(250)]
    lags, cores, disturbed = [], [], []
    with running(["sim", "--profile", str(profile), "--noise", "0"]) as url:
        for _ in range(3):
            client = LoadClient(Endpoint(url, "twenty"))
            idle = subprocess.Popen([sys.executable, "-c", IDLE_TIMERS], stdout=subprocess.PIPE)
            wall, own, waited = time.perf_counter(), time.thread_time(), withheld()
            records = anyio.run(client.run, plan(*streams, *probes), backend_options={"use_uvloop": uvloop})
            wall = time.perf_counter() - wall
            cores.append((time.thread_time() - own) / wall)
            disturbed.append((withheld() - waited) / wall)
            allowed = max(0.01, 2 * float(idle.communicate()[0]))
            lags.append(percentile((record.lag for record in records if record.request.user == "probe"), 99) / allowed)
            assert all(record.completed for record in records)
            assert all(len(record.tokens) == record.request.output_tokens for record in records)
            if lags[-1] < 1:
                break
    figures = (f"{lag:.2f} ({share:.0%} of the time disturbed)" for lag, share in zip(lags, disturbed, strict=True))
    print(f"\nlag p99 over what is allowed: {', '.join(figures)}; cores: {min(cores):.2f}")
    assert min(cores) < 1
    assert min(lags) < 1 or min(disturbed) > 0.05


# What is asked before


def fake_server(**routes: Any) -> Starlette:
    """Answers to a POST or GET: a function of the body, by route's name."""

    def endpoint(reply: Any) -> Any:
        async def respond(request: HttpRequest) -> Response:
            answer = reply(json.loads(await request.body() or b"null"), request.headers)
            return answer if isinstance(answer, Response) else JSONResponse(answer)

        return respond

    paths = {"tokenize": "/tokenize", "chat": "/v1/chat/completions", "models": "/v1/models", "version": "/version"}
    return Starlette(
        routes=[Route(paths[name], endpoint(reply), methods=["GET", "POST"]) for name, reply in routes.items()]
    )


def tokens_of(body: dict[str, Any]) -> int:
    """A tokenizer: a template of eleven tokens, and one for each 4.4 bytes."""
    (message,) = body["messages"]
    assert message["role"] == "user"
    return 11 + round(len(message["content"]) / 4.4)


def check_measured(texts: Texts) -> None:
    assert texts.nonce == "a1"
    assert texts.bytes_per_token == pytest.approx(4.4, rel=0.002)
    assert texts.overhead == pytest.approx(11, abs=0.6)
    prompt = texts.prompt(3, request(prompt_tokens=2000))
    assert 11 + len(prompt) / 4.4 == pytest.approx(2000, abs=3)


def test_text_lengths_are_measured_by_tokenize() -> None:
    asked: list[dict[str, Any]] = []

    def tokenize(body: dict[str, Any], headers: Any) -> object:
        asked.append(body)
        return {"count": tokens_of(body), "max_model_len": 1000, "tokens": []}

    with serve(fake_server(tokenize=tokenize)) as url:
        check_measured(anyio.run(lambda: measure(f"{url}/v1", "tiny", nonce="a1")))
    assert [body["model"] for body in asked] == ["tiny", "tiny"]
    # what the run itself will send is not in the server's cache by that
    own = Texts(nonce="a1").prompt(0, request())
    assert not any(body["messages"][0]["content"].startswith(own[:19]) for body in asked)


@pytest.mark.parametrize(
    "tokenize", [None, {"tokens": []}, {"count": None}, PlainTextResponse("no", 500), PlainTextResponse("<html>")]
)
def test_text_lengths_are_measured_by_prompts_when_tokenize_is_missing(tokenize: object) -> None:
    asked: list[dict[str, Any]] = []

    def chat(body: dict[str, Any], headers: Any) -> object:
        asked.append(body)
        assert headers["authorization"] == "Bearer sk-1"
        return {"choices": [], "usage": {"prompt_tokens": tokens_of(body), "completion_tokens": 1}}

    routes = {} if tokenize is None else {"tokenize": lambda body, headers: tokenize}
    with serve(fake_server(chat=chat, **routes)) as url:
        check_measured(anyio.run(lambda: measure(url, "tiny", "sk-1", nonce="a1")))
    assert [body["max_tokens"] for body in asked] == [1, 1]


@pytest.mark.parametrize(
    "said",
    [{"choices": []}, {"usage": None}, {"usage": {"prompt_tokens": 5}}, [], PlainTextResponse("no", 400)],
    ids=str,
)
def test_a_server_without_usage_gets_the_default_text_lengths(said: object) -> None:
    with serve(fake_server(chat=lambda body, headers: said)) as url:
        assert anyio.run(lambda: measure(url, "tiny", nonce="a1")) == Texts(nonce="a1")


def test_latency_is_the_mean_of_three_sequential_requests() -> None:
    asked: list[dict[str, Any]] = []

    def chat(body: dict[str, Any], headers: Any) -> object:
        time.sleep(0.02 * len(asked))  # blocks the whole server, as a latency does
        asked.append(body)
        return {"choices": []}

    with serve(fake_server(chat=chat)) as url:
        began = time.perf_counter()
        mean = anyio.run(lambda: latency(url, "tiny"))
        took = time.perf_counter() - began
    assert 0.02 <= mean <= took / 3
    assert asked == [{"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}] * 3


@pytest.mark.parametrize("status", [400, 500])
def test_latency_of_a_failing_server_is_an_error(status: int) -> None:
    app = fake_server(chat=lambda body, headers: PlainTextResponse("no", status))
    with serve(app) as url, pytest.raises(ServerError, match=f"{url}.*{status}"):
        anyio.run(lambda: latency(url, "tiny"))
    with pytest.raises(ServerError, match=url):
        anyio.run(lambda: latency(url, "tiny"))


@pytest.mark.parametrize("ending", ["", "/", "/v1"])
def test_the_first_listed_model_is_used(ending: str) -> None:
    def models(body: object, headers: Any) -> object:
        assert headers["authorization"] == "Bearer sk-1"
        return {"data": [{"id": "first"}, {"id": "second"}]}

    with serve(fake_server(models=models)) as url:
        assert served_model(url + ending, "sk-1") == "first"


@pytest.mark.parametrize(
    ("said", "key", "message"),
    [
        (PlainTextResponse("no", 401), None, "wants an API key, and got none"),
        (PlainTextResponse("no", 401), "sk-1", "wants an API key, and not this one"),
        (PlainTextResponse("no", 404), None, "lists no model .status 404.*OpenAI server"),
        (PlainTextResponse("<html>"), None, "lists no model .status 200.*OpenAI server"),
        ({"data": []}, None, "lists no model.*loaded"),
        ([], None, "lists no model"),
    ],
)
def test_a_server_that_lists_no_model_is_an_error(said: object, key: str | None, message: str) -> None:
    app = fake_server(models=lambda body, headers: said)
    with serve(app) as url, pytest.raises(ServerError, match=f"{url}/v1/models {message}"):
        served_model(url, key)


def test_listing_models_of_an_unreachable_server_is_an_error() -> None:
    with serve(fake_server()) as url:
        pass
    with pytest.raises(ServerError, match=f"{url}/v1/models does not answer.*does the server run"):
        served_model(url)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({"version": "0.32.0"}, "0.32.0"),
        ({}, ""),
        ([], ""),
        (PlainTextResponse("no", 404), ""),
        (PlainTextResponse("x"), ""),
    ],
    ids=str,
)
def test_the_servers_version_is_read_if_available(said: object, version: str) -> None:
    with serve(fake_server(version=lambda body, headers: said)) as url:
        assert anyio.run(server_version, f"{url}/v1") == version
    assert anyio.run(server_version, url) == ""
