"""Closed loops: batches in lock-step, their token counts, and the estimated answer lengths."""

from itertools import groupby
from statistics import fmean

import pytest

from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.closed_loops import (
    CONCURRENCY_STRESS,
    CONTEXT_SCALING,
    LONG_OUTPUT,
    MULTI_TURN,
    OUTPUT_THROUGHPUT,
    RAG_MIX,
    ClosedLoop,
)
from loadtest.workloads.plan import Plan
from loadtest.workloads.workload import Options

# As the commands have them: --pp, --tg, --concurrency.
COMMANDS = {
    "A": (CONTEXT_SCALING, [4096, 8192, 16384, 25000], 256, [1, 5, 10]),
    "B": (CONCURRENCY_STRESS, [25000], 256, [5, 10, 20]),
    "C": (OUTPUT_THROUGHPUT, [1024], 1024, [1, 5, 10]),
    "E": (MULTI_TURN, [2048], 512, [1, 5, 10]),
    "F": (RAG_MIX, [8192], 512, [5, 10, 20]),
    "G": (LONG_OUTPUT, [256], 4096, [1, 5, 10]),
}
ON_THE_SERVER = {256: 240, 1024: 905, 2048: 1900, 4096: 3680, 8192: 7436, 16384: 14880, 25000: 22490}

every_loop = pytest.mark.parametrize("letter", COMMANDS)


def plan_of(letter: str, seed: int = 1) -> Plan:
    return COMMANDS[letter][0].plan(Options(seed))


def batches(plan: Plan) -> list[list[int]]:
    """Of those who wait for the same, the numbers."""
    numbers = range(len(plan.requests))
    return [list(batch) for _, batch in groupby(numbers, key=lambda number: plan.requests[number].after)]


@every_loop
def test_points_are_ordered_by_prompt_and_then_concurrency(letter: str) -> None:
    _, prompts, tg, concurrencies = COMMANDS[letter]
    expected = [(pp, tg, concurrency) for pp in prompts for concurrency in concurrencies]
    assert [(point.pp, point.tg, point.concurrency) for point in plan_of(letter).points] == expected


@every_loop
def test_each_point_has_three_batches_of_its_size(letter: str) -> None:
    plan = plan_of(letter)
    found = [(plan.requests[batch[0]].point, len(batch)) for batch in batches(plan)]
    assert found == [(number, point.concurrency) for number, point in enumerate(plan.points) for _ in range(3)]
    assert all(len({plan.requests[number].point for number in batch}) == 1 for batch in batches(plan))


@every_loop
def test_a_batch_waits_for_all_of_the_previous_batch(letter: str) -> None:
    plan = plan_of(letter)
    before: list[int] = []
    for batch in batches(plan):
        assert all(list(plan.requests[number].after) == before for number in batch)
        before = batch


@every_loop
def test_a_batch_is_sent_with_asyncios_spacing(letter: str) -> None:
    step = 0.0 if letter == "G" else 0.003
    plan = plan_of(letter)
    for batch in batches(plan):
        requests = [plan.requests[number] for number in batch]
        lags = pytest.approx([step * slot for slot in range(len(batch))])
        assert [request.delay for request in requests] == lags
        if not requests[0].after:
            assert [request.at for request in requests] == lags
        assert [request.user for request in requests] == [f"client-{slot + 1}" for slot in range(len(batch))]


@every_loop
def test_prompts_have_the_servers_token_counts(letter: str) -> None:
    plan = plan_of(letter)
    for number, request in enumerate(plan.requests):
        assert request.point is not None
        assert plan.prompt_tokens(number) == ON_THE_SERVER[plan.points[request.point].pp]
        assert request.max_tokens == plan.points[request.point].tg
        assert request.text == "book"


def test_multi_turn_is_one_turn_after_a_one_token_system_message() -> None:
    for request in plan_of("E").requests:
        assert (request.system_tokens, request.prompt_tokens) == (1, 1899)
        assert request.continues is None


@pytest.mark.parametrize("letter", ["A", "B", "E", "F"])
def test_answers_are_cut_at_their_limit(letter: str) -> None:
    assert all(request.output_tokens == COMMANDS[letter][2] for request in plan_of(letter).requests)


@pytest.mark.parametrize(("letter", "mean"), [("C", 570), ("G", 550)])
def test_answers_may_end_by_themselves(letter: str, mean: int) -> None:
    answers = [request.answer_tokens for seed in range(60) for request in plan_of(letter, seed).requests]
    assert fmean(answers) == pytest.approx(mean, rel=0.02)
    assert len(set(answers)) > 100
    assert max(answers) <= COMMANDS[letter][2]


@pytest.mark.parametrize(("letter", "measured"), [("C", 86.5), ("G", 83.8)])
def test_the_spread_of_the_answers_gives_the_throughput_of_a_batch_of_ten(letter: str, measured: float) -> None:
    """A batch with an answer longer than the rest ends slowly. Tokens a second, over three seeds."""
    loop = COMMANDS[letter][0]
    ten = ClosedLoop(loop.pp, loop.tg, (10,), loop.answer_tokens, loop.stagger_s)
    rates = []
    for seed in range(6):
        records = Simulation(Engine(load_profile("gemma-4-26b-bf16"))).run(ten.plan(Options(seed)))
        for start in range(0, len(records), 10):
            batch = [record.tokens for record in records[start : start + 10]]
            decoded = sum(map(len, batch)) - len(batch)
            rates.append(decoded / (max(tokens[-1] for tokens in batch) - min(tokens[0] for tokens in batch)))
    assert fmean(rates) == pytest.approx(measured, rel=0.08)


def test_a_seed_determines_the_plan() -> None:
    assert plan_of("G", 3) == plan_of("G", 3)
    assert plan_of("G", 3) != plan_of("G", 4)
