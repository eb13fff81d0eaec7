"""The simulator, replaying a real gateway's decision log, makes the same decisions."""

import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.simulation.replay import Divergence, replay
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from tests.support.client import PendingRequest
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.servers import serve
from tests.support.waiting import wait_until
from tests.support.wire import CHAT, TEXT

Event = dict[str, Any]

MODEL = "gemma-4-26b-bf16"
REQUESTS = 48
USERS = ("ada", "ben", "cem", "dana", "eva")
SPEED = 40.0


def load(seed: int) -> Iterator[tuple[str, dict[str, Any], dict[str, str], bool]]:
    """Path, body, headers, and whether the client leaves while it is queued: of all kinds, in a mixed order."""
    draw = random.Random(seed)
    for number in range(REQUESTS):
        user = draw.choice(USERS)
        size = draw.choice((20, 200, 2000, 12_000, 20_000))
        fields: dict[str, Any] = {"model": MODEL, "max_tokens": draw.randint(1, 20), "stream": draw.random() < 0.6}
        headers = {"x-request-id": str(number)}
        if draw.random() < 0.7:
            headers["x-openwebui-user-id"] = user
        else:
            fields["user"] = user
        if draw.random() < 0.3:
            prompt: Any = draw.choice(([1] * (size // 4), "x" * size, ["x" * size, "y" * 20]))
            yield TEXT, fields | {"prompt": prompt}, headers, number % 6 == 5
        else:
            messages = [{"role": "user", "content": "x" * size}]
            yield CHAT, fields | {"messages": messages, "n": draw.choice((1, 1, 1, 2))}, headers, number % 6 == 5


def served(gateway: RunningGateway, seed: int) -> None:
    """The load, all at once but for who leaves, each until its end."""
    readers = []
    leavers: list[PendingRequest] = []
    for path, body, headers, leaves in load(seed):
        asked = gateway.ask(body, path, headers)
        if leaves:
            leavers.append(asked)
        else:
            readers.append(threading.Thread(target=asked.read))
            readers[-1].start()
    for asked in leavers:
        asked.leave()
    for reader in readers:
        reader.join()
    wait_until(lambda: gateway.metric("fairlane_requests_total") == REQUESTS)


@pytest.fixture(scope="module")
def logs() -> dict[str, list[str]]:
    return {}


@pytest.fixture
def decisions(start_gateway: StartGateway, logs: dict[str, list[str]], tmp_path: Path) -> Callable[[str], list[str]]:
    """The decision log of a real run under a policy; one run is enough for all tests."""

    def decisions(policy: str) -> list[str]:
        if policy not in logs:
            file = tmp_path / "decisions.jsonl"
            with serve(create_app(load_profile(MODEL), ServerOptions(speed=SPEED, seed=1))) as spark:
                gateway = start_gateway(spark, policy=policy, decision_log=file, engine={"max_num_seqs": 4})
                served(gateway, seed=1)
                gateway.stop()
            logs[policy] = file.read_text().splitlines()
        return logs[policy]

    return decisions


Decisions = Callable[[str], list[str]]


def events_of(lines: list[str]) -> list[Event]:
    return [json.loads(line) for line in lines[1:]]


def written(head: str, events: list[Event]) -> list[str]:
    return [head, *map(json.dumps, events)]


@pytest.mark.parametrize("policy", ["fair", "fifo"])
def test_the_simulator_repeats_the_gateways_decisions(decisions: Decisions, policy: str) -> None:
    lines = decisions(policy)
    events = events_of(lines)
    assert json.loads(lines[0])["policy"] == policy
    assert replay(lines) == len(events)

    # And they were decisions: jobs of both lanes, some that waited, some that left the queue.
    kinds = [event["event"] for event in events]
    assert kinds.count("arrive") == REQUESTS
    assert kinds.count("finish") + kinds.count("leave") == REQUESTS
    assert kinds.count("leave") >= 3
    arrivals = [event for event in events if event["event"] == "arrive"]
    assert {event["lane"] for event in arrivals} == {"short", "long"}
    assert len({event["flow"] for event in arrivals}) == len(USERS)
    assert {event["seats"] for event in arrivals} >= {1, 2}
    assert sum(event["job"] not in event["dispatched"] for event in arrivals) > REQUESTS / 2
    assert sum(len(event["dispatched"]) for event in events) == kinds.count("finish")
    # As words: a hash may well have "ada" in it.
    for user in USERS:
        assert not re.search(rf"\b{user}\b", "".join(lines))


def test_another_policy_is_detected(decisions: Decisions) -> None:
    with pytest.raises(Divergence):
        replay(decisions("fair"), policy="fifo")
    with pytest.raises(Divergence):
        replay(decisions("fifo"), policy="fair")


def test_other_limits_are_detected(decisions: Decisions) -> None:
    head, *events = decisions("fair")
    changed = json.loads(head)
    changed["limits"]["max_num_seqs"] += 1
    with pytest.raises(Divergence):
        replay([json.dumps(changed), *events])


# One event altered, wherever it shows.


def alterations(events: list[Event]) -> Iterator[tuple[str, list[Event]]]:
    """Every way to alter one event that ought to show, each time on a copy."""
    for at, event in enumerate(events):
        yield f"{at} dropped", events[:at] + events[at + 1 :]
        yield f"{at} twice", [*events[:at], event, event, *events[at + 1 :]]
        others = [each for each in range(REQUESTS) if each not in event["dispatched"]]
        yield f"{at} lets go another", replaced(events, at, dispatched=[*event["dispatched"], others[0]])
        if event["dispatched"]:
            yield f"{at} lets nobody go", replaced(events, at, dispatched=[])
        if len(event["dispatched"]) > 1:
            yield f"{at} lets go in another order", replaced(events, at, dispatched=event["dispatched"][::-1])
        if event["event"] != "arrive":
            yield f"{at} of another job", replaced(events, at, job=(event["job"] + 1) % REQUESTS)


def replaced(events: list[Event], at: int, **changes: Any) -> list[Event]:
    return [*events[:at], events[at] | changes, *events[at + 1 :]]


def diverges(lines: list[str]) -> bool:
    try:
        replay(lines)
    except Divergence:
        return True
    return False


def test_any_altered_event_is_detected(decisions: Decisions) -> None:
    head, *_ = lines = decisions("fair")
    events = events_of(lines)
    unseen = []
    tried = 0
    for what, altered in alterations(events):
        if what == f"{len(events) - 1} dropped":
            continue  # a shorter run
        tried += 1
        if not diverges(written(head, altered)):
            unseen.append(what)
    assert tried > 4 * REQUESTS
    assert unseen == []


def test_another_cost_is_detected(decisions: Decisions) -> None:
    """What a job was charged decides who is next: of the runs in which one user's first charge grows, many differ.
    Not most: a user's next job is that of the session which was charged least."""
    head, *_ = lines = decisions("fair")
    events = events_of(lines)
    charged = [at for at, event in enumerate(events[: len(events) // 2]) if "cost" in event]
    seen = [at for at in charged if diverges(written(head, replaced(events, at, cost=events[at]["cost"] + 100.0)))]
    assert len(seen) > len(charged) / 3


def test_another_order_is_detected(decisions: Decisions) -> None:
    """Two events in a row change places: not every pair matters, but many do."""
    head, *_ = lines = decisions("fair")
    events = events_of(lines)
    pairs = [at for at in range(len(events) - 1) if events[at]["dispatched"] or events[at + 1]["dispatched"]]
    seen = [
        at for at in pairs if diverges(written(head, [*events[:at], events[at + 1], events[at], *events[at + 2 :]]))
    ]
    assert len(seen) > len(pairs) / 2


def test_another_user_is_detected(decisions: Decisions) -> None:
    head, *_ = lines = decisions("fair")
    events = events_of(lines)
    arrivals = [at for at, event in enumerate(events) if event["event"] == "arrive"]
    seen = [at for at in arrivals if diverges(written(head, replaced(events, at, flow="somebody else")))]
    assert len(seen) > len(arrivals) / 2


def test_the_log_is_closed_when_the_gateway_stops(start_gateway: StartGateway, tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    gateway = start_gateway("http://127.0.0.1:9", decision_log=file)
    opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    assert str(file) in opened
    gateway.stop()
    opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    assert str(file) not in opened


def test_an_invalid_log_is_reported() -> None:
    for lines in ([], [""], ["{}"], ['{"policy": "fair"}']):
        with pytest.raises(ValueError, match="no decision log"):
            replay(lines)
