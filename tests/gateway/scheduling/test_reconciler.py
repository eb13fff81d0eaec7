"""The engine's own metrics correct the ledger and never block it for good."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from gateway.scheduling.events import Corrected
from gateway.scheduling.reconciler import AGREEING, LEAST_SCALE, EngineState, Reconciler
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.servers import serve
from tests.support.waiting import wait_until
from tests.support.wire import chat

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:num_preemptions_total{engine="0",model_name="tiny"} 4.0
vllm:cache_config_info{block_size="16",kv_cache_size_tokens="1000",enable_prefix_caching="True"} 1.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 128.0
process_start_time_seconds 1.7e+09
"""


def test_vllm_metrics_are_parsed() -> None:
    assert EngineState.read(VLLM) == EngineState(3.0, 2.0, 0.25, 1000, 4.0, 16, True, 128.0, 1.7e9)


@pytest.mark.parametrize("text", [b"", b"{}", b"vllm:num_requests_running oops\n", b"other_metric 5\n", b"\xff\xfe"])
def test_missing_metrics_are_none(text: bytes) -> None:
    assert EngineState.read(text) is None


@given(st.binary(max_size=500))
def test_garbage_is_parsed_or_ignored(text: bytes) -> None:
    EngineState.read(text)
    EngineState.read(VLLM[: len(text)] + text)


def state(running: float = 0, waiting: float = 0, usage: float = 0.0) -> EngineState:
    return EngineState(running, waiting, usage, 100_000, 0)


def test_external_load_is_accepted_when_scrapes_agree() -> None:
    reconciler = Reconciler()
    for _ in range(AGREEING - 1):
        assert reconciler.observe(state(running=5), seats=2, kv_tokens=0, kv_limit=None).external_seats == 0
    assert reconciler.observe(state(running=7), seats=2, kv_tokens=0, kv_limit=None).external_seats == 3
    # What was just dispatched and is not seen yet does not make others disappear below zero.
    assert reconciler.observe(state(running=1), seats=9, kv_tokens=0, kv_limit=None).external_seats == 0


def test_a_failed_scrape_leaves_the_ledger_unchanged() -> None:
    reconciler = Reconciler()
    for _ in range(AGREEING):
        reconciler.observe(state(running=5), seats=0, kv_tokens=0, kv_limit=None)
    assert reconciler.lost() == Corrected()
    assert reconciler.observe(state(running=5), seats=0, kv_tokens=0, kv_limit=None).external_seats == 0


def test_reservations_are_scaled_to_the_cache_in_use() -> None:
    reconciler = Reconciler()
    for _ in range(50):
        correction = reconciler.observe(state(running=1, usage=0.1), seats=1, kv_tokens=40_000, kv_limit=None)
    assert correction.kv_scale == pytest.approx(0.25, abs=0.01)
    for _ in range(50):
        correction = reconciler.observe(state(running=1, usage=0.0), seats=1, kv_tokens=40_000, kv_limit=None)
    assert correction.kv_scale == pytest.approx(LEAST_SCALE, abs=0.01)


def test_a_small_ledger_does_not_change_the_scale() -> None:
    assert Reconciler().observe(state(usage=0.9), seats=1, kv_tokens=10, kv_limit=None).kv_scale == 1.0


# Through a gateway.


def running(n: int) -> bytes:
    return b'vllm:num_requests_running{engine="0"} %d\nvllm:num_requests_waiting{engine="0"} 0\n' % n


def test_external_requests_take_seats(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    engine.metrics = running(3)
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 4})
    wait_until(lambda: gateway.metric("fairlane_foreign_seats") == 3, 8.0)
    first = gateway.ask(chat("first"))
    call = engine.asked()
    engine.metrics = running(4)
    second = gateway.ask(chat("second"))
    gateway.wait_queued(1)
    assert gateway.metric("fairlane_engine_metrics_up") == 1
    engine.metrics = None  # it tells no more: the ledger stands alone, and nobody waits for a gauge
    engine.asked(8.0).answer()
    assert second.status == 200
    wait_until(lambda: gateway.metric("fairlane_engine_metrics_up") == 0)
    call.answer()
    assert first.status == 200


def test_an_engine_without_metrics_is_reported(gateway: RunningGateway) -> None:
    wait_until(lambda: gateway.metric("fairlane_engine_metrics_up") == 0)
    assert gateway.metric("fairlane_foreign_seats") == 0


def test_invalid_engine_metrics_do_not_stop_the_gateway(start_gateway: StartGateway) -> None:
    """Every answer says that it is compressed, and is not: httpx cannot even hand it over."""
    asked: list[str] = []

    async def nonsense(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        asked.append(scope["path"])
        headers = [(b"content-encoding", b"gzip"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"\xff{"})

    with serve(nonsense) as url:
        gateway = start_gateway(url)
        wait_until(lambda: {"/metrics", "/v1/models"} <= set(asked))
        wait_until(lambda: asked.count("/metrics") >= 2)
        assert gateway.metric("fairlane_engine_metrics_up") == 0
        assert json.loads(gateway.read("/health", {}))["status"] == "ok"
        # Nothing is unpacked here: what the engine says is passed on as it says it.
        assert gateway.ask(b"", "/v1/models", method="GET").read() == b"\xff{"
