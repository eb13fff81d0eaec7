"""When each request is due, independent of the clock."""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.schedule import Schedule


def request(at: float = 0.0, **fields: object) -> Request:
    return Request(at, "ada", "chat", 100, 10, **fields)  # type: ignore[arg-type]


def play(plan: Plan, took: Iterable[float]) -> list[tuple[float, float, float]]:
    """(due, sent, ended) of each request, if each takes so long."""
    durations = list(took)
    schedule, times = Schedule(plan), [(-1.0, -1.0, -1.0)] * len(plan.requests)
    agenda: list[tuple[float, int, str]] = [(when, number, "due") for when, number in schedule.start()]
    heapify(agenda)
    while agenda:
        now, number, what = heappop(agenda)
        if what == "due":
            times[number], sent = (now, -1.0, -1.0), schedule.arrive(number)
        else:
            times[number] = (*times[number][:2], now)
            sent, due = schedule.end(number, now)
            for when, other in due:
                heappush(agenda, (when, other, "due"))
        for other in sent:
            times[other] = (times[other][0], now, -1.0)
            heappush(agenda, (now + durations[other], other, "end"))
    return times


def test_an_open_loop_does_not_wait_for_answers() -> None:
    plan = Plan((request(0.5), request(1.0), request(1.5)))
    assert play(plan, [10, 10, 10]) == [(0.5, 0.5, 10.5), (1.0, 1.0, 11.0), (1.5, 1.5, 11.5)]


def test_a_batch_waits_for_the_slowest_of_the_previous_batch() -> None:
    plan = Plan((request(), request(), request(after=(0, 1)), request(after=(0, 1), delay=0.5)))
    assert [due for due, _, _ in play(plan, [1, 3, 1, 1])] == [0.0, 0.0, 3.0, 3.5]


def test_a_turn_is_due_after_its_think_time() -> None:
    plan = Plan((request(), request(after=(0,), continues=0, delay=2.0), request(20.0, after=(1,))))
    assert [due for due, _, _ in play(plan, [5, 1, 1])] == [0.0, 7.0, 20.0]


def test_a_concurrency_cap_holds_requests_in_order() -> None:
    plan = Plan((request(0.0), request(0.1), request(0.2), request(0.3)), max_concurrency=2)
    assert [sent for _, sent, _ in play(plan, [5, 1, 1, 1])] == [0.0, 0.1, 1.1, 2.1]


@given(st.data(), st.integers(1, 30), st.one_of(st.none(), st.integers(1, 4)))
def test_every_request_is_due_once_its_dependencies_are_done(data: st.DataObject, size: int, cap: int | None) -> None:
    requests = []
    for number in range(size):
        after = data.draw(st.frozensets(st.integers(0, number - 1), max_size=3)) if number else frozenset()
        requests.append(
            request(data.draw(st.floats(0, 10)), after=tuple(sorted(after)), delay=data.draw(st.floats(0, 2)))
        )
    times = play(Plan(tuple(requests), cap), data.draw(st.lists(st.floats(0.1, 5), min_size=size, max_size=size)))
    for asked, (due, sent, ended) in zip(requests, times, strict=True):
        ends = [times[other][2] for other in asked.after]
        assert due == max([asked.at, *([max(ends) + asked.delay] if ends else [])])
        assert due <= sent < ended
    assert max(sum(s <= at < e for _, s, e in times) for _, at, _ in times) <= (cap or size)


def test_dependencies_refer_to_earlier_requests_only() -> None:
    with pytest.raises(ValueError, match="request 0 waits"):
        Plan((request(after=(0,)),))


def test_a_conversation_contains_its_earlier_prompts_and_answers() -> None:
    first = request(system="handbook", system_tokens=1000)
    plan = Plan((first, request(after=(0,), continues=0), request(system="handbook", system_tokens=1000)))
    assert plan.segments[1] == (("system handbook", 1000), ("prompt 0", 100), ("answer 0", 10), ("prompt 1", 100))
    assert plan.segments[2] == (("system handbook", 1000), ("prompt 2", 100))
    assert [plan.prompt_tokens(number) for number in range(3)] == [1100, 1210, 1100]


def test_a_subset_of_a_plan_drops_requests_with_missing_dependencies() -> None:
    plan = Plan((request(0.0), request(5.0), request(after=(0,), continues=0), request(after=(1,))))
    part = plan.only(lambda request: request.at < 5)
    assert part.requests == (request(0.0), request(after=(0,), continues=0))
    late = plan.only(lambda request: request.at > 4 or request.after == (1,))
    assert late.requests == (request(5.0), request(after=(0,)))


def test_an_answer_ends_by_itself_or_at_its_limit() -> None:
    assert request().asks_for == 10
    assert request(max_tokens=4).answer_tokens == 4
    assert request(max_tokens=40).answer_tokens == 10
