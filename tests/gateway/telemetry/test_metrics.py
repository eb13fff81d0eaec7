"""/metrics during and after requests, and the log line of each request."""

import json
import logging
import re

import pytest

from gateway.identity.callers import hashed
from gateway.pricing.profile import Profile
from tests.support.running_gateway import TINY, RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import DONE, chat, token, usage

# Costs for ever: only a first token, or the end, gives a permit back.
ENDLESS = Profile(c_s=1000.0, a_s_per_token=0.0, b_s_per_token2=0.0, decode_s_per_token=0.0)


def test_metric_names_are_stable(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    response = gateway.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    gauges = {(sample.name, tuple(sample.labels.items())): sample.value for sample in gateway.samples()}
    for lane in ("short", "long"):
        for name in ("fairlane_queue_jobs", "fairlane_prefill_jobs", "fairlane_prefill_tokens"):
            assert gauges[name, (("lane", lane),)] == 0
    assert gauges["fairlane_seats", ()] == 0
    assert gauges["fairlane_seats_limit", ()] == 256
    assert gauges["fairlane_bytes_per_token", ()] == 4.0
    for line in response.text.splitlines():
        assert line.startswith(("#", "fairlane_"))
    assert "# TYPE fairlane_requests_total counter" in response.text


def test_budget_metrics_follow_a_request(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, ENDLESS, engine={"max_num_seqs": 3})
    asked = gateway.ask({"prompt": [[1] * 10, [1] * 20], "stream": True}, "/v1/completions")
    call = engine.asked()
    assert gateway.metric("fairlane_prefill_jobs", lane="short") == 1
    assert gateway.metric("fairlane_prefill_tokens", lane="short") == 30
    assert gateway.seats() == 2
    long = gateway.ask({"prompt": [1] * 3000, "stream": True}, "/v1/completions")
    other = engine.asked()
    assert gateway.metric("fairlane_prefill_jobs", lane="long") == 1
    assert gateway.metric("fairlane_prefill_tokens", lane="long") == 3000
    assert gateway.seats() == 3
    waits = gateway.ask({"prompt": [1] * 3000, "stream": True}, "/v1/completions")
    gateway.wait_queued(1, "long")
    waits_too = gateway.ask(chat(stream=True))
    gateway.wait_queued(1, "short")
    assert gateway.queued("long") == 1
    call.start()
    call.send(token(index=0) + token(index=1))
    asked.event()
    assert gateway.in_prefill("short") == 0
    assert gateway.metric("fairlane_prefill_tokens", lane="short") == 0
    assert gateway.seats() == 3
    call.end(DONE)
    third = engine.asked()
    third.stream(token(), DONE)
    other.stream(token(), DONE)
    engine.asked().stream(token(), DONE)
    for each in (asked, long, waits, waits_too):
        each.read()
    wait_until(lambda: set(gateway.budgets().values()) == {0.0})
    gateway.wait_ended("completed", 4)


def test_a_finished_request_is_counted(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    for prompt_tokens, stream in ((7, True), (8, False)):
        asked = gateway.ask(chat(stream=stream))
        call = engine.asked()
        if stream:
            call.stream(token(), usage(prompt_tokens, 3), DONE)
        else:
            call.answer(200, {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 4}})
        asked.read()
    gateway.wait_ended("completed", 2)
    assert gateway.metric("fairlane_prompt_tokens_total") == 15
    assert gateway.metric("fairlane_output_tokens_total") == 7
    assert gateway.metric("fairlane_queue_seconds_count", lane="short") == 2
    assert gateway.metric("fairlane_request_seconds_count", lane="short") == 2
    assert gateway.metric("fairlane_time_to_first_token_seconds_count") == 1  # of streams: others show none
    assert gateway.metric("fairlane_queue_seconds_count", lane="long") == 0


def test_an_error_has_no_time_to_first_token(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(chat(stream=True))
    engine.asked().answer(400, {"error": {"message": "no"}})
    asked.read()
    gateway.wait_ended("engine_error")
    assert gateway.metric("fairlane_time_to_first_token_seconds_count") == 0


def test_histograms_are_in_seconds(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, TINY, engine={"max_num_seqs": 1})
    first = gateway.ask(chat(stream=True))
    call = engine.asked()
    second = gateway.ask(chat(stream=True))
    gateway.wait_queued(1)
    start = gateway.metric("fairlane_queue_seconds_sum")
    assert start == 0
    call.stream(token(), DONE)
    engine.asked().stream(token(), DONE)
    first.read()
    second.read()
    gateway.wait_ended("completed", 2)
    queue, ttft, e2e = (
        gateway.metric(f"fairlane_{name}_seconds_sum") for name in ("queue", "time_to_first_token", "request")
    )
    assert 0 < queue < ttft <= e2e < 10


def test_bytes_per_token_is_learned(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    for size in (4000, 8000):
        asked = gateway.ask(chat("x" * size))
        engine.asked().answer(200, {"choices": [], "usage": {"prompt_tokens": size // 2, "completion_tokens": 1}})
        asked.read()
    wait_until(lambda: gateway.metric("fairlane_bytes_per_token") < 3.0)


@pytest.mark.parametrize(
    "usage_sent",
    [
        {"prompt_tokens": -5, "completion_tokens": -1},
        {"prompt_tokens": 0},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": "many"},
        {"prompt_tokens": None},
        [],
        None,
        7,
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_odd_usage_is_ignored(
    engine: ScriptedEngine, gateway: RunningGateway, usage_sent: object, stream: bool
) -> None:
    asked = gateway.ask(chat(stream=stream))
    call = engine.asked()
    content = {"choices": [], "usage": usage_sent}
    if stream:
        call.stream(token(), b"data: " + json.dumps(content).encode() + b"\n\n", DONE)
        assert asked.read().startswith(token())
    else:
        call.answer(200, content)
        assert asked.json() == content
    gateway.wait_ended("completed")


# The log


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """The log's lines, one for each finished request."""
    lines = [record.getMessage() for record in caplog.get_records("call") if record.name == "fairlane.requests"]
    return [dict(pair.split("=", 1) for pair in line.split(" ")) for line in lines]


def test_each_request_is_logged_in_one_line(
    engine: ScriptedEngine, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = start_gateway(engine.url, TINY)
    asked = gateway.ask(chat("x" * 40, stream=True), headers={"x-request-id": "mine", "x-user-id": "ada"})
    engine.asked().stream(token(), usage(7, 3), DONE)
    asked.read()
    gateway.wait_ended("completed")
    gateway.stop()
    (line,) = logged(caplog)
    assert list(line) == [
        *("id", "user", "lane", "class", "predicted", "prompt", "cached", "output", "slices"),
        *("queue_s", "prefill_s", "decode_s", "status", "outcome"),
    ]
    assert line["id"] == "mine"
    assert line["user"] == hashed("user:ada")
    assert (line["lane"], line["predicted"], line["prompt"], line["output"]) == ("short", "14", "7", "3")
    assert (line["status"], line["outcome"]) == ("200", "completed")
    for phase in ("queue_s", "prefill_s", "decode_s"):
        assert re.fullmatch(r"\d\.\d{3}", line[phase])


def test_a_failed_request_is_logged_in_one_line(
    engine: ScriptedEngine, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = start_gateway(engine.url)
    gateway.post(b"{")
    asked = gateway.ask(chat(stream=True))
    call = engine.asked()
    call.start()
    call.send(token())
    asked.event()
    asked.leave()
    gateway.wait_ended("client_left")
    asked = gateway.ask(chat())
    for _ in range(2):
        engine.asked().hang_up()
    asked.read()
    gateway.wait_ended("bad_upstream")
    gateway.stop()
    bad, left, broken = logged(caplog)
    assert (bad["outcome"], bad["status"], bad["user"], bad["queue_s"]) == ("bad_request", "400", "-", "-")
    assert (left["outcome"], left["status"], left["output"]) == ("client_left", "200", "-")
    assert left["decode_s"] != "-"
    assert (broken["outcome"], broken["status"], broken["decode_s"]) == ("bad_upstream", "502", "-")
    levels = {record.levelno for record in caplog.get_records("call") if record.name == "fairlane.requests"}
    assert levels == {logging.INFO}
