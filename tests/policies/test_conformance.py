"""What every policy promises, whatever order it keeps: the laws of `policies.base`, over random histories.

A policy added to `POLICIES` is held to them without a line being written here, and so is the example in
docs/policies.md.
"""

import re
import sys
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import policies
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy
from tests.support.repository import ROOT

NewPolicy = Callable[[], Policy]


def from_the_docs(language: str) -> str:
    text = (ROOT / "docs" / "policies.md").read_text()
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert isinstance(block, str)
    return block


EXAMPLE = ModuleType("example")
exec(from_the_docs("python"), EXAMPLE.__dict__)

EVERY: dict[str, NewPolicy] = {**POLICIES, "example": EXAMPLE.OnCall}
every_policy = pytest.mark.parametrize("new_policy", EVERY.values(), ids=EVERY)

lanes = st.sampled_from(LANES)
seconds = st.floats(0, 60, allow_nan=False)
jobs = st.builds(
    Job,
    flow=st.sampled_from(["a", "b", "ops"]),
    lane=lanes,
    tokens=st.integers(1, 30_000),
    cost=seconds,
    arrival=seconds,
    seats=st.integers(1, 3),
    session=st.sampled_from(["", "chat", "agent"]),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    head_start=st.sampled_from([0.0, 0.0, 5.0, 100.0]),
    deadline=st.one_of(st.just(inf), seconds),
)


class Laws(RuleBasedStateMachine):
    """Any history of pushes, pops, removals, charges and settlements, beside the jobs that should be waiting."""

    start: ClassVar[NewPolicy]

    def __init__(self) -> None:
        super().__init__()
        self.policy = type(self).start()
        self.waiting: list[Job] = []
        self.popped: list[Job] = []
        self.aside: list[Job] = []

    @rule(job=jobs)
    def push(self, job: Job) -> None:
        self.policy.push(job)
        self.waiting.append(job)

    @rule(lane=lanes)
    def pop(self, lane: Lane) -> None:
        named = self.policy.peek(lane)
        if named is None:
            with pytest.raises(IndexError):
                self.policy.pop(lane)
            return
        assert self.policy.pop(lane) is named
        self.waiting.remove(named)  # it was there, and no longer is
        self.popped.append(named)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), comes_back=st.booleans())
    def remove(self, data: st.DataObject, comes_back: bool) -> None:
        job = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.policy.remove(job)
        if comes_back:
            self.aside.append(job)

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def step_in(self, data: st.DataObject) -> None:
        self.push(self.aside.pop(data.draw(st.integers(0, len(self.aside) - 1))))

    @precondition(lambda self: self.popped)
    @rule(data=st.data(), cost=seconds)
    def charge(self, data: st.DataObject, cost: float) -> None:
        self.policy.charge(data.draw(st.sampled_from(self.popped)), cost)

    @precondition(lambda self: self.popped)
    @rule(data=st.data(), cost=seconds)
    def settle(self, data: st.DataObject, cost: float) -> None:
        job = self.popped.pop(data.draw(st.integers(0, len(self.popped) - 1)))
        self.policy.settle(job, cost)

    @rule()
    def go_on_with_a_copy(self) -> None:
        """What happens to a copy happens to nobody else, nor the other way round."""
        original, self.policy = self.policy, self.policy.copy()
        emptied = original.copy()
        assert drained(emptied) == drained(original)

    @invariant()
    def there_is_a_next_one_wherever_somebody_waits(self) -> None:
        for lane in LANES:
            there = [job for job in self.waiting if job.lane == lane]
            named = self.policy.peek(lane)
            assert self.policy.peek(lane) is named
            assert (named is None) == (not there)
            assert named is None or any(named is job for job in there)

    def teardown(self) -> None:
        for lane in LANES:
            while self.policy.peek(lane):
                self.pop(lane)
        assert not self.waiting
        for job in reversed(self.popped):
            self.policy.settle(job, job.cost)


def drained(policy: Policy) -> list[Job]:
    order: list[Job] = []
    while any(policy.peek(lane) for lane in LANES):
        for lane in LANES:
            if policy.peek(lane):
                order.append(policy.pop(lane))
    return order


@every_policy
def test_each_job_is_popped_or_removed_exactly_once(new_policy: NewPolicy) -> None:
    class TheirLaws(Laws):
        start = new_policy

    run_state_machine_as_test(TheirLaws, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


# A history as data: jobs to push, a lane to pop, how far back to remove, to charge or to settle.
Step = tuple[str, Any]
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("push"), jobs),
        st.tuples(st.just("pop"), lanes),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("charge"), st.tuples(st.integers(0, 9), seconds)),
        st.tuples(st.just("settle"), st.tuples(st.integers(0, 9), seconds)),
    ),
    max_size=60,
)


class Run:
    """A history that happens to a policy; who was popped, in order."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.order: list[Job] = []

    def go_on(self, history: list[Step], peeks: int = 0) -> list[Job]:
        """So many peeks after each step."""
        for step, what in history:
            self._do(step, what)
            for _ in range(peeks):
                for lane in LANES:
                    self.policy.peek(lane)
        return self.order

    def copy(self) -> "Run":
        clone = Run(self.policy.copy())
        clone.waiting, clone.running, clone.order = self.waiting.copy(), self.running.copy(), self.order.copy()
        return clone

    def _do(self, step: str, what: Any) -> None:
        if step == "push":
            self.policy.push(what)
            self.waiting.append(what)
        elif step == "pop" and self.policy.peek(what):
            self.order.append(self.policy.pop(what))
            self.waiting.remove(self.order[-1])
            self.running.append(self.order[-1])
        elif step == "remove" and what < len(self.waiting):
            self.policy.remove(self.waiting.pop(what))
        elif step == "charge" and what[0] < len(self.running):
            self.policy.charge(self.running[what[0]], what[1])
        elif step == "settle" and what[0] < len(self.running):
            self.policy.settle(self.running.pop(what[0]), what[1])


@every_policy
@given(history=steps)
@settings(deadline=None)
def test_the_same_history_gives_the_same_order_however_often_it_is_peeked(
    new_policy: NewPolicy, history: list[Step]
) -> None:
    assert Run(new_policy()).go_on(history) == Run(new_policy()).go_on(history, peeks=2)


@every_policy
@given(before=steps, after=steps, other=steps)
@settings(deadline=None)
def test_a_copy_continues_like_the_original_and_shares_no_state(
    new_policy: NewPolicy, before: list[Step], after: list[Step], other: list[Step]
) -> None:
    run = Run(new_policy())
    run.go_on(before)
    clone, third = run.copy(), run.copy()
    third.go_on(other)
    drained(third.policy)
    expected = run.go_on(after) + drained(run.policy)
    assert clone.go_on(after) + drained(clone.policy) == expected


def long_history(seed: int, n: int) -> list[Step]:
    """Flows come, go, and come back; few wait at a time, so that there are returns to find the level for."""
    random, history = Random(seed), list[Step]()
    for now in range(n):
        job = Job(
            flow=random.choice(["a", "b", "c", "d", "ops"]),
            lane=random.choice(LANES),
            tokens=10,
            cost=random.uniform(0.1, 9),
            arrival=now,
            session=random.choice(["", "chat"]),
            head_start=random.choice([0.0] * 9 + [5.0]),
        )
        history.append(("push", job))
        for _ in range(random.choice([0, 1, 2, 2])):
            history.append(("pop", random.choice(LANES)))
        history.append((random.choice(["charge", "settle"]), (random.randrange(4), random.uniform(0, 12))))
    return history


@every_policy
@pytest.mark.parametrize("seed", range(60))
def test_a_copy_keeps_the_state_of_a_long_history(new_policy: NewPolicy, seed: int) -> None:
    run = Run(new_policy())
    run.go_on(long_history(seed, 60))
    if seed % 2:
        drained(run.policy)
        run.waiting.clear()
    clone, after = run.copy(), long_history(seed + 1000, 60)
    assert clone.go_on(after) == run.go_on(after)


@every_policy
def test_a_head_start_never_delays_a_job(new_policy: NewPolicy) -> None:
    policy = new_policy()
    plain, ahead = (Job(flow, "short", 10, 1.0, 0.0, head_start=start) for flow, start in [("a", 0.0), ("b", 9.0)])
    policy.push(ahead)
    policy.push(plain)
    assert policy.pop("short") is ahead


@every_policy
def test_sessions_weights_and_deadlines_lose_no_job(new_policy: NewPolicy) -> None:
    policy = new_policy()
    jobs = [
        Job(flow, lane, 10, 1.0, 0.0, session=session, weight=weight, deadline=deadline)
        for flow, weight in [("a", 0.1), ("b", 10.0)]
        for lane in LANES
        for session in ("", "chat")
        for deadline in (inf, 0.0, 5.0)
    ]
    for job in jobs:
        policy.push(job)
    assert {*drained(policy)} == {*jobs}


@every_policy
@pytest.mark.parametrize("lane", LANES)
def test_an_empty_lane_pops_nothing(new_policy: NewPolicy, lane: Lane) -> None:
    with pytest.raises(IndexError):
        new_policy().pop(lane)


@every_policy
def test_jobs_are_distinguished_by_identity_not_content(new_policy: NewPolicy) -> None:
    policy = new_policy()
    one, other = (Job("a", "short", 10, 1.0, 0.0) for _ in range(2))
    policy.push(one)
    policy.push(other)
    policy.remove(one)
    assert policy.pop("short") is other


@every_policy
@given(random=st.randoms(use_true_random=False), victim_cost=st.integers(1, 4), behind=st.integers(0, 8))
@settings(max_examples=30)
def test_a_waiting_job_is_passed_by_a_bounded_number_of_jobs(
    new_policy: NewPolicy, random: Any, victim_cost: int, behind: int
) -> None:
    """Four flows, every job between 1 and 4 s, each pop followed by a new arrival while the clock goes on.

    The bound is loose and computed from these alone: aging lets at most 16 jobs that came later pass inside the
    victim's flow, and until those and the `behind` are through, each other flow gets as much work and a job more.
    """
    policy, now = new_policy(), 0.0

    def arrive(flow: str, cost: int) -> Job:
        job = Job(flow, "long", 1000 * cost, cost, now)
        policy.push(job)
        return job

    for _ in range(behind):
        arrive(random.choice("abcv"), random.randint(1, 4))
    victim = arrive("v", victim_cost)
    ahead_in_flow = (behind + 16 + 1) * 4
    bound = (behind + 16) + 3 * (ahead_in_flow + 4)
    for _ in range(bound + 1):
        arrive(random.choice("abcv"), random.randint(1, 4))
        job = policy.pop("long")
        if job is victim:
            return
        policy.settle(job, random.randint(1, 4))
        now += job.cost
    pytest.fail(f"still waiting after {bound} pops")


# Those of others.


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package as the docs describe it, where Python finds it, and one that breaks when it is imported."""
    (tmp_path / "fairlane_on_call.py").write_text(from_the_docs("python"))
    (tmp_path / "fairlane_broken.py").write_text("raise RuntimeError('no such GPU')")
    entries = re.search(r'\[project\.entry-points\."fairlane\.policies"\]\n(\S+) = "(\S+)"', from_the_docs("toml"))
    assert entries is not None
    info = tmp_path / "fairlane_on_call-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fairlane-on-call\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[fairlane.policies]\n{entries[1]} = {entries[2]}\n"
        "broken = fairlane_broken:Broken\n"
        "number = fairlane_on_call:ON_CALL\n"
        "fifo = fairlane_broken:Broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("fairlane_on_call", None)


@pytest.mark.usefixtures("installed")
class TestFind:
    def test_policy_names_are_listed_without_loading_them(self) -> None:
        assert policies.names() == [*POLICIES, "broken", "number", "on-call"]
        assert "fairlane_on_call" not in sys.modules

    def test_the_example_policy_of_the_docs_is_found(self) -> None:
        policy = policies.find("on-call")()
        assert isinstance(policy, Policy)
        assert type(policy).__name__ == "OnCall"

    @pytest.mark.parametrize("name", POLICIES)
    def test_built_in_policies_cannot_be_shadowed(self, name: str) -> None:
        assert policies.find(name) is POLICIES[name]

    def test_a_policy_that_cannot_be_loaded_reports_the_reason(self) -> None:
        with pytest.raises(ValueError, match="'broken' cannot be loaded from fairlane_broken:Broken: no such GPU"):
            policies.find("broken")

    def test_an_entry_point_that_makes_no_policy_is_refused(self) -> None:
        with pytest.raises(ValueError, match="fairlane_on_call:ON_CALL is not a class or a function"):
            policies.find("number")

    def test_an_unknown_name_is_answered_with_the_known_names(self) -> None:
        with pytest.raises(
            ValueError, match=r"no policy 'lifo': choose fair, fifo, .*deadline, broken, number or on-call"
        ):
            policies.find("lifo")


def test_the_docs_name_every_policy_and_nothing_else() -> None:
    text = (ROOT / "docs" / "policies.md").read_text()
    described = re.findall(r"^\| `(\w+)`", text.partition("<!-- table:begin -->")[0], re.MULTILINE)
    assert sorted(described) == sorted(POLICIES)
