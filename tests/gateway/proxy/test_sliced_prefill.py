"""Sliced prefill through a running gateway: what the engine is sent and when, and what happens when something fails."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from gateway.pricing.cost_model import CostModel
from gateway.pricing.curves import PrefillCurve
from gateway.pricing.profile import Profile
from gateway.slicing.planner import SlicePlan, Slicer, Slicing
from tests.support.client import PendingRequest
from tests.support.running_gateway import BUDGETS, RunningGateway, StartGateway
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import DONE, TEXT, chat, sse

# 12 000 tokens take 1.2 s, so slices of half a second are three.
PER_TOKEN = 1e-4
PROFILE = Profile(c_s=0.0, a_s_per_token=PER_TOKEN, b_s_per_token2=0.0, decode_s_per_token=1e-4)
TOKENS = 12_000


def ends() -> tuple[int, int]:
    """Of the first two slices."""
    plan = SlicePlan(Slicer(Slicing(), CostModel(PROFILE)), TOKENS)
    first = plan.end
    plan.advance(0.0, contended=True)
    return first, plan.end


FIRST, SECOND = ends()


def long(first: int = 1, tokens: int = TOKENS, **fields: Any) -> dict[str, Any]:
    """Token ids, so that nobody has to be asked for them."""
    return {"model": "scripted", "prompt": list(range(first, first + tokens)), "stream": True, **fields}


def usage(prompt: int, cached: int | None, output: int = 1) -> dict[str, Any]:
    told = {"prompt_tokens": prompt, "completion_tokens": output}
    return told if cached is None else told | {"prompt_tokens_details": {"cached_tokens": cached}}


def done(call: ReceivedRequest, cached: int | None) -> None:
    """A slice is prefilled."""
    call.answer(200, {"choices": [{"index": 0, "text": "x"}], "usage": usage(len(call.json["prompt"]), cached)})


def answered(call: ReceivedRequest, cached: int | None, output: int = 3) -> None:
    tokens = len(call.json["prompt"]) if "prompt" in call.json else TOKENS
    chunk = {"choices": [{"index": 0, "text": "word"}]}
    call.stream(sse(chunk), sse({"choices": [], "usage": usage(tokens, cached, output)}), DONE)


def slices(engine: ScriptedEngine, cached: Sequence[int | None]) -> list[ReceivedRequest]:
    """As many slices as there are counts, each found so much of its prompt."""
    calls = []
    for each in cached:
        calls.append(engine.asked())
        done(calls[-1], each)
    return calls


class Start(Protocol):
    def __call__(self, **settings: Any) -> RunningGateway: ...


@pytest.fixture
def start(engine: ScriptedEngine, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A gateway that cuts. The curve stays as it is: this engine answers at once, and slices would grow with that."""
    monkeypatch.setattr(PrefillCurve, "saw", lambda curve, prefill: False)

    def start(**settings: Any) -> RunningGateway:
        return start_gateway(engine.url, PROFILE, tokenizer="engine", engine={"step_tokens": 1 << 20}, **settings)

    return start


@pytest.fixture
def gateway(start: Start) -> RunningGateway:
    return start()


def nothing_is_held(gateway: RunningGateway) -> None:
    held = (*BUDGETS, "fairlane_kv_tokens")
    wait_until(lambda: not any(gateway.metric(name) for name in held), what="nothing is held")


def whole(asked: PendingRequest) -> None:
    assert asked.status == 200
    assert asked.read().endswith(DONE)


def test_a_long_prompt_is_sent_as_growing_prefixes_and_then_as_the_request(
    engine: ScriptedEngine, gateway: RunningGateway
) -> None:
    body = long(temperature=0.3, max_tokens=9, cache_salt="s", priority=3, seed=5)
    asked = gateway.ask(body, TEXT)
    first, second = slices(engine, [0, FIRST])
    last = engine.asked()
    answered(last, SECOND)
    whole(asked)
    ids = body["prompt"]
    for call, end in zip((first, second), (FIRST, SECOND), strict=True):
        assert call.path == TEXT
        assert call.json == {
            "max_tokens": 1,
            "temperature": 0,
            "model": "scripted",
            "cache_salt": "s",
            "prompt": ids[:end],
        }
    del body["priority"]  # the gateway's to say
    assert last.json == body | {"stream_options": {"include_usage": True}}
    assert asked.header("x-fairlane-slices") == "2"
    assert len({call.headers["x-request-id"] for call in (first, second, last)}) == 3
    assert gateway.metric("fairlane_slices_total") == 2
    assert (
        gateway.metric("fairlane_slice_tokens_total")
        == gateway.metric("fairlane_slice_cached_tokens_total")
        == FIRST + SECOND
    )
    nothing_is_held(gateway)


def test_short_prompts_run_between_slices_while_other_long_ones_wait(
    engine: ScriptedEngine, gateway: RunningGateway
) -> None:
    asked = gateway.ask(long(), TEXT)
    first = engine.asked()
    other = gateway.ask(long(100_000), TEXT)
    gateway.wait_queued(1, "long")
    short = gateway.ask(chat(stream=True))
    passed = engine.asked()
    assert "messages" in passed.json
    done(first, 0)
    second = engine.asked()
    assert second.json["prompt"] == long()["prompt"][:SECOND]
    done(second, FIRST)
    answered(engine.asked(), SECOND)
    whole(asked)
    slices(engine, [0, FIRST])
    answered(engine.asked(), SECOND)
    whole(other)
    passed.stream(DONE)
    short.read()
    nothing_is_held(gateway)


def test_a_much_shorter_long_prompt_passes_at_the_next_gap(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(long(tokens=40_000 - 8000), TEXT)
    first = engine.asked()
    shorter = gateway.ask(long(500_000, tokens=3000), TEXT)
    gateway.wait_queued(1, "long")
    done(first, 0)
    passing = engine.asked()
    assert passing.json["prompt"][0] == 500_000
    assert gateway.in_prefill("long") == 1
    answered(passing, 0)
    whole(shorter)
    assert engine.asked().json["prompt"][0] == 1
    asked.leave()
    nothing_is_held(gateway)


def test_the_charge_and_the_reported_cost_are_those_of_the_whole_prefill(
    engine: ScriptedEngine, start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "spans.jsonl"
    gateway = start(trace_file=file)
    asked = gateway.ask(long(), TEXT)
    slices(engine, [1600, FIRST])
    answered(engine.asked(), SECOND)
    whole(asked)
    gateway.stop()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    named = {span["name"]: span for span in spans if span["kind"] == "INTERNAL"}
    (server,) = [span["attributes"] for span in spans if span["kind"] == "SERVER"]
    assert server["gen_ai.usage.cache_read.input_tokens"] == 1600  # and not what its own slices had done
    assert server["fairlane.slices"] == 2
    drawn = [span for span in spans if span["name"] == "slice"]
    assert [span["attributes"]["fairlane.slice.end"] for span in drawn] == [FIRST, SECOND]
    assert {span["parent_id"] for span in drawn} == {named["prefill"]["span_id"]}
    assert sum(span["duration_s"] for span in drawn) <= named["prefill"]["duration_s"]
    curve = PER_TOKEN * (TOKENS - 1600)
    assert server["fairlane.true.prefill_s"] == pytest.approx(curve)
    assert server["fairlane.charged_s"] >= server["fairlane.true.prefill_s"]


def test_a_client_that_leaves_between_slices_costs_nothing_more(
    engine: ScriptedEngine, gateway: RunningGateway
) -> None:
    asked = gateway.ask(long(), TEXT)
    call = engine.asked()
    asked.leave()
    wait_until(call.left.is_set, what="the slice is cancelled")
    nothing_is_held(gateway)
    assert engine.pending == 0
    gateway.wait_ended("client_left")


@pytest.mark.parametrize("fault", ["500", "hang up", "no json"])
def test_after_a_failed_slice_the_request_is_sent_whole(
    engine: ScriptedEngine, gateway: RunningGateway, fault: str
) -> None:
    asked = gateway.ask(long(), TEXT)
    done(engine.asked(), 0)
    failing = engine.asked()
    match fault:
        case "500":
            failing.answer(500, {"error": {"message": "no"}})
        case "no json":
            failing.answer(200, b"<html>")
        case _:
            failing.hang_up()
            engine.asked().hang_up()  # it is tried once more, on a fresh connection
    last = engine.asked()
    if fault == "no json":  # says nothing of the cache: it goes on
        assert len(last.json["prompt"]) == TOKENS
    assert last.json["stream"]
    answered(last, FIRST)
    whole(asked)
    nothing_is_held(gateway)


def test_slicing_stops_when_slices_miss_the_cache(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    for first in (1, 100_000):
        asked = gateway.ask(long(first), TEXT)
        slices(engine, [0, 0])  # the second one finds nothing, and nobody tries a third
        answered(engine.asked(), 0)
        whole(asked)
    assert gateway.metric("fairlane_slicing_off") == 1
    asked = gateway.ask(long(200_000), TEXT)
    only = engine.asked()
    assert only.json["stream"]
    answered(only, 0)
    whole(asked)
    assert gateway.metric("fairlane_slices_total") == 4
    assert gateway.metric("fairlane_slice_cached_tokens_total") == 0


def test_an_engine_without_a_prefix_cache_gets_no_slices(engine: ScriptedEngine, start: Start) -> None:
    engine.metrics = (
        b'vllm:num_requests_running 0\nvllm:cache_config_info{block_size="16",enable_prefix_caching="False"} 1\n'
    )
    gateway = start()
    wait_until(lambda: gateway.metric("fairlane_engine_metrics_up") == 1)
    asked = gateway.ask(long(), TEXT)
    only = engine.asked()
    assert only.json["stream"]
    answered(only, None)
    whole(asked)


@pytest.mark.parametrize(
    "body",
    [
        long(prompt_logprobs=1),
        long(echo=True),
        {"model": "scripted", "prompt": [long()["prompt"], [1, 2, 3]]},
    ],
    ids=["prompt_logprobs", "echo", "two prompts"],
)
def test_prompts_that_the_cache_does_not_serve_are_not_sliced(
    engine: ScriptedEngine, gateway: RunningGateway, body: dict[str, Any]
) -> None:
    asked = gateway.ask(body, TEXT)
    only = engine.asked()
    assert only.json["prompt"] == body["prompt"]
    answered(only, None)
    asked.read()


def test_prompts_that_a_small_cache_cannot_hold_are_not_sliced(engine: ScriptedEngine, start: Start) -> None:
    engine.metrics = (
        b"vllm:num_requests_running 0\n"
        b'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="12500",enable_prefix_caching="True"} 1\n'
    )
    gateway = start()
    wait_until(lambda: gateway.gateway.core.cost_model.prefixes.capacity == 12_500)
    asked = gateway.ask(long(), TEXT)
    only = engine.asked()
    assert only.json["stream"]
    answered(only, 0)
    whole(asked)


def test_slicing_can_be_switched_off(engine: ScriptedEngine, start: Start) -> None:
    gateway = start(slicing=False)
    asked = gateway.ask(long(), TEXT)
    only = engine.asked()
    assert only.json["stream"]
    answered(only, 0)
    whole(asked)


def test_a_chat_is_sliced_by_the_engines_tokens(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    body = chat("word " * 9000, stream=True, tools=[{"type": "function", "function": {"name": "f"}}])
    asked = gateway.ask(body)
    question = engine.asked()
    assert question.path == "/tokenize"
    assert question.json["tools"] == body["tools"]
    ids = list(range(TOKENS))
    question.answer(200, {"count": TOKENS, "tokens": ids})
    first, second = slices(engine, [0, FIRST])
    assert first.json["prompt"] == ids[:FIRST]
    assert second.json["prompt"] == ids[:SECOND]
    last = engine.asked()
    assert last.json["messages"] == body["messages"]
    answered(last, SECOND)
    whole(asked)


def test_an_unstreamed_request_is_sliced_too(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(long(stream=False), TEXT)
    slices(engine, [0, FIRST])
    last = engine.asked()
    last.answer(200, {"choices": [{"text": "hi"}], "usage": usage(TOKENS, SECOND, 3)})
    assert asked.status == 200
    assert asked.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": SECOND}  # the engine's own words
    nothing_is_held(gateway)


def test_decoding_requests_have_the_engine_between_slices(engine: ScriptedEngine, start: Start) -> None:
    gateway = start(long_share=0.01)
    short = gateway.ask(chat(stream=True))
    decoding = engine.asked()
    decoding.start()
    decoding.send(sse({"choices": [{"index": 0, "delta": {"content": "word"}}]}))
    wait_until(lambda: gateway.in_prefill() == 0)
    asked = gateway.ask(long(), TEXT)
    done(engine.asked(), 0)
    wait_until(lambda: gateway.metric("fairlane_slices_total") == 1)
    assert engine.pending == 0  # the pause
    assert gateway.in_prefill("long") == 1  # and nobody else may begin in it
    decoding.end(DONE)
    short.read()
    done(engine.asked(), FIRST)  # nobody decodes: it is over
    answered(engine.asked(), SECOND)
    whole(asked)


def test_unexpected_cache_hits_lower_the_charge(engine: ScriptedEngine, start: Start, tmp_path: Path) -> None:
    """As after a restart of the gateway: all of the prompt is there, and each slice finds all of itself."""
    file = tmp_path / "spans.jsonl"
    gateway = start(trace_file=file)
    asked = gateway.ask(long(), TEXT)
    slices(engine, [FIRST, SECOND])
    answered(engine.asked(), TOKENS - 16)
    whole(asked)
    gateway.stop()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    (server,) = [span["attributes"] for span in spans if span["kind"] == "SERVER"]
    assert server["gen_ai.usage.cache_read.input_tokens"] == TOKENS - 16
    assert server["fairlane.true.prefill_s"] == pytest.approx(PER_TOKEN * 16)


def test_slicing_stops_for_an_engine_that_refuses_token_ids(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    for first in (1, 100_000):
        asked = gateway.ask(long(first), TEXT)
        engine.asked().answer(404, {"error": {"message": "no"}})
        answered(engine.asked(), 0)
        whole(asked)
    assert gateway.metric("fairlane_slicing_off") == 1
