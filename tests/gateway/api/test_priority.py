"""Clients cannot set vLLM's `priority`; the gateway does."""

import json
from typing import Any

import pytest

from gateway.api.priority import with_priority
from tests.support.running_gateway import StartGateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.wire import CHAT, DONE, TEXT, chat, token


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user",  "content": "priority"}], "x": 1.50 }\n',
        b'{"messages": [{"role": "user",  "content": "\\u00e9 \\"priority\\": 5"}], "x": 1.50 }',
        b'{"messages": [{"priority": 3, "role": "user",  "content": "hi"}]}',
        b'{"metadata": {"priority": 3}, "prompt": "hi"}',
    ],
)
def test_a_body_without_priority_is_unchanged(body: bytes) -> None:
    assert with_priority(body, None) == body
    assert json.loads(with_priority(body, 7)) == json.loads(body) | {"priority": 7}


@pytest.mark.parametrize("key", ["priority", "prior\\u0069ty", "\\u0070riority"])
@pytest.mark.parametrize("value", ["-5", "0", "null", '"-1"', "9223372036854775807", "{}"])
def test_a_clients_priority_is_removed(key: str, value: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "hi"}], "%s":%s, "seed": 7}' % (key.encode(), value.encode())
    rest = {"messages": [{"role": "user", "content": "hi"}], "seed": 7}
    assert json.loads(with_priority(body, None)) == rest
    told = with_priority(body, 3)
    assert json.loads(told) == rest | {"priority": 3}
    assert told.count(b"priority") == 1


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, chat()), (TEXT, {"prompt": "hi"})])
@pytest.mark.parametrize("stream", [True, False])
def test_without_priority_scheduling_no_priority_is_sent(
    engine: ScriptedEngine, start_gateway: StartGateway, path: str, prompt: dict[str, Any], stream: bool
) -> None:
    gateway = start_gateway(engine.url)
    asked = gateway.ask(prompt | {"priority": -9, "stream": stream}, path, headers={"x-vllm-priority": "-9"})
    call = engine.asked()
    assert "priority" not in call.json
    assert "x-vllm-priority" not in call.headers
    call.stream(token(), DONE) if stream else call.answer()
    assert asked.status == 200


def test_with_priority_scheduling_the_dispatch_order_is_sent(
    engine: ScriptedEngine, start_gateway: StartGateway
) -> None:
    """By what was dispatched when: not by who came when, and whatever clients ask for."""
    gateway = start_gateway(engine.url, policy="fair", engine={"max_num_seqs": 1, "scheduling_policy": "priority"})
    gateway.ask(chat(stream=True), headers={"x-user-id": "somebody"})
    call = engine.asked()
    for count, user in enumerate(["ada", "ada", "ben"], start=1):
        gateway.ask(chat(stream=True, priority=-count), headers={"x-user-id": user})
        gateway.wait_queued(count)
    order = []
    for _ in range(4):
        order.append((call.headers.get("x-user-id"), call.json["priority"]))
        call.stream(token(), DONE)
        call = engine.asked() if len(order) < 4 else call
    assert [user for user, _ in order] == ["somebody", "ada", "ben", "ada"]
    assert [number for _, number in order] == [1, 2, 3, 4]
    gateway.wait_ended("completed", 4)
