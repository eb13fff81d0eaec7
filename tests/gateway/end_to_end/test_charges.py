"""A finished request is charged by the cost curve at the engine's token counts, not by elapsed time."""

import json
from pathlib import Path

import pytest

from gateway.pricing.profile import Profile
from tests.support.running_gateway import StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.wire import DONE, chat, token, usage

# Nothing here lasts a hundredth of what it costs.
DEAR = Profile(c_s=1000, a_s_per_token=10, b_s_per_token2=0, decode_s_per_token=100)


@pytest.mark.parametrize("stream", [True, False])
def test_the_charge_is_the_curve_at_the_engines_counts(
    engine: ScriptedEngine, start_gateway: StartGateway, tmp_path: Path, stream: bool
) -> None:
    log = tmp_path / "decisions.jsonl"
    gateway = start_gateway(engine.url, DEAR, decision_log=log)
    asked = gateway.ask(chat(stream=stream))
    call = engine.asked()
    if stream:
        call.stream(token(), usage(prompt_tokens=7, completion_tokens=3), DONE)
    else:
        call.answer(200, {"usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    asked.read()
    gateway.wait_ended("completed")
    gateway.stop()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["cost_s"] for event in events if event.get("event") == "finished"] == [1000 + 70 + 300]
