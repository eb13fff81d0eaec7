"""Configured limits reject a request on arrival, name the limit, and keep nothing reserved."""

from typing import Any

import pytest

from gateway.outcome import Outcome
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import chat


def fill(gateway: RunningGateway, engine: ScriptedEngine, waiting: int) -> Any:
    """One seat, taken; so many wait."""
    gateway.ask(chat("runs", user="ann"))
    running = engine.asked()
    for n in range(1, waiting + 1):
        gateway.ask(chat(f"waits {n}", user="ann"))
        gateway.wait_queued(n)
    return running


@pytest.mark.parametrize(
    ("limit", "code", "says"),
    [
        ({"max_queued": 2}, "queue_full", "max_queued = 2"),
        ({"max_queued_s": 0.5}, "queue_full", "max_queued_s = 0.5"),
        ({"flow_queued": 2}, "user_limit", "flow_queued"),
    ],
    ids=["max_queued", "max_queued_s", "flow_queued"],
)
def test_a_rejection_names_the_limit_that_was_reached(
    engine: ScriptedEngine, start_gateway: StartGateway, limit: dict[str, Any], code: str, says: str
) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, **limit)
    fill(gateway, engine, waiting=2)
    refused = gateway.post(chat("too many", user="ann"))
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == code
    assert says in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert gateway.queued() == 2
    gateway.wait_ended(code)
    gateway.leave_all()


def test_one_users_queue_limit_does_not_affect_others(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1}, flow_queued=1)
    fill(gateway, engine, waiting=1)
    gateway.ask(chat("another's", user="ben"))
    gateway.wait_queued(2)
    gateway.leave_all()


def test_others_pass_a_user_at_its_concurrency_cap(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, flow_in_flight=1)
    running = fill(gateway, engine, waiting=2)
    gateway.ask(chat("another's", user="ben"))
    other = engine.asked()
    assert other.json["user"] == "ben"
    running.answer()
    assert engine.asked().json["messages"][0]["content"] == "waits 1"
    assert gateway.queued() == 1
    gateway.leave_all()


def test_no_limit_is_set_by_default(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    gateway = start_gateway(engine.url, engine={"max_num_seqs": 1})
    fill(gateway, engine, waiting=30)
    gateway.leave_all()


def test_jobs_wait_for_cache_space(engine: ScriptedEngine, start_gateway: StartGateway) -> None:
    """Prompt and answer are reserved together; what does not fit waits until something has ended."""
    gateway = start_gateway(engine.url, engine={"kv_tokens": 250})
    gateway.ask(chat(max_tokens=100, user="ann"))
    first = engine.asked()
    gateway.ask(chat(max_tokens=100, user="ben"))
    second = engine.asked()
    gateway.ask(chat(max_tokens=100, user="cem"))
    gateway.wait_queued(1)
    assert 200 <= gateway.metric("fairlane_kv_tokens") <= 210
    first.answer()
    engine.asked().answer()
    second.answer()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [7] * 40_000}),
        ("/v1/chat/completions", {"messages": [{"content": "x" * 600_000}]}),
    ],
    ids=["counted", "at least"],
)
def test_a_job_that_can_never_fit_is_refused_at_once(
    engine: ScriptedEngine, gateway: RunningGateway, path: str, body: dict[str, Any]
) -> None:
    """The scripted engine says that its model takes 32768 tokens."""
    wait_until(lambda: gateway.gateway.core.max_model_len)
    refused = gateway.post(body, path)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "32768 tokens" in refused.json()["error"]["message"]
    assert engine.pending == 0


def test_a_job_that_might_fit_is_left_to_the_engine(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    wait_until(lambda: gateway.gateway.core.max_model_len)
    asked = gateway.ask({"messages": [{"content": "x" * 500_000}]})
    engine.asked().answer(400, {"error": {"message": "too long"}})
    assert asked.status == 400


def test_every_outcome_is_mapped_exactly_once() -> None:
    families = {"served", "refused", "rejected", "evicted", "failed"}
    for outcome in Outcome:
        assert outcome.family in families
        assert 200 <= outcome.status < 600
        assert outcome.family == "served" or (outcome.status >= 400 and outcome.type)
    assert len({outcome.value for outcome in Outcome}) == len(Outcome)
