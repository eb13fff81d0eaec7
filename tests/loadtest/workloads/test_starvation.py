"""The starvation workload: a flood of long prompts that starves short questions."""

from collections import Counter

import pytest

from loadtest.results.records import Record, percentile
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.plan import Plan
from loadtest.workloads.starvation import starvation
from loadtest.workloads.workload import Options

seeds = pytest.mark.parametrize("seed", [1, 2, 3])


def direct(plan: Plan) -> list[Record]:
    return Simulation(Engine(load_profile("gemma-4-26b-bf16"))).run(plan)


def question_ttft(records: list[Record], q: float) -> float:
    return percentile((record.ttft for record in records if record.request.kind == "question"), q)


@seeds
def test_the_flood_has_its_documented_load(seed: int) -> None:
    documents = [request for request in starvation(Options(seed)).requests if request.kind == "document"]
    assert len(documents) == 16
    assert Counter(request.user for request in documents) == {"ida": 8, "jon": 8}
    assert [request.at > 20 for request in documents] == [False] * 12 + [True] * 4
    assert all(12_000 <= request.prompt_tokens <= 25_000 for request in documents)


@seeds
def test_the_short_questions_arrive_at_their_rate(seed: int) -> None:
    questions = [request for request in starvation(Options(seed)).requests if request.kind == "question"]
    counts = Counter(request.user for request in questions)
    assert len(counts) == 8
    assert all(9 <= count <= 15 for count in counts.values())
    assert all(150 <= request.prompt_tokens <= 1500 for request in questions)
    assert all(100 <= request.answer_tokens <= 300 for request in questions)
    assert 110 < max(request.at for request in questions) < 120


@seeds
def test_every_request_has_a_fixed_time(seed: int) -> None:
    requests = starvation(Options(seed)).requests
    assert [request.at for request in requests] == sorted(request.at for request in requests)
    assert not any(request.after for request in requests)


@seeds
def test_first_come_first_served_starves_the_short_questions(seed: int) -> None:
    plan = starvation(Options(seed))
    records = direct(plan)
    undisturbed = direct(plan.only(lambda request: request.kind == "question"))
    assert question_ttft(undisturbed, 95) < 1
    assert question_ttft(records, 95) > 20
    assert question_ttft(records, 50) > 4 * question_ttft(undisturbed, 50)
    assert max(record.tokens[-1] for record in records) < 200


def test_the_number_of_people_and_the_duration_can_be_set() -> None:
    requests = starvation(Options(1, users=30, duration=60)).requests
    assert len({request.user for request in requests}) == 30
    assert len({request.user for request in requests if request.kind == "document"}) == 2
    assert 50 < max(request.at for request in requests) < 60
    brief = starvation(Options(1, duration=3)).requests
    assert max(request.at for request in brief) < 3
    assert len({request.user for request in brief if request.kind == "question"}) == 8


@pytest.mark.parametrize("users", [0, 2, 201])
def test_at_least_one_person_is_required(users: int) -> None:
    with pytest.raises(ValueError, match="3 to 200 people"):
        starvation(Options(1, users=users))


@pytest.mark.parametrize("duration", [0.0, -1.0])
def test_a_duration_of_zero_is_refused(duration: float) -> None:
    with pytest.raises(ValueError, match="duration above 0"):
        starvation(Options(1, duration=duration))


def test_a_seed_determines_the_plan() -> None:
    assert starvation(Options(5)) == starvation(Options(5))
    assert starvation(Options(5)) != starvation(Options(6))
