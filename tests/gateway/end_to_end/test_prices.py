"""Predicted prices through a running gateway: counting tokens, predicting cache hits, and learning from answers."""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.api.chat import parse
from gateway.engine.client import EngineClient
from gateway.engine.monitor import Served
from gateway.pricing.cost_model import CostModel
from gateway.pricing.prompt import text_size
from gateway.storage.profile_file import load
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ReceivedRequest, ScriptedEngine
from tests.support.waiting import wait_until
from tests.support.wire import DONE, TEXT, chat, sse, token

Message = dict[str, str]

NOVEL = "Call me Ishmael, some years ago. " * 1300  # 42 900 bytes, some 11 000 tokens
LONG_TOKENS = 11_000


def said(*texts: str) -> list[Message]:
    """A conversation, the user's word first."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def counts(prompt_tokens: Any, completion_tokens: Any = 3, cached: Any = None, **metrics: Any) -> bytes:
    """vLLM's last chunk, with what is found in its cache and its own times."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return sse({"id": "chatcmpl-1", "choices": [], "usage": usage, "metrics": metrics or None})


def server_spans(gateway: RunningGateway, file: Path) -> list[dict[str, Any]]:
    """The attributes of each request, in the order in which they ended."""
    gateway.stop()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    return [span["attributes"] for span in spans if span["kind"] == "SERVER"]


def turn(gateway: RunningGateway, engine: ScriptedEngine, messages: list[Message], last: bytes) -> ReceivedRequest:
    asked = gateway.ask(chat(stream=True) | {"messages": messages})
    call = engine.asked()
    call.stream(token(), last, DONE)
    asked.read()
    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


# The beginning that is cached


def test_the_second_turn_of_a_long_conversation_goes_to_the_short_lane(
    engine: ScriptedEngine, start_gateway: StartGateway, file: Path
) -> None:
    gateway = start_gateway(engine.url, trace_file=file)
    turn(gateway, engine, said(NOVEL), counts(LONG_TOKENS, 90, cached=0))
    turn(
        gateway, engine, said(NOVEL, "A white whale. " * 24, "Which one?"), counts(LONG_TOKENS + 110, 40, cached=11_088)
    )
    first, second = server_spans(gateway, file)
    assert (first["fairlane.lane"], second["fairlane.lane"]) == ("long", "short")
    assert first["fairlane.predicted.cached_tokens"] == 0
    assert second["fairlane.predicted.cached_tokens"] == 11_088  # whole blocks of prompt and answer
    assert second["fairlane.predicted.input_tokens"] == pytest.approx(LONG_TOKENS + 110, rel=0.01)
    assert second["gen_ai.usage.cache_read.input_tokens"] == 11_088
    assert second["fairlane.predicted.prefill_s"] < first["fairlane.predicted.prefill_s"] / 4
    assert second["fairlane.true.prefill_s"] == pytest.approx(second["fairlane.predicted.prefill_s"], rel=0.2)


def test_another_salt_or_model_shares_no_cache(engine: ScriptedEngine, start_gateway: StartGateway, file: Path) -> None:
    gateway = start_gateway(engine.url, trace_file=file)
    for fields in ({}, {"cache_salt": "ours"}, {"model": "adapter"}, {}):
        asked = gateway.ask(chat(NOVEL, stream=True, **fields))
        engine.asked().stream(token(), counts(LONG_TOKENS, 9, cached=0 if fields else None), DONE)
        asked.read()
    cached = [span["fairlane.predicted.cached_tokens"] for span in server_spans(gateway, file)]
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 10_000


def test_no_cache_is_predicted_for_an_engine_without_prefix_caching(
    engine: ScriptedEngine, start_gateway: StartGateway, file: Path
) -> None:
    engine.metrics = (
        b'vllm:num_requests_running{engine="0"} 0\nvllm:cache_config_info{enable_prefix_caching="False"} 1\n'
    )
    gateway = start_gateway(engine.url, trace_file=file)
    wait_until(lambda: gateway.metric("fairlane_engine_metrics_up") == 1)
    for _ in range(2):
        turn(gateway, engine, said(NOVEL), counts(LONG_TOKENS))
    assert [span["fairlane.predicted.cached_tokens"] for span in server_spans(gateway, file)] == [0, 0]


# Who counts


@pytest.fixture
def counting(engine: ScriptedEngine, start_gateway: StartGateway, file: Path) -> RunningGateway:
    return start_gateway(engine.url, tokenizer="engine", trace_file=file, slicing=False)


def test_a_long_prompt_is_counted_before_it_is_queued(
    engine: ScriptedEngine, counting: RunningGateway, file: Path
) -> None:
    asked = counting.ask(chat(NOVEL, stream=True))
    question = engine.asked()
    assert question.path == "/tokenize"
    assert question.json["messages"][0]["content"] == NOVEL
    question.answer(200, {"count": 12_345, "max_model_len": 32_768, "tokens": [1, 2, 3]})
    engine.asked().stream(token(), counts(12_345), DONE)
    asked.read()
    (span,) = server_spans(counting, file)
    assert span["fairlane.predicted.input_tokens"] == 12_345
    assert span["fairlane.counted"] is True
    names = [json.loads(line)["name"] for line in file.read_text().splitlines()]
    assert "tokenize" in names


def test_a_short_prompt_is_not_counted(engine: ScriptedEngine, counting: RunningGateway, file: Path) -> None:
    asked = counting.ask(chat("Hello", stream=True))
    call = engine.asked()
    assert call.path != "/tokenize"
    call.stream(token(), counts(9), DONE)
    asked.read()
    (span,) = server_spans(counting, file)
    assert span["fairlane.counted"] is False


def test_counted_tokens_train_the_estimator(engine: ScriptedEngine, counting: RunningGateway) -> None:
    for _ in range(2):
        asked = counting.ask(chat(NOVEL))
        engine.asked().answer(200, {"count": len(NOVEL) // 2, "max_model_len": 32_768, "tokens": []})
        engine.asked().answer(500, {"error": "none of them is ever answered"})
        asked.read()
    assert counting.metric("fairlane_bytes_per_token") == pytest.approx(2, rel=0.1)


def test_a_prompt_counted_as_too_long_is_refused_at_once(engine: ScriptedEngine, counting: RunningGateway) -> None:
    wait_until(lambda: counting.gateway.core.max_model_len)
    asked = counting.ask(chat(NOVEL * 3))
    engine.asked().answer(200, {"count": 32_769, "max_model_len": 32_768, "tokens": []})
    assert asked.status == 400
    error = asked.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "32768" in error["message"]
    assert "32769" in error["message"]
    assert engine.pending == 0


@pytest.mark.parametrize(("status", "content"), [(500, b"oh"), (200, b"{"), (400, {"error": "no"}), (404, {})])
def test_a_prompt_that_cannot_be_counted_is_estimated(
    engine: ScriptedEngine, counting: RunningGateway, file: Path, status: int, content: object
) -> None:
    asked = counting.ask(chat(NOVEL, stream=True))
    engine.asked().answer(status, content)
    engine.asked().stream(token(), counts(LONG_TOKENS), DONE)
    asked.read()
    (span,) = server_spans(counting, file)
    assert span["fairlane.counted"] is False
    assert span["fairlane.predicted.input_tokens"] == pytest.approx(LONG_TOKENS, rel=0.1)


def test_counting_stops_after_repeated_wrong_counts(
    engine: ScriptedEngine, counting: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        asked = counting.ask(chat(f"{number} {NOVEL}", stream=True))
        engine.asked().answer(200, {"count": 9000, "max_model_len": 32_768, "tokens": []})
        engine.asked().stream(token(), counts(LONG_TOKENS), DONE)
        asked.read()
    counting.wait_ended("completed", 3)
    asked = counting.ask(chat(f"3 {NOVEL}", stream=True))
    call = engine.asked()
    assert call.path != "/tokenize"
    call.stream(token(), counts(LONG_TOKENS), DONE)
    asked.read()
    assert "9000 instead of 11000" in caplog.text


def test_a_client_may_leave_while_its_prompt_is_counted(engine: ScriptedEngine, counting: RunningGateway) -> None:
    asked = counting.ask(chat(NOVEL))
    question = engine.asked()
    asked.leave()
    counting.wait_ended("client_left")
    assert question.left.wait(5)
    assert engine.pending == 0


def test_token_ids_need_no_count(engine: ScriptedEngine, counting: RunningGateway, file: Path) -> None:
    asked = counting.ask({"model": "m", "prompt": list(range(5000)), "stream": True}, TEXT)
    call = engine.asked()
    assert call.path == TEXT
    call.stream(token(), counts(5000), DONE)
    asked.read()
    (span,) = server_spans(counting, file)
    assert span["fairlane.predicted.input_tokens"] == 5000


def test_pricing_a_long_prompt_takes_little_loop_time() -> None:
    """All that the loop does for half a novel in one go, to read, price and remember it, is small beside what any
    server must: some 25 times what it takes to read its JSON, which is 0.05 ms for 85 kB."""
    body = json.dumps(chat(NOVEL * 2, stream=True)).encode()

    def gone_through() -> None:
        model = CostModel(load("gemma-4-26b-bf16"))
        prompts = parse(body).prompts
        model.insert_prefixes(prompts, model.price(prompts))

    assert fastest(gone_through) < 80 * fastest(lambda: json.loads(body))


def fastest(work: Callable[[], object]) -> float:
    def once() -> float:
        start = time.thread_time()  # what other processes take is not in it
        work()
        return time.thread_time() - start

    return min(once() for _ in range(30))


# What an engine may say of it

ABSURD: list[Any] = [0, -5, 10**15, -(10**15), 1e300, "many", None, True, [], {}]


@pytest.mark.parametrize("prompt", ABSURD)
@pytest.mark.parametrize("field", ["prompt", "completion", "cached", "times"])
def test_absurd_counts_neither_break_nor_overcharge(
    engine: ScriptedEngine, start_gateway: StartGateway, file: Path, prompt: Any, field: str
) -> None:
    gateway = start_gateway(engine.url, trace_file=file)
    before = gateway.metric("fairlane_bytes_per_token"), coefficients(gateway)
    usage = {"prompt": 100, "completion": 3, "cached": 0} | ({} if field == "times" else {field: prompt})
    times = {"queue_time_ms": prompt, "generation_time_ms": prompt} if field == "times" else {}
    last = counts(usage["prompt"], usage["completion"], usage["cached"], **times)
    for _ in range(3):
        turn(gateway, engine, said("x" * 400), last)
    if field in ("prompt", "times"):
        assert gateway.metric("fairlane_bytes_per_token") == pytest.approx(before[0], rel=0.2)
    after = coefficients(gateway)
    assert all(value >= 0 for value in after)
    spans = server_spans(gateway, file)
    assert len(spans) == 3
    assert all(span["fairlane.outcome"] == "completed" for span in spans)
    assert all(0 < span["fairlane.charged_s"] < 2000 for span in spans)


def coefficients(gateway: RunningGateway) -> list[float]:
    return [gateway.metric("fairlane_prefill_coefficient", of=of) for of in "cab"]


# What is kept


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "learned.json"


def learn(gateway: RunningGateway, engine: ScriptedEngine, times: int = 6) -> list[float]:
    """The gateway finds the engine, and that it has half as many bytes to a token; its coefficients then."""
    wait_until(lambda: gateway.gateway.core.max_model_len)
    for number in range(times):
        text = f"{number} " + "x" * 400 * (number + 1)
        turn(gateway, engine, said(text), counts(text_size(text.encode()).text_bytes // 2, 2, cached=0))
    gateway.wait_ended("completed", times)
    return [gateway.metric("fairlane_bytes_per_token"), *coefficients(gateway)]


def test_learned_costs_survive_a_restart(engine: ScriptedEngine, start_gateway: StartGateway, state: Path) -> None:
    first = start_gateway(engine.url, state_file=state)
    learned = learn(first, engine)
    assert learned[0] == pytest.approx(2.0, rel=0.1)
    first.stop()
    assert "x" * 10 not in state.read_text()
    second = start_gateway(engine.url, state_file=state)
    wait_until(lambda: second.metric("fairlane_bytes_per_token") == pytest.approx(learned[0], rel=1e-3))
    assert coefficients(second) == pytest.approx(learned[1:], rel=0.05)
    assert os.listdir(state.parent) == [state.name]


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"version": 99}', b"\xff" * 2_000_000, b'{"version":1}'])
def test_a_broken_state_file_is_a_warning(
    engine: ScriptedEngine, start_gateway: StartGateway, state: Path, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    state.parent.mkdir()
    state.write_bytes(broken)
    gateway = start_gateway(engine.url, state_file=state)
    learn(gateway, engine, 2)
    (warning,) = [record.getMessage() for record in caplog.records if "learning starts anew" in record.getMessage()]
    assert str(state) in warning
    gateway.stop()
    assert json.loads(state.read_bytes())["tokens"]  # and it is a whole one now


def test_an_unwritable_state_file_is_a_warning(
    engine: ScriptedEngine, start_gateway: StartGateway, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.parent.write_text("a file where the folder should be")
    gateway = start_gateway(engine.url, state_file=state)
    learn(gateway, engine, 2)
    gateway.stop()
    assert [record for record in caplog.records if "cannot be kept" in record.getMessage()]


def test_a_state_file_of_another_version_is_discarded(
    engine: ScriptedEngine, start_gateway: StartGateway, state: Path
) -> None:
    first = start_gateway(engine.url, state_file=state)
    learn(first, engine)
    first.stop()
    kept = json.loads(state.read_bytes())
    assert kept["engine"] == "scripted on vLLM scripted"
    state.write_text(json.dumps(kept | {"engine": "scripted on vLLM 0.1"}))
    second = start_gateway(engine.url, state_file=state)
    wait_until(lambda: second.gateway.core.max_model_len)
    turn(second, engine, said("Hello"), counts(9))
    assert second.metric("fairlane_bytes_per_token") == pytest.approx(4.0, rel=0.1)


def test_learning_restarts_when_another_engine_appears(
    engine: ScriptedEngine, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metrics(started: float) -> bytes:
        return b'vllm:num_requests_running{engine="0"} 0\nprocess_start_time_seconds %f\n' % started

    async def another(client: EngineClient) -> Served:
        return Served("another on vLLM 0.1", {"another": 32_768})

    engine.metrics = metrics(1e9)
    gateway = start_gateway(engine.url)
    wait_until(lambda: gateway.metric("fairlane_engine_metrics_up") == 1)
    learn(gateway, engine)
    assert gateway.metric("fairlane_bytes_per_token") == pytest.approx(2.0, rel=0.1)
    monkeypatch.setattr("gateway.engine.monitor.served", another)
    engine.metrics = metrics(2e9)
    wait_until(lambda: gateway.metric("fairlane_bytes_per_token") == 4.0)
    assert gateway.metric("fairlane_samples") == 0


def test_a_step_that_is_slower_than_the_profile_says_lowers_the_seats(
    engine: ScriptedEngine, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engine.monitor.RELIMIT", 0.05)
    gateway = start_gateway(engine.url, tpot_target=0.15)
    assert gateway.metric("fairlane_seats_limit") == 25
    step = gateway.gateway.core.cost_model.step
    for sequences in (1, 2, 4, 8):
        for _ in range(5):
            gateway.call(partial(step.observe, sequences, 0.12 * sequences**0.4))
    wait_until(lambda: 1 <= gateway.metric("fairlane_seats_limit") <= 4)


def test_prediction_errors_are_metrics(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    turn(gateway, engine, said("x" * 400), counts(120, 2, cached=0))
    gateway.wait_ended("completed")
    assert gateway.metric("fairlane_predicted_prompt_tokens_total") > 0
    assert gateway.metric("fairlane_prompt_tokens_total") == 120
    names = {sample.name for sample in gateway.samples()}
    assert {"fairlane_prediction_bias", "fairlane_prediction_error", "fairlane_prefill_coefficient"} <= names
