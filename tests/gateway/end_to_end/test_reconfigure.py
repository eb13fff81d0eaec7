"""Settings changed at run time: no request loses its place or its permit."""

import pytest

from gateway.config.settings import Settings
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import chat


def reconfigure(gateway: RunningGateway, **settings: object) -> None:
    """As SIGHUP does, on the gateway's own loop."""
    before = gateway.gateway.settings
    merged = {name: getattr(before, name) for name in Settings.model_fields} | settings
    gateway.call(lambda: gateway.gateway.reconfigure(Settings(**merged)))


def test_raising_the_seats_dispatches_at_once(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    gateway.ask(chat("runs"))
    engine.asked()
    gateway.ask(chat("waits"))
    gateway.wait_queued(1)
    reconfigure(gateway, engine={"max_num_seqs": 2})
    assert engine.asked().json["messages"][0]["content"] == "waits"
    assert gateway.metric("fairlane_seats_limit") == 2
    gateway.leave_all()


def test_lowering_the_seats_waits_for_running_requests(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    calls = []
    for name in ("first", "second"):
        gateway.ask(chat(name))
        calls.append(engine.asked())
    reconfigure(gateway, engine={"max_num_seqs": 1})
    gateway.ask(chat("third"))
    gateway.wait_queued(1)
    calls[0].answer()
    wait_until(lambda: gateway.seats() == 1)
    assert gateway.queued() == 1
    calls[1].answer()
    assert engine.asked().json["messages"][0]["content"] == "third"
    gateway.leave_all()


def test_changing_the_policy_keeps_the_queue(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Fair would take turns between two users; fifo, from now on, does not."""
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    gateway.ask(chat("runs", user="ann"))
    running = engine.asked()
    for n, (name, user) in enumerate([("a1", "ann"), ("a2", "ann"), ("b1", "ben")], start=1):
        gateway.ask(chat(name, user=user))
        gateway.wait_queued(n)
    reconfigure(gateway, policy="fifo")
    running.answer()
    order = []
    for _ in range(3):
        call = engine.asked()
        order.append(call.json["messages"][0]["content"])
        call.answer()
    assert order == ["a1", "a2", "b1"]


def test_new_keys_and_weights_apply_at_once(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    reconfigure(gateway, keys=[{"key": "newcomer", "owner": "ann"}], weights={"ann": 3.0})
    asked = gateway.ask(chat(), headers={"authorization": "Bearer newcomer"})
    engine.asked().answer()
    assert asked.status == 200
    assert gateway.gateway.settings.weights == {"ann": 3.0}


def test_settings_that_need_a_restart_are_logged(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    reconfigure(gateway, port=9, queue_timeout=5.0)
    assert any("port: a change takes a restart" in record.getMessage() for record in caplog.records)
    assert gateway.gateway.waiting.queue_timeout == 5.0


def test_invalid_settings_change_nothing(gateway: RunningGateway) -> None:
    with pytest.raises(ValueError, match="no profile"):
        reconfigure(gateway, profile="nonsense", queue_timeout=7.0)
    assert gateway.gateway.waiting.queue_timeout != 7.0
    assert gateway.gateway.settings.profile != "nonsense"


def test_forecasts_follow_the_engines_settings(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url)
    speed = gateway.gateway.core.speed
    assert not speed.shares_steps
    reconfigure(gateway, engine={"long_prefill_threshold": 2560})
    assert speed.shares_steps
