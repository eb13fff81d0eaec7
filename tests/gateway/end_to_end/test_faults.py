"""Faults between gateway and engine: what the client gets, which span and metric record it, and that the permit is
released (which is checked for every gateway when a test ends). docs/faults.md has them as a table.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.engine.client import EngineClient
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.servers import serve
from tests.support.waiting import DEADLINE, wait_until
from tests.support.wire import DONE, chat, sse, token

SOON: dict[str, Any] = {"silent_grace": 0.05, "comment_interval": 0.05}
ONE_SEAT: dict[str, Any] = {"engine": {"max_num_seqs": 1}}
BROKEN = sse({"error": {"message": "out of memory", "type": "InternalServerError", "param": None, "code": 500}})


def hang_up_twice(engine: ScriptedEngine, call: ReceivedRequest) -> None:
    call.hang_up()
    engine.asked().hang_up()


def break_off(engine: ScriptedEngine, call: ReceivedRequest) -> None:
    call.start()
    call.send(token())
    call.hang_up()


def say_error(engine: ScriptedEngine, call: ReceivedRequest) -> None:
    call.stream(token(), BROKEN, DONE)


def fall_silent(engine: ScriptedEngine, call: ReceivedRequest) -> None:
    call.start()
    call.send(token())


def nothing(engine: ScriptedEngine, call: ReceivedRequest) -> None:
    pass


def refuse(engine: ScriptedEngine, call: ReceivedRequest) -> None:
    call.answer(400, {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}})


def fail(engine: ScriptedEngine, call: ReceivedRequest) -> None:
    call.answer(500, {"error": {"message": "no", "type": "InternalServerError", "param": None, "code": 500}})


FAULTS = [
    pytest.param(hang_up_twice, 502, "bad_upstream", "bad_upstream", id="resets before the first byte, twice"),
    pytest.param(break_off, 200, "bad_upstream", "bad_upstream", id="resets mid-stream"),
    pytest.param(say_error, 200, 500, "engine_error", id="sends an error inside a stream"),
    pytest.param(fall_silent, 200, "upstream_timeout", "upstream_timeout", id="stops sending"),
    pytest.param(nothing, 504, "upstream_timeout", "upstream_timeout", id="never answers"),
    pytest.param(refuse, 400, 400, "engine_error", id="says 400"),
    pytest.param(fail, 500, 500, "engine_error", id="says 500"),
]


@pytest.mark.parametrize("waited", [False, True], ids=["at once", "after comments"])
@pytest.mark.parametrize(("fault", "status", "code", "outcome"), FAULTS)
def test_each_fault_has_its_status_outcome_and_span(
    engine: ScriptedEngine,
    start_gateway: StartGateway,
    tmp_path: Path,
    waited: bool,
    fault: Callable[[ScriptedEngine, ReceivedRequest], None],
    status: int,
    code: object,
    outcome: str,
) -> None:
    spans = tmp_path / "spans.jsonl"
    # Only an engine that is silent may run into the timeout, however slow the machine is.
    timeout = 0.5 if fault in (fall_silent, nothing) else DEADLINE
    soon = SOON if waited else {}
    gateway = start_gateway(engine.url, **ONE_SEAT, **soon, upstream_timeout=timeout, trace_file=spans)
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    if waited:
        assert asked.response.readline().startswith(b": prefill")
        status_told = 200
    else:
        status_told = status
    fault(engine, call)
    told = asked.read()
    assert asked.status == status_told
    if status_told == 200:
        assert told.endswith(DONE)
        told = told.removesuffix(DONE).rpartition(b"data: ")[2]
    assert json.loads(told)["error"]["code"] == code
    gateway.wait_ended(outcome)
    gateway.check_budgets()
    gateway.stop()
    lines = [json.loads(line) for line in spans.read_text().splitlines()]
    server, client = (next(line for line in lines if line["kind"] == kind) for kind in ("SERVER", "CLIENT"))
    failed = "UNSET" if fault is refuse else "ERROR"
    assert (server["status"], client["status"]) == (failed, failed)
    assert server["attributes"]["http.response.status_code"] == status_told
    assert server["attributes"]["fairlane.outcome"] == outcome
    assert server["attributes"].get("error.type") == (None if fault is refuse else outcome)
    assert server["attributes"].get("fairlane.asked_again") is None


# Once more


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("waited", [False, True], ids=["at once", "after comments"])
def test_a_connection_lost_before_the_first_byte_is_retried_once(
    engine: ScriptedEngine, start_gateway: StartGateway, stream: bool, waited: bool
) -> None:
    gateway = start_gateway(engine.url, **(SOON if waited else {}))
    asked = gateway.ask(chat(stream=stream), headers={"x-request-id": "mine"})
    first = engine.asked()
    if waited and stream:
        assert asked.response.readline().startswith(b": prefill")
    first.hang_up()
    again = engine.asked()
    assert (again.body, again.headers["x-request-id"]) == (first.body, "mine")
    if stream:
        again.stream(token(), DONE)
        assert asked.read().endswith(token() + DONE)
    else:
        again.answer()
    assert asked.status == 200
    gateway.wait_ended("completed")
    assert gateway.metric("fairlane_engine_asked_again_total") == 1
    assert gateway.metric("fairlane_requests_total") == 1


def test_a_retried_request_is_not_learned_from(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Its first token came late for a reason that has nothing to do with the engine's speed."""
    gateway = start_gateway(engine.url)
    speed = gateway.gateway.core.speed

    def learned() -> tuple[float, float]:
        """Of the engine's curve, and of how long prefills take beside it."""
        return gateway.metric("fairlane_samples", of="prefill"), gateway.call(lambda: speed.slowdown["short"].value)

    for again in (False, True):
        before = learned()
        asked = gateway.ask(chat(stream=True, stream_options={"include_usage": True}))
        call = engine.asked()
        if again:
            call.hang_up()
            call = engine.asked()
        call.stream(token(), sse({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}), DONE)
        assert asked.read()
        gateway.wait_ended("completed", 1 + again)
        assert (learned() == before) is again


def test_a_connection_lost_after_the_headers_is_not_retried(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    assert asked.status == 200
    call.hang_up()
    assert b"bad_upstream" in asked.read()
    assert engine.pending == 0


def test_a_retry_uses_a_fresh_connection(start_gateway: StartGateway) -> None:
    """An engine that has just closed every connection it had: another old one would break, too."""
    with one_request_a_connection() as (url, connections):
        gateway = start_gateway(url)
        for count in (1, 2, 3):
            assert gateway.post(chat()).status_code == 200
            gateway.wait_ended("completed", count)
        assert connections.count("chat") == 3


@contextmanager
def one_request_a_connection() -> Iterator[tuple[str, list[str]]]:
    """An engine that keeps its connections open, and resets them at their second request."""
    answer = b'{"choices": []}'
    seen: list[str] = []

    def serve_one(client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := client.recv(65536)):
                    return
                head += piece
            seen.append("chat" if head.startswith(b"POST") else "other")
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            client.sendall(b"content-length: %d\r\n\r\n" % len(answer) + answer)
            client.recv(65536)  # and closed at whatever comes then

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve_one, args=(client,), daemon=True))
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()


# An engine that restarts


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_requests_wait_for_an_absent_engine_in_their_order(start_gateway: StartGateway) -> None:
    port = free_port()
    gateway = start_gateway(f"http://127.0.0.1:{port}", **ONE_SEAT, **SOON, policy="fifo", engine_grace=30.0)
    asked = []
    for count in range(3):
        asked.append(gateway.ask(chat(stream=True), headers={"x-request-id": f"number-{count}"}))
        if count == 0:
            assert asked[0].response.readline() == b": engine away\n"
        else:
            gateway.wait_queued(count)
            assert asked[count].response.readline().startswith(b": queued position=%d" % count)
    unstreamed = gateway.ask(chat(), headers={"x-request-id": "number-3"})
    gateway.wait_queued(3)
    assert gateway.get("/health/ready").status_code == 503
    assert gateway.get("/health").json() == {"status": "ok", "engine": "engine_down"}
    assert gateway.seats() == 1

    engine = ScriptedEngine()
    with serve(engine, port):
        for count, each in enumerate(asked):
            call = engine.asked()
            assert call.headers["x-request-id"] == f"number-{count}"
            call.stream(token(str(count)), DONE)
            assert each.read().endswith(token(str(count)) + DONE)
        engine.asked().answer()
        assert unstreamed.status == 200
        assert gateway.get("/health/ready").status_code == 200
        gateway.wait_ended("completed", 4)
        assert gateway.metric("fairlane_engine_asked_again_total") == 0


def test_a_job_holds_its_lane_while_the_engine_is_away(start_gateway: StartGateway) -> None:
    """Nothing is taken to be prefilled by an engine that is not there, though its answer comes in one piece."""
    port = free_port()
    gateway = start_gateway(f"http://127.0.0.1:{port}", long_prompt_tokens=1, engine_grace=30.0)
    gateway.ask(chat("a long prompt"))
    wait_until(lambda: gateway.in_prefill("long") == 1)
    gateway.ask(chat("another"))
    gateway.wait_queued(1, "long")
    start = time.perf_counter()
    wait_until(lambda: time.perf_counter() - start > 1.0)  # longer than the prompt is predicted to take
    assert (gateway.in_prefill("long"), gateway.queued("long")) == (1, 1)
    gateway.leave_all()
    gateway.wait_ended("client_left", 2)


def test_requests_fail_when_the_engine_is_not_back_within_the_grace(start_gateway: StartGateway) -> None:
    grace = 3.0
    gateway = start_gateway(f"http://127.0.0.1:{free_port()}", **ONE_SEAT, engine_grace=grace, silent_grace=DEADLINE)
    start = time.perf_counter()
    first, second = (gateway.ask(chat(stream=True)) for _ in range(2))
    assert (first.status, second.status) == (503, 503)
    assert first.json()["error"]["code"] == "engine_down"
    # The grace belongs to the engine: requests neither wait for it one after the other, nor once it is over.
    assert 0.3 * grace < time.perf_counter() - start < 2 * grace
    start = time.perf_counter()
    assert gateway.post(chat()).status_code == 503
    assert time.perf_counter() - start < grace
    gateway.wait_ended("engine_down", 3)


def test_the_grace_restarts_after_the_engine_was_back(start_gateway: StartGateway) -> None:
    """Though nobody asked it anything meanwhile."""
    port = free_port()
    start = time.perf_counter()
    gateway = start_gateway(f"http://127.0.0.1:{port}", **SOON, engine_grace=2.0)
    (client,) = (each for each in gateway.gateway.components if isinstance(each, EngineClient))
    wait_until(lambda: client.away_since is not None)
    with serve(ScriptedEngine(), port):
        wait_until(lambda: client.away_since is None)
        wait_until(lambda: time.perf_counter() - start > 2.0)
    asked = gateway.ask(chat(stream=True))
    assert asked.response.readline() == b": engine away\n"
    asked.leave()
    gateway.wait_ended("client_left")


def test_an_unstreamed_request_survives_an_engine_restart(start_gateway: StartGateway) -> None:
    """The engine dies at work: nothing of an answer has gone out, so it is asked again when it is back."""
    with ExitStack() as dying:
        listener = dying.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        gateway = start_gateway(f"http://127.0.0.1:{port}", engine_grace=30.0)
        asked = gateway.ask(chat())
        head = b""
        while not head.startswith(b"POST"):  # the others ask for models and metrics
            connection = dying.enter_context(listener.accept()[0])
            head = connection.recv(65536)
        listener.close()
    engine = ScriptedEngine()
    with serve(engine, port):
        engine.asked().answer()
        assert asked.status == 200
    gateway.wait_ended("completed")
    assert gateway.metric("fairlane_engine_asked_again_total") == 1


def test_a_client_that_leaves_while_the_engine_is_away_frees_its_seat(start_gateway: StartGateway) -> None:
    gateway = start_gateway(f"http://127.0.0.1:{free_port()}", **ONE_SEAT, engine_grace=30.0)
    asked = gateway.ask(chat(stream=True))
    wait_until(lambda: gateway.seats() == 1)
    asked.leave()
    wait_until(lambda: gateway.seats() == 0)
    gateway.wait_ended("client_left")


def test_a_gateway_that_drains_is_not_ready(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    assert gateway.get("/health/ready").json() == {"status": "ok", "engine": "up"}
    gateway.call(gateway.gateway.drain)
    ready, live = gateway.get("/health/ready"), gateway.get("/health")
    assert (ready.status_code, live.status_code) == (503, 200)
    assert ready.json() == {"status": "draining", "engine": "up"}


# Slow readers


def test_a_client_that_does_not_read_costs_bounded_memory(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """What it does not take stays with the engine: the gateway stops reading there."""
    gateway = start_gateway(engine.url, client_stall=30.0)
    asked = gateway.ask(chat(stream=True), receive_buffer=4096)
    call = engine.asked()
    call.start()
    big = token("x" * 100_000)
    for _ in range(200):
        call.send(big)
    call.end(DONE)
    connection = next(each for each in gateway.connections if each.cycle and not each.cycle.response_complete)
    wait_until(lambda: connection.flow.write_paused)
    held: list[int] = []
    for _ in range(50):
        held.append(connection.transport.get_write_buffer_size())
        time.sleep(0.005)  # the point: while time goes by, it does not grow
    assert held[-1] == held[0] <= 400_000
    received = 0
    while piece := asked.response.read(1 << 20):
        received += len(piece)
    assert received == 200 * len(big) + len(DONE)
    gateway.wait_ended("completed")
