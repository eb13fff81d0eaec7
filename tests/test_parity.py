"""One core, two clocks: what a run decided once is decided again, to the last bit, without the clock of that run.

The simulator makes a real gateway's decisions again from its decision log alone. Beyond decisions, a fresh core is told
all that a driver told the first one, be it the gateway in front of an engine or the simulator, step by step
(`tests.support.core_journal`): it comes to the same prices, slices, charges and observations, and learns the same.
"""

import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from msgspec import structs

from gateway.lifecycle.lifecycle import Lifecycle
from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.pricing.usage import PromptDetails
from gateway.scheduling.events import Arrived, FirstToken
from gateway.scheduling.limits import Limits
from gateway.slicing.planner import Slicing
from loadtest.cli.load import LoadOptions, read_load
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.replay import Divergence, replay
from loadtest.simulation.simulation import Options, Simulation
from loadtest.spark.engine import Engine
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from policies import find
from policies.base import LANES
from tests.support.client import PendingRequest
from tests.support.core_journal import TOLD, Differs, Journal, Replay, Step, learned, replayed, walk, with_altered
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
    assert kinds.count("arrived") == REQUESTS
    assert kinds.count("finished") + kinds.count("left") == REQUESTS
    assert kinds.count("left") >= 3
    arrivals = [event for event in events if event["event"] == "arrived"]
    assert {event["lane"] for event in arrivals} == {"short", "long"}
    assert len({event["flow"] for event in arrivals}) == len(USERS)
    assert {event["seats"] for event in arrivals} >= {1, 2}
    assert sum(event["job"] not in event["dispatched"] for event in arrivals) > REQUESTS / 2
    assert sum(len(event["dispatched"]) for event in events) == kinds.count("finished")
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
        yield f"{at} dispatches another", replaced(events, at, dispatched=[*event["dispatched"], others[0]])
        if event["dispatched"]:
            yield f"{at} dispatches nobody", replaced(events, at, dispatched=[])
        if len(event["dispatched"]) > 1:
            yield f"{at} dispatches in another order", replaced(events, at, dispatched=event["dispatched"][::-1])
        if "job" in event and event["event"] != "arrived":
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
    # What arrives states its price as `cost`, and what goes on or ends its charge as `cost_s`.
    charged = [
        (at, name)
        for at, event in enumerate(events[: len(events) // 2])
        for name in ("cost", "cost_s")
        if name in event
    ]
    seen = [
        (at, name)
        for at, name in charged
        if diverges(written(head, replaced(events, at, **{name: events[at][name] + 100.0})))
    ]
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
    arrivals = [at for at, event in enumerate(events) if event["event"] == "arrived"]
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


# Prices, slices, charges and observations.

SPARK = load_profile(MODEL).with_flags(enable_prefix_caching=True)
DRIVERS = ("gateway", "simulator")
by_both_drivers = pytest.mark.parametrize("driver", DRIVERS)

# How many times as fast as life the engine is, and therefore how many times less everything costs.
JOURNAL_SPEED = SPEED / 4

# Of the engine's time, for long prompts: so there are pauses between slices.
LONG_SHARE = 0.6


def scaled_profile() -> Profile:
    """What work costs at this Spark, in a gateway's seconds."""
    profile = cost_profile(SPARK)
    return Profile(
        c_s=profile.c_s / JOURNAL_SPEED,
        a_s_per_token=profile.a_s_per_token / JOURNAL_SPEED,
        b_s_per_token2=profile.b_s_per_token2 / JOURNAL_SPEED,
        decode_s_per_token=profile.decode_s_per_token / JOURNAL_SPEED,
        decode_step_s={sequences: seconds / JOURNAL_SPEED for sequences, seconds in profile.decode_step_s.items()},
    )


def conversation(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 6} | fields


def document(number: int, size: int = 80_000) -> str:
    """No two documents have a beginning in common."""
    return f"{number} " * (size // 2)


def office() -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Path, body, and after how many events of the answer the client leaves, if it does.

    There are documents that are sliced, questions beside them, answers in one piece, and requests with several prompts
    or answers.
    """
    for number in range(3):
        yield CHAT, conversation(document(number)), None
        yield CHAT, conversation(f"question {number}"), None
        yield CHAT, conversation("x" * (1 + 2000 * number), stream=False), None
        yield TEXT, {"model": MODEL, "prompt": list(range(number, 15_000 + number)), "max_tokens": 4}, None
        yield CHAT, conversation("a long answer", max_tokens=150), None
        yield CHAT, conversation(f"nearly long {number} " * 400, n=2), None
    yield TEXT, {"model": MODEL, "prompt": ["x" * 500, "y" * 9000], "max_tokens": 4}, None
    yield CHAT, conversation("an answer that nobody reads to its end", max_tokens=3000), 3
    yield CHAT, conversation(document(7)), 0


# Alone at the gateway, so that their prefill is observed for certain; and one that goes on where an earlier one ended.
QUIET = [conversation(str(number) * 2500 * (number + 1)) for number in range(4)]
FOLLOW_UP = conversation(document(0), "a summary", "and now?")


def serve_the_office(gateway: RunningGateway, journal: Journal) -> None:
    """The office's requests come each at its own instant, while those before it are served."""
    for body in QUIET:
        gateway.ask(body).read()
    readers, leavers = [], list[tuple[PendingRequest, int]]()
    for number, (path, body, leaves_after) in enumerate(office()):
        asked = gateway.ask(body, path, {"x-openwebui-user-id": USERS[number % len(USERS)]})
        if leaves_after is None:
            readers.append(threading.Thread(target=asked.read))
            readers[-1].start()
        else:
            leavers.append((asked, leaves_after))
        sleep(0.02)
    arrived = len(QUIET) + len(readers) + len(leavers)
    wait_until(lambda: len(journal.lives) == arrived, what="all are priced")
    for asked, leaves_after in leavers:
        for _ in range(leaves_after):
            asked.event()
        asked.leave()
    for reader in readers:
        reader.join()
    gateway.ask(FOLLOW_UP).read()
    wait_until(lambda: gateway.metric("fairlane_requests_total") == arrived + 1)


@pytest.fixture(scope="module")
def journals() -> dict[str, Journal]:
    return {}


@pytest.fixture
def journal_of(
    start_gateway: StartGateway, journals: dict[str, Journal], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Journal]:
    """All that a driver told the core in a run; one run of each driver is enough for all tests."""

    def gateway(journal: Journal) -> None:
        monkeypatch.setattr("gateway.app.Core", journal.core_class)
        monkeypatch.setattr("gateway.proxy.reception.Lifecycle", journal.lifecycle_class)
        slicing = {"max_stall": 0.5 / JOURNAL_SPEED, "long_share": LONG_SHARE}
        settings = {"tokenizer": "engine", "engine": {"max_num_seqs": 6}, **slicing}
        with serve(create_app(SPARK, ServerOptions(speed=JOURNAL_SPEED, seed=1))) as spark:
            running = start_gateway(spark, scaled_profile(), **settings)
            wait_until(lambda: running.metric("fairlane_engine_metrics_up") == 1)
            serve_the_office(running, journal)
            running.check_budgets()
            running.stop()

    def simulator(journal: Journal) -> None:
        monkeypatch.setattr("loadtest.simulation.simulation.Lifecycle", journal.lifecycle_class)
        limits, model = Limits(max_num_seqs=6), CostModel(cost_profile(SPARK))
        core = journal.core_class.create(model, find("fair")(), limits, Slicing(long_share=LONG_SHARE))
        load = read_load(LoadOptions("office-mix", seed=1, requests=90))
        Simulation(Engine(SPARK, seed=1, noise=0.1), core, Options(queue_timeout=20.0)).run(load.plan)

    def journal_of(driver: str) -> Journal:
        if driver not in journals:
            journals[driver] = Journal()
            {"gateway": gateway, "simulator": simulator}[driver](journals[driver])
        return journals[driver]

    return journal_of


JournalOf = Callable[[str], Journal]


def account(lives: Iterable[Lifecycle]) -> list[Event]:
    """What each request was expected to be, and what it came to."""
    return [
        {
            "price": life.request.price,
            "job": (life.job.lane, life.job.tokens, life.job.cost, life.job.kv_tokens),
            "slices": [(each.start, each.end, each.cost_s, each.cached) for each in life.slices],
            "charge": life.settlement.charge_s,
            "counts": life.settlement.counts,
            "prefill": life.settlement.prefill_s,
            "observation": life.settlement.observation,
        }
        for life in lives
    ]


@by_both_drivers
def test_a_fresh_core_repeats_prices_slices_charges_and_observations(journal_of: JournalOf, driver: str) -> None:
    """It is told what the first core was told, in the same order and with the same instants. The replay compares each
    answer on the way; in the end, the fresh core has learned the same."""
    journal = journal_of(driver)
    replay = replayed(journal)
    assert account(replay.lives) == account(journal.lives)
    assert learned(replay.core) == learned(journal.core)
    assert not any(replay.core.admission.held().values())


@by_both_drivers
def test_two_replays_come_to_the_same(journal_of: JournalOf, driver: str) -> None:
    journal = journal_of(driver)
    assert learned(replayed(journal).core) == learned(replayed(journal).core)


@by_both_drivers
def test_the_journal_has_all_that_is_to_be_repeated(journal_of: JournalOf, driver: str) -> None:
    """Slices, what they found and the pauses between them; prices by count and with a cached prefix; observations,
    learning, and waiting."""
    journal = journal_of(driver)
    accounts, steps = account(journal.lives), list(walk(journal.steps))
    assert {each["job"][0] for each in accounts} == set(LANES)
    assert sum(len(each["slices"]) >= 2 for each in accounts) >= 2
    assert any(cached for each in accounts for *_, cached in each["slices"])
    assert any(step.name == "slice_answered" and step.result.pause_s > 0 for step in steps)
    assert sum(each["price"].counted for each in accounts) >= 4
    assert any(each["price"].cached for each in accounts)
    assert sum(each["observation"] is not None for each in accounts) >= 3
    assert sum(each["counts"] is not None for each in accounts) >= 20
    assert len({each["charge"] for each in accounts}) >= 12
    assert sum(step.name == "learn" and step.result.curve for step in steps) >= 3
    arrivals = [step for step in steps if step.name == "apply" and isinstance(step.args[0], Arrived)]
    assert sum(step.args[0].job not in step.result for step in arrivals) >= 5
    assert learned(journal.core)["profile"] != learned(journal.fresh())["profile"]
    if driver == "gateway":
        assert any(each["counts"] is None and each["charge"] > 0 for each in accounts)  # its client left
        assert {life.timing_source for life in journal.lives} >= {"observed", "predicted"}


@by_both_drivers
def test_both_drivers_count_a_prompt_where_something_depends_on_it(journal_of: JournalOf, driver: str) -> None:
    """They price it, ask whether to count it, and then price it by its count."""
    steps = [step for step in journal_of(driver).steps if step.target in ("core", "cost_model")]
    needed = [step.result for step in steps if step.name == "needs_count"]
    counted = [step.args[1] for step in steps if step.name == "learn_tokens"]
    priced_by_count = [step.args[1] for step in steps if step.name == "price" and step.args[1:]]
    assert 4 <= needed.count(True) < len(needed)
    assert len(counted) == needed.count(True)
    assert sorted(priced_by_count) == sorted(counted)


# What a driver tells of a streamed request that comes to its end, in order.
STREAMED = re.compile(
    "born arrived dispatched (scheduled )?"
    "(slice_pays (slice_answered )?requeue dispatched (scheduled )?)*"
    "(chunk )+first_token (chunk )*settle end learn "
)


@by_both_drivers
def test_both_drivers_tell_a_life_in_the_same_order(journal_of: JournalOf, driver: str) -> None:
    journal = journal_of(driver)
    told: dict[int, str] = dict.fromkeys(range(len(journal.lives)), "")
    for step in walk(journal.steps):
        if isinstance(step.target, int) and step.name not in TOLD:
            told[step.target] += f"{step.name} "
    streamed = [number for number, life in enumerate(journal.lives) if life.request.streamed]
    answered = [number for number in streamed if "learn" in told[number]]
    assert len(answered) >= 10
    assert sum("requeue" in told[number] for number in answered) >= 2
    for number in answered:
        assert STREAMED.fullmatch(told[number]), told[number]


# One fact that is told differently.


def later(step: Step) -> Step:
    """Told with a later time, which is its last argument."""
    *others, now = step.args
    return replace(step, args=(*others, now + 0.01))


def with_usage(step: Step, **changes: Any) -> Step:
    """The engine's counts, which its first argument has, are others."""
    answer, *others = step.args
    return replace(step, args=(answer._replace(usage=structs.replace(answer.usage, **changes)), *others))


def is_observed_first_token(step: Step) -> bool:
    return step.name == "observe" and isinstance(step.args[0], FirstToken) and step.args[0].observed


def is_settled(step: Step) -> bool:
    return step.name == "settle" and step.result.counts is not None


def is_priced_by_count(step: Step) -> bool:
    return step.name == "price" and len(step.args) > 1


# Which step is altered, the first of those that are meant, and how.
ALTERATIONS: dict[str, tuple[Callable[[Step], bool], Callable[[Step], Step]]] = {
    "the engine's speed saw a first token later": (is_observed_first_token, later),
    "a slice was done later": (lambda step: step.name == "slice_answered", later),
    "a slice found nothing in the cache": (
        lambda step: step.name == "slice_answered" and step.result.reuse is not None,
        lambda step: with_usage(step, prompt_tokens_details=PromptDetails(0)),
    ),
    "a prompt has one token more": (
        is_priced_by_count,
        lambda step: replace(step, args=(step.args[0], step.args[1] + 1)),
    ),
    "the engine counts one token more in an answer": (
        is_settled,
        lambda step: with_usage(step, completion_tokens=step.args[0].usage.completion_tokens + 1),
    ),
    "an answer has one chunk more": (
        lambda step: step.name == "chunk" and bool(step.applied),
        lambda step: replace(step, args=(step.args[0] + 1,)),
    ),
    "blocks of the engine's cache are longer": (
        lambda step: step.name == "plan" and step.state is not None,
        lambda step: replace(step, engine=(step.engine[0], 5000, *step.engine[2:])),
    ),
    "a prompt is not sliced": (
        lambda step: step.name == "born" and step.args[1].plan is not None,
        lambda step: replace(step, args=(step.args[0], replace(step.args[1], plan=None))),
    ),
    "a job was dispatched later": (lambda step: step.name == "dispatched", later),
}


def comes_to_the_same(journal: Journal, steps: list[Step]) -> bool:
    try:
        return learned(Replay(journal).run(steps).core) == learned(journal.core)
    except Differs:
        return False


@by_both_drivers
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_one_altered_fact_is_detected(journal_of: JournalOf, driver: str, alteration: str) -> None:
    journal = journal_of(driver)
    assert not comes_to_the_same(journal, with_altered(journal.steps, *ALTERATIONS[alteration]))


@by_both_drivers
def test_a_sample_that_is_left_out_changes_later_prices(journal_of: JournalOf, driver: str) -> None:
    journal = journal_of(driver)
    sample = next(step for step in journal.steps if step.name == "learn" and step.result.curve)
    assert not comes_to_the_same(journal, [step for step in journal.steps if step is not sample])
