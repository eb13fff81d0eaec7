"""The office mix: what its people send and when, and how much of a Spark that takes."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest

from gateway.storage.profile_file import load as load_cost_profile
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.office_mix import READING, office_mix
from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.workload import Options

COST = load_cost_profile("gemma-4-26b-bf16")
KINDS = {"question", "chat", "rag", "agent", "document", "background"}
Numbered = list[tuple[int, Request]]


def plan_of(seed: int = 1, users: int | None = None, duration: float | None = None) -> Plan:
    return office_mix(Options(seed, users=users, duration=duration))


def of_kind(plan: Plan, kind: str) -> Numbered:
    return [(number, request) for number, request in enumerate(plan.requests) if request.kind == kind]


def sessions(plan: Plan, kind: str) -> list[Numbered]:
    found: defaultdict[str, Numbered] = defaultdict(list)
    for number, request in of_kind(plan, kind):
        found[request.session].append((number, request))
    return list(found.values())


def offered(plan: Plan, seconds: float) -> float:
    """The share of its time that the machine would need for all of it."""
    prefill = sum(COST.prefill(plan.prompt_tokens(number)) for number in range(len(plan.requests)))
    decode = sum(COST.decode(request.answer_tokens) for request in plan.requests)
    return (prefill + decode) / seconds


@pytest.mark.parametrize("seed", range(1, 13))
def test_ten_people_do_not_saturate_a_spark(seed: int) -> None:
    assert 0.5 <= offered(plan_of(seed), 300) <= 0.7


@pytest.mark.parametrize("seed", range(1, 5))
def test_fifty_people_overload_a_spark(seed: int) -> None:
    assert 2.5 <= offered(plan_of(seed, users=50), 300) <= 3.5


@pytest.mark.parametrize("users", [1, 2, 10, 50, 200])
def test_the_requested_number_of_people_take_part(users: int) -> None:
    assert len({request.user for request in plan_of(users=users).requests}) == users


@pytest.mark.parametrize("users", [0, -1, 201])
def test_no_people_and_too_many_are_refused(users: int) -> None:
    with pytest.raises(ValueError, match="1 to 200 people"):
        plan_of(users=users)


@pytest.mark.parametrize("duration", [0.0, -5.0])
def test_no_time_is_refused(duration: float) -> None:
    with pytest.raises(ValueError, match="duration above 0"):
        plan_of(duration=duration)


@pytest.mark.parametrize("duration", [5.0, 60.0, 600.0])
def test_no_request_starts_after_the_end(duration: float) -> None:
    requests = plan_of(duration=duration).requests
    assert 0.5 * duration < max(request.at for request in requests) < duration
    assert len({request.user for request in requests}) == 10


def test_requests_are_ordered_by_time() -> None:
    times = [request.at for request in plan_of(users=20).requests]
    assert times == sorted(times)


def test_people_arrive_within_the_first_seconds() -> None:
    first: dict[str, float] = {}
    for request in plan_of(users=50).requests:
        first.setdefault(request.user, request.at)
    assert max(first.values()) <= 20


def test_a_seed_determines_the_plan() -> None:
    assert plan_of(3) == plan_of(3)
    assert plan_of(3) != plan_of(4)


def test_one_more_person_does_not_change_the_others() -> None:
    def days(plan: Plan) -> dict[str, list[Request]]:
        found = defaultdict(list)
        for request in plan.requests:
            found[request.user].append(replace(request, after=(), continues=None))
        return found

    ten, eleven = days(plan_of(users=10)), days(plan_of(users=11))
    assert {name: eleven[name] for name in ten} == ten


def test_every_ten_people_have_the_same_mix_of_kinds() -> None:
    plan = plan_of(users=20)
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for request in plan.requests:
        kinds[request.user].add(request.kind)
    roles = Counter("+".join(sorted(each)) for each in kinds.values())
    assert roles == {"question": 6, "background+chat": 6, "rag": 4, "document": 2, "agent": 2}
    assert {request.kind for request in plan_of().requests} == KINDS


def test_people_read_and_think_before_they_write_again() -> None:
    """A request of a person waits for the one before, and is no earlier than its reading allows."""
    plan = plan_of(users=50)
    for kind, pause in (("question", 6), ("rag", 10), ("document", 30), ("chat", 6)):
        last: dict[str, int] = {}
        for number, request in of_kind(plan, kind):
            if (before := last.get(request.user)) is not None:
                read = plan.requests[before].answer_tokens / READING
                assert request.after == (before,)
                assert request.delay >= pause
                assert request.at == pytest.approx(plan.requests[before].at + read + request.delay)
            else:
                assert (request.after, request.delay) == ((), 0)
            last[request.user] = number


def test_sizes_match_their_description() -> None:
    plan = plan_of(users=50)
    sizes = {
        kind: [f([request.prompt_tokens for _, request in of_kind(plan, kind)]) for f in (min, max)]
        for kind in ("question", "rag", "document")
    }
    assert 100 <= sizes["question"][0] < sizes["question"][1] <= 1200
    assert 3000 <= sizes["rag"][0] < sizes["rag"][1] <= 8000
    assert sizes["document"] == [25_000, 25_000]


def test_the_page_tool_uses_the_same_instructions_for_everyone() -> None:
    plan = plan_of(users=50)
    first = {kind: {plan.segments[number][0] for number, _ in of_kind(plan, kind)} for kind in ("rag", "question")}
    assert first == {"rag": {("system search", 600)}, "question": {("system chat", 350)}}
    assert {plan.segments[chat[0][0]][0] for chat in sessions(plan, "chat")} == {("system chat", 350)}


def test_a_chat_grows_by_its_own_turns() -> None:
    chats = sessions(plan := plan_of(users=50), "chat")
    assert max(map(len, chats)) >= 5
    for chat in chats:
        assert chat[0][1].continues is None
        for (before, earlier), (number, turn) in pairwise(chat):
            assert turn.continues == before
            grown = plan.prompt_tokens(before) + earlier.answer_tokens + turn.prompt_tokens
            assert plan.prompt_tokens(number) == grown


def test_a_new_chat_requests_title_tags_and_follow_ups() -> None:
    """After its first answer, one after the other, by messages that carry the chat and share no text with it."""
    plan = plan_of(users=50)
    tasks = {session[0][1].session: session for session in sessions(plan, "background")}
    chats = sessions(plan, "chat")
    assert len(tasks) == len(chats)
    for chat in chats:
        before, first = chat[0]
        background = tasks[first.session]
        assert len(background) == 3
        for number, task in background:
            assert (task.after, task.delay, task.at) == ((before,), 0, first.at)
            assert task.user == first.user
            assert 200 <= task.prompt_tokens - first.prompt_tokens - first.answer_tokens <= 300
            assert plan.segments[number] == ((f"prompt {number}", task.prompt_tokens),)
            assert 20 <= task.answer_tokens <= 60
            before = number


def test_an_agent_plans_fans_out_joins_and_goes_on() -> None:
    plan = plan_of(users=50)
    tasks = sessions(plan, "agent")
    rounds = Counter[int]()
    for task in tasks:
        (step, first), *rest = task
        assert first.system == "agent"
        done = 0
        while rest:
            calls = [number for number, request in rest if request.after == (step,) and request.continues is None]
            assert 4 <= len(calls) <= 8
            assert calls == [number for number, _ in rest[: len(calls)]]
            (join, request), *rest = rest[len(calls) :]
            assert request.after == tuple(calls)
            assert request.continues == step
            assert request.prompt_tokens == sum(plan.requests[call].answer_tokens for call in calls)
            assert {plan.requests[call].at for call in [*calls, join]} == {first.at}
            step, done = join, done + 1
        rounds[done] += 1
    assert set(rounds) == {2, 3}


def test_the_next_task_waits_for_the_report() -> None:
    plan = plan_of(users=50)
    by_user: defaultdict[str, list[Numbered]] = defaultdict(list)
    for task in sessions(plan, "agent"):
        by_user[task[0][1].user].append(task)
    assert any(len(tasks) > 1 for tasks in by_user.values())
    for tasks in by_user.values():
        for task, after in pairwise(tasks):
            assert after[0][1].after == (task[-1][0],)
            assert 10 <= after[0][1].delay <= 25
            # Not before somebody could have watched it all: three times two hundred tokens and more.
            assert after[0][1].at - task[0][1].at > 600 / READING


def test_a_spark_keeps_up_with_ten_people_and_not_with_fifty() -> None:
    def seconds(users: int) -> float:
        records = Simulation(Engine(load_profile("gemma-4-26b-bf16"))).run(plan_of(users=users))
        return max(record.tokens[-1] for record in records)

    assert seconds(10) < 360
    assert seconds(50) > 600
