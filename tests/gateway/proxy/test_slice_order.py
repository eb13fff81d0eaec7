"""What the engine is told of a slice's place in its queue, and what it is sent after a slice that it refuses."""

import pytest

from gateway.pricing.profile import Profile
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.wire import DONE, TEXT, sse

# Token ids, so that nobody has to be asked for them; 12 000 tokens take 1.2 s, which is more than a slice.
PROFILE = Profile(c_s=0.0, a_s_per_token=1e-4, b_s_per_token2=0.0, decode_s_per_token=1e-4)
LONG = {"model": "scripted", "prompt": list(range(12_000)), "stream": True}
CHUNK = sse({"choices": [{"index": 0, "text": "word"}]})


@pytest.fixture
def gateway(engine: ScriptedEngine, start_gateway: StartGateway) -> RunningGateway:
    settings = {"step_tokens": 1 << 20, "scheduling_policy": "priority"}
    return start_gateway(engine.url, PROFILE, tokenizer="engine", engine=settings)


def test_each_slice_has_the_number_of_its_own_dispatch(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(LONG, TEXT)
    numbers, done = [], 0
    while "stream" not in (call := engine.asked()).json:
        numbers.append(call.json["priority"])
        details = {"prompt_tokens_details": {"cached_tokens": done}}
        done = len(call.json["prompt"])
        call.answer(200, {"choices": [], "usage": {"prompt_tokens": done, "completion_tokens": 1} | details})
    numbers.append(call.json["priority"])
    call.stream(CHUNK, DONE)
    assert asked.read().endswith(DONE)
    assert len(numbers) > 1
    assert numbers == list(range(1, len(numbers) + 1))


def test_after_a_refused_slice_the_request_itself_is_next(engine: ScriptedEngine, gateway: RunningGateway) -> None:
    asked = gateway.ask(LONG, TEXT)
    engine.asked().answer(404, {"error": {"message": "no"}})
    following = engine.asked()
    assert "stream" in following.json
    assert following.json["prompt"] == LONG["prompt"]
    following.stream(CHUNK, DONE)
    assert asked.read().endswith(DONE)
