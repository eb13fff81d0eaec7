"""The fair policy: turns and ties by hand, sessions, weights, head starts, and bounded debts.

Shares in virtual time are in test_scenarios.py, the bound in test_fairness.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import AGING, Job, Lane
from policies.fair import Fair
from policies.fair_queue import MAX_IDLE

# FairQueue.


def job(
    flow: str,
    cost: float = 1.0,
    lane: Lane = "short",
    arrival: float = 0.0,
    session: str = "",
    weight: float = 1.0,
    head_start: float = 0.0,
) -> Job:
    return Job(flow, lane, 100, cost, arrival, session=session, weight=weight, head_start=head_start)


def pushed(fair: Fair, *jobs: Job) -> None:
    for each in jobs:
        fair.push(each)


def popped(fair: Fair, n: int, lane: Lane = "short") -> str:
    return "".join(fair.pop(lane).flow for _ in range(n))


def test_a_newcomer_is_served_before_a_heavy_users_next_job() -> None:
    fair = Fair()
    pushed(fair, *(job("a", 7.5, "long", arrival) for arrival in range(6)))
    assert popped(fair, 1, "long") == "a"
    pushed(fair, job("b", 7.5, "long", arrival=5))
    assert popped(fair, 6, "long") == "baaaaa"


def test_equal_flows_take_turns() -> None:
    fair = Fair()
    pushed(fair, *(job(flow) for flow in "aaabbbccc"))
    assert popped(fair, 9) == "abcabcabc"


def test_among_equal_flows_the_least_recently_served_goes_first() -> None:
    fair = Fair()
    pushed(fair, job("a"), job("b"), job("a"))
    assert popped(fair, 2) == "ab"
    pushed(fair, job("b"))
    assert popped(fair, 2) == "ab"


def test_a_flow_that_returns_goes_before_one_that_was_served_meanwhile() -> None:
    fair = Fair()
    pushed(fair, job("b"), *(job("a") for _ in range(4)))
    assert popped(fair, 3) == "baa"
    pushed(fair, job("b"))
    assert popped(fair, 3) == "baa"


def test_a_newcomer_starts_at_the_smallest_tag_of_the_waiting_flows() -> None:
    fair = Fair()
    pushed(fair, job("a", 10.0), job("a", 10.0))
    assert popped(fair, 1) == "a"
    pushed(fair, *(job("b") for _ in range(3)))
    assert popped(fair, 4) == "babb"


def test_a_newcomer_to_an_empty_queue_starts_at_the_last_dispatched_tag() -> None:
    fair = Fair()
    pushed(fair, job("a", 10.0), job("a", 10.0))
    assert popped(fair, 2) == "aa"
    pushed(fair, *(job("b", 5.0) for _ in range(4)), job("a"))
    assert popped(fair, 5) == "bbabb"


def test_debt_from_the_long_lane_counts_in_the_short_lane() -> None:
    fair = Fair()
    pushed(fair, job("b", 3.0), job("a", 7.5, "long"))
    assert popped(fair, 1, "long") == "a"
    pushed(fair, job("a"), *(job("b", 3.0) for _ in range(3)))
    assert popped(fair, 5) == "bbbab"


def test_leaving_the_queue_costs_nothing() -> None:
    fair = Fair()
    gone = job("a", 100.0)
    pushed(fair, gone, job("a"), job("b"))
    fair.remove(gone)
    assert popped(fair, 2) == "ab"


def test_the_unused_cost_of_a_cancelled_job_is_refunded() -> None:
    fair = Fair()
    cancelled = job("a", 10.0)
    pushed(fair, cancelled, *(job("b") for _ in range(4)))
    assert fair.pop("short") is cancelled
    pushed(fair, job("a"), job("a"))
    fair.settle(cancelled, 0.0)
    assert popped(fair, 4) == "baba"


def test_a_cost_above_the_prediction_becomes_debt() -> None:
    fair = Fair()
    dear = job("a", 1.0)
    pushed(fair, dear, job("a"), *(job("b") for _ in range(5)))
    assert fair.pop("short") is dear
    fair.settle(dear, 4.0)
    assert popped(fair, 6) == "bbbbab"


def test_progress_is_charged_once() -> None:
    fair = Fair()
    running = job("a", 1.0)
    pushed(fair, running, job("a"), *(job("b") for _ in range(6)))
    assert fair.pop("short") is running
    for cost in (1.5, 2.0, 3.0):
        fair.charge(running, cost)
    assert popped(fair, 4) == "bbba"
    fair.settle(running, 3.0)
    assert popped(fair, 3) == "bbb"


def test_a_newcomer_starts_at_the_smallest_finish_tag_not_the_smallest_start() -> None:
    """a has a head start and a large tag; b, who waits as well, has a small one."""
    fair = Fair()
    pushed(fair, *(job("a", 10.0, head_start=100.0) for _ in range(4)), job("b"), job("b"))
    assert popped(fair, 3) == "aaa"
    pushed(fair, job("n"), job("n"))
    assert popped(fair, 5) == "abnbn"


# Weights and head starts.


def test_twice_the_weight_gives_twice_the_share() -> None:
    fair = Fair()
    pushed(fair, *(job("a", weight=2.0) for _ in range(6)), *(job("b") for _ in range(3)))
    assert sorted(popped(fair, 6)) == list("aaaabb")


def test_a_refund_uses_the_weight_of_the_charge() -> None:
    fair = Fair()
    cancelled = job("a", 8.0, weight=4.0)
    pushed(fair, cancelled, *(job("b") for _ in range(2)))
    assert fair.pop("short") is cancelled
    pushed(fair, job("a", weight=1.0), job("a", weight=1.0))
    fair.settle(cancelled, 0.0)
    assert popped(fair, 4) == "baba"


def test_a_head_start_counts_as_seconds_less_charged() -> None:
    fair = Fair()
    pushed(fair, *(job("a") for _ in range(5)), *(job("b", head_start=2.5) for _ in range(5)))
    assert popped(fair, 10) == "bbbababaaa"


# Sessions.


def test_sessions_share_their_users_share() -> None:
    fair = Fair()
    swarm = [job("a", session=f"agent {i}") for i in range(8)]
    pushed(fair, *swarm, *(job("b") for _ in range(4)))
    assert popped(fair, 8) == "abababab"


def test_agent_sessions_do_not_delay_their_users_chat() -> None:
    fair = Fair()
    agent = [job("a", session="agent") for _ in range(8)]
    chat = [job("a", session="chat", arrival=1.0) for _ in range(2)]
    pushed(fair, *agent)
    assert fair.pop("short") is agent[0]
    pushed(fair, *chat)
    assert [fair.pop("short") for _ in range(3)] == [chat[0], agent[1], chat[1]]


def test_an_absent_session_gains_no_credit() -> None:
    fair = Fair()
    pushed(fair, *(job("a", session="agent") for _ in range(9)))
    assert popped(fair, 5) == "aaaaa"
    pushed(fair, *(job("a", session="chat", arrival=1.0) for _ in range(3)))
    assert "".join(fair.pop("short").session[0] for _ in range(6)) == "cacaca"


def test_debt_counts_against_the_jobs_own_session() -> None:
    fair = Fair()
    dear = job("a", session="agent")
    pushed(fair, dear, job("a", session="agent"), *(job("a", session="chat") for _ in range(4)))
    assert fair.pop("short") is dear
    fair.settle(dear, 3.0)
    assert "".join(fair.pop("short").session[0] for _ in range(5)) == "cccac"


# Inside a session.


def test_within_a_flow_short_jobs_go_before_long_ones() -> None:
    fair = Fair()
    swarm, chat = [job("a", 5.0) for _ in range(3)], job("a", 0.3, arrival=1.0)
    pushed(fair, *swarm, chat)
    assert [fair.pop("short") for _ in range(4)] == [chat, *swarm]


@pytest.mark.parametrize(("later", "passes"), [(AGING * 10 - AGING - 0.1, True), (AGING * 10 - AGING + 0.1, False)])
def test_within_a_flow_late_short_jobs_do_not_pass(later: float, passes: bool) -> None:
    fair = Fair()
    old, young = job("a", 10.0), job("a", 1.0, arrival=later)
    pushed(fair, old, young)
    assert fair.pop("short") is (young if passes else old)


def test_a_head_start_counts_inside_a_session_too() -> None:
    fair = Fair()
    plain, urgent = job("a"), job("a", 2.0, arrival=1.0, head_start=10.0)
    pushed(fair, plain, urgent)
    assert fair.pop("short") is urgent


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 100)), min_size=2, max_size=20))
def test_no_job_is_passed_by_arrivals_after_the_aging_bound(shapes: list[tuple[float, float]]) -> None:
    fair = Fair()
    jobs = [job("a", cost, arrival=arrival) for cost, arrival in shapes]
    pushed(fair, *jobs)
    order = [fair.pop("short") for _ in jobs]
    for place, passed in enumerate(order):
        for first in order[:place]:
            assert first.arrival <= passed.arrival + AGING * passed.cost + 1e-9


# Memory.


def visit(fair: Fair, flow: str, cost: float = 1.0) -> None:
    """Come, be served, go."""
    visitor = job(flow, cost)
    fair.push(visitor)
    assert fair.pop("short") is visitor
    fair.settle(visitor, cost)


def test_the_number_of_remembered_flows_is_bounded() -> None:
    fair = Fair()
    for i in range(5 * MAX_IDLE):
        visit(fair, f"visitor {i}")
        assert len(fair.users.accounts) <= 2 * MAX_IDLE


def test_the_number_of_remembered_sessions_is_bounded() -> None:
    fair = Fair()
    running = job("a", lane="long")
    pushed(fair, running)
    assert fair.pop("long") is running
    user = fair.users.accounts["a"]
    for i in range(5 * MAX_IDLE):
        visitor = job("a", session=f"chat {i}")
        fair.push(visitor)
        fair.settle(fair.pop("short"), 1.0)
        assert len(user.sessions.accounts) <= 2 * (MAX_IDLE + 1)  # one of them is busy
    fair.settle(running, 1.0)
    assert not user.sessions.accounts


def test_the_heaps_hold_no_stale_entries() -> None:
    """However often accounts are charged, which enters them anew."""
    fair = Fair()
    running = job("a")
    pushed(fair, running, job("a"), job("b"), job("b", lane="long"))
    assert fair.pop("short") is running
    for i in range(1000):
        fair.charge(running, float(i % 7))
    for turns in (fair.users, fair.users.accounts["a"].sessions):
        assert turns.largest_heap <= 2 * 2 + 16


def test_the_largest_debts_are_forgotten_last() -> None:
    fair = Fair()
    visit(fair, "d", 1000.0)
    for i in range(4 * MAX_IDLE):
        visit(fair, f"visitor {i}", 0.001)
    pushed(fair, *(job("n") for _ in range(3)), job("d"))
    assert popped(fair, 4) == "nnnd"


def test_an_active_flow_is_not_forgotten() -> None:
    fair = Fair()
    running, waiting = job("r"), job("w", 0.5, "long")
    pushed(fair, running, waiting)
    assert fair.pop("short") is running
    for i in range(4 * MAX_IDLE):
        visit(fair, f"visitor {i}")
    assert fair.peek("long") is waiting
    fair.settle(running, 5000.0)
    pushed(fair, *(job("n", 10.0) for _ in range(3)), job("r"))
    assert popped(fair, 4) == "nnnr"


def test_finding_idle_flows_is_amortised() -> None:
    fair = Fair()
    for i in range(20 * MAX_IDLE):
        fair.push(job(f"waiting {i}"))
    assert 1 <= fair.users.clean_ups <= 4
