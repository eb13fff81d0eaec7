"""The simulator in virtual time: the engine's own times without a gateway, the gateway's rules with one."""

import itertools

import pytest

from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.scheduling.limits import Limits
from gateway.storage.profile_file import load as load_cost_profile
from loadtest.results.records import Outcome, Record
from loadtest.simulation.agenda import Agenda
from loadtest.simulation.simulation import Options, Simulation
from loadtest.spark.engine import Engine, prefill_alone
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.office import office
from loadtest.workloads.plan import Plan, Request
from policies import POLICIES

PROFILE = load_profile("gemma-4-26b-bf16")


def core(policy: str, **limits: int) -> Core:
    return Core.create(CostModel(load_cost_profile("gemma-4-26b-bf16")), POLICIES[policy](), Limits(**limits))


def simulate(arrivals: list[Request], policy: str | None = None, **limits: int) -> list[Record]:
    gateway = None if policy is None else core(policy, **limits)
    return Simulation(Engine(PROFILE), gateway).run(arrivals)


def long(at: float, user: str = "ida") -> Request:
    return Request(at, user, "long", 25_000, 10)


def short(at: float, user: str = "ada") -> Request:
    return Request(at, user, "short", 200, 10)


def test_simultaneous_events_happen_in_order() -> None:
    agenda, happened = Agenda(), list[str]()
    agenda.at(2.0, lambda: happened.append("c"))
    agenda.at(1.0, lambda: happened.append("a"))
    agenda.at(1.0, lambda: happened.append("b"))
    agenda.run()
    assert happened == ["a", "b", "c"]
    assert agenda.now == 2.0


@pytest.mark.parametrize("policy", [None, *POLICIES])
def test_a_lone_request_takes_the_engines_time(policy: str | None) -> None:
    (record,) = simulate([short(3.0)], policy)
    assert record.ttft == pytest.approx(prefill_alone(PROFILE, 200))
    assert len(record.tokens) == 10


@pytest.mark.parametrize("policy", [None, *POLICIES])
def test_every_request_gets_all_its_tokens(policy: str | None) -> None:
    for record in simulate(office(seed=4), policy):
        assert len(record.tokens) == record.request.output_tokens
        assert record.tokens == sorted(record.tokens)


def test_long_prompts_run_one_at_a_time_and_short_ones_pass() -> None:
    arrivals = [long(0.0), long(0.1), short(0.2)]
    direct, gated = simulate(arrivals), simulate(arrivals, "fair")
    assert direct[2].ttft > 10
    assert gated[2].ttft < 8  # behind the first document, whose steps no flag cuts here, and not the second
    assert gated[1].first_token > gated[0].first_token + prefill_alone(PROFILE, 25_000) * 0.9


def test_seats_are_a_limit() -> None:
    """One seat: a request's first token comes only when the one before it is done."""
    records = simulate([short(0.0, "ada"), short(0.0, "ben"), short(0.0, "cem")], "fifo", max_num_seqs=1)
    for before, after in itertools.pairwise(records):
        assert after.first_token > before.tokens[-1]


def test_users_take_turns() -> None:
    arrivals = [long(0.0, "ida") for _ in range(4)] + [long(1.0, "jon")]
    fair, fifo = simulate(arrivals, "fair"), simulate(arrivals, "fifo")

    def before_jon(records: list[Record]) -> int:
        return sum(record.first_token < records[-1].first_token for record in records[:-1])

    assert (before_jon(fair), before_jon(fifo)) == (1, 4)


def test_a_job_that_waits_too_long_is_rejected() -> None:
    gateway = core("fifo", max_num_seqs=1)
    simulation = Simulation(Engine(PROFILE), gateway, Options(queue_timeout=3.0))
    first, second, third = simulation.run([long(0.0), short(1.0), short(20.0)])
    assert (first.outcome, third.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert (second.outcome, second.detail, second.ended) == (Outcome.REJECTED, "queue_timeout", 4.0)
    assert not any(gateway.admission.held().values())


def test_a_job_that_admission_refuses_is_rejected_at_once() -> None:
    records = simulate([short(0.0), short(0.0), short(0.0)], "fifo", max_num_seqs=1, max_queued=1)
    assert [record.outcome for record in records] == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.REJECTED]
    assert records[2].ended == 0.0


def test_batches_run_in_lock_step() -> None:
    batch = [Request(0.0, "ada", "short", 200, tokens) for tokens in (5, 50)]
    again = [Request(0.0, "ada", "short", 200, 5, after=(0, 1), delay=0.25)]
    records = Simulation(Engine(PROFILE)).run(Plan((*batch, *again)))
    assert records[2].scheduled == records[1].tokens[-1] + 0.25


def test_waiting_for_the_clients_cap_counts_from_arrival() -> None:
    plan = Plan((short(0.0), short(0.0)), max_concurrency=1)
    first, second = Simulation(Engine(PROFILE)).run(plan)
    assert second.sent == first.tokens[-1]
    assert second.ttft_send == pytest.approx(first.ttft_send)
    assert second.ttft > second.ttft_send


@pytest.mark.parametrize("policy", [None, "fair"])
def test_the_wait_is_split_at_the_start_of_the_prefill(policy: str | None) -> None:
    first, second = simulate([long(0.0), long(0.0, "jon")], policy)
    assert first.queue == 0.0
    assert second.queue is not None
    assert second.queue == pytest.approx(first.ttft, abs=3.0)


def test_a_conversation_finds_its_earlier_turns_in_the_cache() -> None:
    machine = PROFILE.with_flags(enable_prefix_caching=True)
    turn = Request(0.0, "ada", "short", 100, 60, after=(0,), continues=0)
    stranger = Request(60.0, "ben", "short", 3260, 10)
    plan = Plan((Request(0.0, "ada", "long", 3000, 60), turn, stranger))
    first, second, other = Simulation(Engine(machine)).run(plan)
    assert (first.cached_tokens, other.cached_tokens) == (0, 0)
    assert second.prompt_tokens == 3160
    assert second.cached_tokens in range(3060 - 32, 3060 + 1)
    assert second.ttft < other.ttft / 2


def test_shared_instructions_are_found_by_others() -> None:
    machine = PROFILE.with_flags(enable_prefix_caching=True)
    asks = [
        Request(at, user, "rag", 100, 10, system=system, system_tokens=1600)
        for at, user, system in ((0.0, "ada", "handbook"), (10.0, "ben", "handbook"), (20.0, "cem", "other"))
    ]
    records = Simulation(Engine(machine)).run(asks)
    assert [record.cached_tokens for record in records] == [0, 1600, 0]
