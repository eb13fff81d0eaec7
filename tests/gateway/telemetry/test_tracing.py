"""Spans: which there are, when they start and end, where they are exported, and that they contain no text."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.servers import serve
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, DONE, TEXT, chat, token, usage

Span = dict[str, Any]
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SDK_SHUTDOWN_S = 30.0  # for how long the SDK itself would wait for a collector that does not answer
CLOCKS = 1e-3  # what the wall clock may drift against the monotonic one during a test, and rounding


def spans_of(file: Path) -> dict[str, Span]:
    """The spans of a file that has one request's, by what they are."""
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    by_name = {span["name"] if span["kind"] == "INTERNAL" else span["kind"]: span for span in spans}
    assert len(by_name) == len(spans)
    return by_name


def one_request(
    gateway: RunningGateway, engine: ScriptedEngine, *, headers: dict[str, str] | None = None, **fields: Any
) -> dict[str, str]:
    """Ask, have it answered, and stop the gateway; the headers that the engine got."""
    asked = gateway.ask(chat(model="m", max_tokens=9, **fields), headers=headers)
    call = engine.asked()
    if fields.get("stream"):
        call.stream(token(), usage(7, 3), DONE)
    else:
        call.answer()
    asked.read()
    gateway.stop()
    return call.headers


# What there is


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_has_five_nested_spans(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path, stream: bool
) -> None:
    file = tmp_path / "spans.jsonl"
    gateway = start_gateway(engine.url, trace_file=file)
    before = time.time()
    sent = one_request(gateway, engine, stream=stream, headers={"x-request-id": "mine"})
    after = time.time()
    spans = spans_of(file)
    assert set(spans) == {"SERVER", "CLIENT", "queue", "prefill", "decode"}
    server, client = spans["SERVER"], spans["CLIENT"]

    assert server["name"] == f"POST {CHAT}"
    assert client["name"] == "chat m"
    assert server["parent_id"] is None
    assert {span["parent_id"] for span in spans.values() if span is not server} == {server["span_id"]}
    assert len({span["trace_id"] for span in spans.values()}) == 1
    assert len({span["span_id"] for span in spans.values()}) == 5

    queue, prefill, decode = spans["queue"], spans["prefill"], spans["decode"]
    assert before - CLOCKS <= server["start"] <= queue["start"] <= queue["end"] == prefill["start"]
    assert prefill["end"] == decode["start"] <= decode["end"] <= server["end"] <= after + CLOCKS
    assert (client["start"], client["end"]) == (prefill["start"], server["end"])
    for span in spans.values():
        assert span["duration_s"] == pytest.approx(span["end"] - span["start"], abs=2e-6)
        assert span["status"] == "UNSET"

    host, _, port = engine.url.removeprefix("http://").partition(":")
    assert (client["attributes"]["server.address"], client["attributes"]["server.port"]) == (host, int(port))
    attributes = server["attributes"]
    assert attributes["http.request.method"] == "POST"
    assert attributes["http.route"] == CHAT
    assert attributes["http.response.status_code"] == 200
    assert attributes["fairlane.request.id"] == "mine"
    assert attributes["fairlane.outcome"] == "completed"
    assert attributes["fairlane.lane"] == "short"
    assert attributes["fairlane.seats"] == 1
    assert attributes["fairlane.predicted.input_tokens"] == 5
    assert attributes["fairlane.predicted.prefill_s"] == pytest.approx(0.22, abs=0.01)
    assert "127.0.0.1" not in attributes["fairlane.user"]
    attributes = client["attributes"]
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == "vllm"
    assert attributes["gen_ai.request.model"] == "m"
    assert attributes["gen_ai.request.stream"] is stream
    assert attributes["gen_ai.request.max_tokens"] == 9
    for span in (server, client):
        assert span["attributes"]["gen_ai.usage.input_tokens"] == 7
        assert span["attributes"]["gen_ai.usage.output_tokens"] == 3
    assert prefill["attributes"]["fairlane.timing.source"] == ("observed" if stream else "answer")
    *parent, flags = sent["traceparent"].split("-")
    assert parent == ["00", client["trace_id"], client["span_id"]]
    assert int(flags, 16) & 1  # sampled


def test_each_line_of_the_trace_file_has_the_same_fields(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path
) -> None:
    file = tmp_path / "spans.jsonl"
    one_request(start_gateway(engine.url, trace_file=file), engine)
    for span in spans_of(file).values():
        assert list(span) == [
            *("name", "kind", "trace_id", "span_id", "parent_id"),
            *("start", "end", "duration_s", "status", "attributes"),
        ]
        assert len(span["trace_id"]) == 32
        assert len(span["span_id"]) == 16


def test_a_trace_file_is_appended_to(engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    for _ in range(2):
        one_request(start_gateway(engine.url, trace_file=file), engine)
    assert len(file.read_text().splitlines()) == 10


def test_span_times_are_those_of_the_phases(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Each span lasts at least as long as its phase did for the client and the engine, and they fill the request."""
    file = tmp_path / "spans.jsonl"
    gateway = start_gateway(engine.url, trace_file=file, engine={"max_num_seqs": 1})
    ahead = gateway.ask(chat(stream=True), headers={"x-request-id": "ahead"})
    call = engine.asked()
    start = time.perf_counter()
    asked = gateway.ask(chat(stream=True), headers={"x-request-id": "asked"})
    gateway.wait_queued(1)
    queued = pause()
    call.stream(token(), DONE)
    call = engine.asked()
    call.start()
    prefilled = pause()
    call.send(token())
    asked.event()
    decoded = pause()
    call.end(DONE)
    asked.read()
    ahead.read()
    whole = time.perf_counter() - start
    gateway.stop()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    (server,) = (span for span in spans if span["attributes"].get("fairlane.request.id") == "asked")
    phases = {span["name"]: span for span in spans if span["parent_id"] == server["span_id"]}
    took = {name: phases[name]["duration_s"] for name in ("queue", "prefill", "decode")}
    assert queued <= took["queue"] <= whole - prefilled - decoded
    assert prefilled <= took["prefill"] <= whole - queued - decoded
    assert decoded <= took["decode"] <= whole - queued - prefilled
    # Before the queue there is only the reading of the body.
    assert 0.8 * server["duration_s"] < sum(took.values()) <= server["duration_s"] + CLOCKS


def pause(seconds: float = 0.1) -> float:
    start = time.perf_counter()
    wait_until(lambda: time.perf_counter() - start >= seconds)
    return time.perf_counter() - start


def test_a_request_that_timed_out_in_the_queue_has_a_queue_span_only(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path
) -> None:
    file = tmp_path / "spans.jsonl"
    gateway = start_gateway(engine.url, trace_file=file, engine={"max_num_seqs": 1}, queue_timeout=0.1)
    runs = gateway.ask(chat(stream=True))
    call = engine.asked()
    assert gateway.post(chat(), headers={"x-request-id": "late"}).status_code == 429
    call.stream(token(), DONE)
    runs.read()
    gateway.stop()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    (server,) = (span for span in spans if span["attributes"].get("fairlane.request.id") == "late")
    (queue,) = (span for span in spans if span["parent_id"] == server["span_id"])
    assert queue["name"] == "queue"
    assert queue["duration_s"] >= 0.1
    assert server["attributes"]["fairlane.outcome"] == "queue_timeout"
    assert server["attributes"]["http.response.status_code"] == 429
    assert server["status"] == "UNSET"


@pytest.mark.parametrize("what", ["bad body", "engine down", "client left", "engine error"])
def test_a_failed_request_has_the_spans_it_reached(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path, what: str
) -> None:
    file = tmp_path / "spans.jsonl"
    gateway = start_gateway("http://127.0.0.1:9" if what == "engine down" else engine.url, trace_file=file)
    if what == "client left":
        asked = gateway.ask(chat(stream=True))
        call = engine.asked()
        call.start()
        call.send(token())
        asked.event()
        asked.leave()
        gateway.wait_ended("client_left")
    elif what == "engine error":
        asked = gateway.ask(chat())
        engine.asked().answer(500, {"error": {"message": "no"}})
        asked.read()
    else:
        gateway.post(b"{" if what == "bad body" else chat())
    gateway.stop()
    names, status, outcome, error = {
        "bad body": ({"SERVER"}, 400, "bad_request", False),
        "engine down": ({"SERVER", "CLIENT", "queue", "prefill"}, 503, "engine_down", True),
        "client left": ({"SERVER", "CLIENT", "queue", "prefill", "decode"}, 200, "client_left", False),
        "engine error": ({"SERVER", "CLIENT", "queue", "prefill"}, 500, "engine_error", True),
    }[what]
    spans = spans_of(file)
    assert set(spans) == names
    server = spans["SERVER"]
    assert server["attributes"]["fairlane.outcome"] == outcome
    assert server["attributes"]["http.response.status_code"] == status
    assert server["status"] == ("ERROR" if error else "UNSET")
    assert server["attributes"].get("error.type") == (outcome if error else None)


# Nesting


def test_the_clients_trace_context_is_continued(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path
) -> None:
    file = tmp_path / "spans.jsonl"
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=value"}
    sent = one_request(start_gateway(engine.url, trace_file=file), engine, headers=headers)
    spans = spans_of(file)
    assert {span["trace_id"] for span in spans.values()} == {TRACE_ID}
    assert spans["SERVER"]["parent_id"] == PARENT_ID
    assert sent["traceparent"] == f"00-{TRACE_ID}-{spans['CLIENT']['span_id']}-01"
    assert sent["tracestate"] == "vendor=value"


@pytest.mark.parametrize("odd", ["", "nonsense", f"00-{'0' * 32}-{PARENT_ID}-01", f"ff-{TRACE_ID}-{PARENT_ID}-01"])
def test_an_invalid_traceparent_starts_a_new_trace(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path, odd: str
) -> None:
    file = tmp_path / "spans.jsonl"
    sent = one_request(start_gateway(engine.url, trace_file=file), engine, headers={"traceparent": odd})
    spans = spans_of(file)
    assert spans["SERVER"]["parent_id"] is None
    assert sent["traceparent"].split("-")[1] == spans["SERVER"]["trace_id"] != TRACE_ID


def test_without_tracing_the_trace_context_is_forwarded(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    traceparent = f"00-{TRACE_ID}-{PARENT_ID}-01"
    assert one_request(gateway, engine, headers={"traceparent": traceparent})["traceparent"] == traceparent


# The collector


class Collector:
    """An OTLP/HTTP collector, as far as a gateway can tell. While it is `closed` it answers nothing."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.open = threading.Event()
        self.asked = threading.Event()
        self.app = Starlette(routes=[Route("/v1/traces", self.receive, methods=["POST"])])

    async def receive(self, request: Request) -> Response:
        self.asked.set()
        await asyncio.to_thread(self.open.wait)
        assert request.headers["content-type"] == "application/x-protobuf"
        export = ExportTraceServiceRequest.FromString(await request.body())
        for resource in export.resource_spans:
            names = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            self.services.update(names)
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return Response(media_type="application/x-protobuf")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    with serve(collector.app) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        yield collector
        collector.open.set()


def test_a_collector_gets_the_spans(
    engine: ScriptedEngine, start_gateway: StartGateway, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.open.set()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    gateway = start_gateway(engine.url)
    asked = gateway.ask(chat(stream=True, model="m"), headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    call = engine.asked()
    call.stream(token(), usage(), DONE)
    asked.read()
    wait_until(lambda: len(collector.spans) == 5)  # while the gateway runs
    assert collector.services == {"fairlane"}
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {f"POST {CHAT}", "queue", "prefill", "decode", "chat m"}
    server = spans[f"POST {CHAT}"]
    assert server.parent_span_id.hex() == PARENT_ID
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
    assert {span.parent_span_id for span in collector.spans if span is not server} == {server.span_id}
    assert [server.kind, spans["chat m"].kind, spans["queue"].kind] == [2, 3, 1]  # SERVER, CLIENT, INTERNAL
    assert spans["decode"].end_time_unix_nano == server.end_time_unix_nano
    assert call.headers["traceparent"] == f"00-{TRACE_ID}-{spans['chat m'].span_id.hex()}-01"


def test_shutdown_exports_the_remaining_spans(
    engine: ScriptedEngine, start_gateway: StartGateway, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.open.set()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "spark-gateway")
    one_request(start_gateway(engine.url), engine)
    assert len(collector.spans) == 5
    assert collector.services == {"spark-gateway"}


@pytest.mark.parametrize("switch", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_tracing_is_switched_off_the_standard_way(
    engine: ScriptedEngine,
    start_gateway: StartGateway,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    switch: tuple[str, str],
) -> None:
    monkeypatch.setenv(*switch)
    one_request(start_gateway(engine.url), engine)
    assert not collector.asked.is_set()


def test_a_missing_collector_slows_nothing(
    engine: ScriptedEngine,
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It slows no request, is worth one line of log, and does not hold up the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    check_that_nobody_notices(engine, start_gateway(engine.url), untraced(engine, start_gateway), caplog)


def test_a_silent_collector_slows_nothing(
    engine: ScriptedEngine,
    start_gateway: StartGateway,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    gateway = start_gateway(engine.url)
    one = gateway.ask(chat(stream=True))
    engine.asked().stream(token(), DONE)
    one.read()
    assert collector.asked.wait(5)
    check_that_nobody_notices(engine, gateway, untraced(engine, start_gateway), caplog)


def untraced(engine: ScriptedEngine, start_gateway: StartGateway) -> RunningGateway:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("OTEL_SDK_DISABLED", "true")
        return start_gateway(engine.url)


def check_that_nobody_notices(
    engine: ScriptedEngine, gateway: RunningGateway, untraced: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    def thirty_requests(at: RunningGateway) -> float:
        start = time.perf_counter()
        for _ in range(30):
            asked = at.ask(chat(stream=True, user="ann"))
            engine.asked().stream(token(), DONE)
            assert asked.read() == token() + DONE
        return time.perf_counter() - start

    # Each request would wait for seconds if it waited for the collector. The faster of two rounds counts.
    traced = [(thirty_requests(gateway), thirty_requests(untraced)) for _ in range(2)]
    assert min(ours for ours, _ in traced) < 10 * max(plain for _, plain in traced)
    gateway.wait_ended("completed", int(gateway.ended("completed")))
    start = time.perf_counter()
    gateway.stop()
    assert time.perf_counter() - start < SDK_SHUTDOWN_S / 2
    noise = [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert len(noise) <= 1, [record.getMessage() for record in noise]


# Secrets


@pytest.mark.parametrize("ending", ["completed", "client left", "engine error", "engine breaks off", "bad request"])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_spans_contain_no_text_of_prompts_or_answers(
    engine: ScriptedEngine,
    start_gateway: StartGateway,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    path: str,
    ending: str,
) -> None:
    """Prompt, answer, API key and user: a canary in each, and none of it in any span, log, decision or metric."""
    canary = "Kanarienvogel"
    caplog.set_level(logging.DEBUG)
    spans, decisions = tmp_path / "spans.jsonl", tmp_path / "decisions.jsonl"
    key = f"{canary}-key"
    gateway = start_gateway(
        engine.url,
        trace_file=spans,
        decision_log=decisions,
        upstream_key=f"{canary}-engine",
        keys=({"key": key, "owner": f"{canary}-owner", "front_end": True},),
    )
    said = f"{canary}-prompt"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": said}]} if path == CHAT else {"prompt": said}
    body |= {"stream": True, "user": f"{canary}-user"}
    headers = {
        "authorization": f"Bearer {key}",
        "cookie": canary,
        "x-openwebui-user-id": f"{canary}-id",
        "x-openwebui-user-email": f"{canary}@example.org",
    }
    if ending == "bad request":
        body["n"] = f"{canary}-n"
    asked = gateway.ask(body, path, headers=headers)
    answer = token(f"{canary}-answer")
    if ending != "bad request":
        call = engine.asked()
        if ending == "engine error":
            call.answer(400, {"error": {"message": f"{canary}-refused"}})
        else:
            call.start()
            call.send(answer)
            assert asked.event() == answer
        if ending == "client left":
            asked.leave()
            gateway.wait_ended("client_left")
        elif ending == "engine breaks off":
            call.send(answer[:-1])
            call.hang_up()
        elif ending == "completed":
            call.end(usage() + DONE)
    if ending != "client left":
        asked.read()
    wait_until(lambda: gateway.metric("fairlane_requests_total") == 1)
    metrics = gateway.get("/metrics").text
    gateway.stop()
    ours = [record for record in caplog.get_records("call") if not record.name.startswith("tests")]
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in ours)
    assert ours
    assert spans.read_text()
    for told in (metrics, logged, spans.read_text(), decisions.read_text()):
        assert canary.lower() not in told.lower()
