"""Deployments that the simulator can put in front of the engine."""

import pytest

from gateway.scheduling.limits import Limits
from loadtest.results.records import Record
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.deployment import Deployment, deployments
from loadtest.spark.engine import prefill_alone
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.plan import Plan, Request
from policies import POLICIES

MACHINE = load_profile("gemma-4-26b-bf16")
COST = cost_profile(MACHINE)

DOCUMENTS = [Request(0.0, "ida", "long", 20_000, 20) for _ in range(3)]
QUESTION = Request(0.5, "ada", "short", 200, 20)


def records(name: str, *requests: Request, seats: int = 8, limits: Limits | None = None) -> list[Record]:
    return Deployment(name, COST, limits or Limits(), seats=seats).simulate(Plan(requests), MACHINE)


@pytest.mark.parametrize("name", [*deployments()])
def test_every_deployment_serves_every_request(name: str) -> None:
    assert all(record.completed for record in records(name, *DOCUMENTS, QUESTION))


def test_direct_is_first_come_first_served() -> None:
    *documents, question = records("direct", *DOCUMENTS, QUESTION)
    assert question.first_token >= max(record.first_token for record in documents)


def test_the_priority_deployment_lets_short_prompts_pass() -> None:
    """Not those that are in: vLLM preempts nobody for a seat, and one step takes in what fits."""
    *documents, question = records("priority", *DOCUMENTS, QUESTION)
    assert sum(record.first_token < question.first_token for record in documents) < 3


def test_the_semaphore_deployment_counts_whole_requests() -> None:
    first, second = records("semaphore", *DOCUMENTS[:2], seats=1)
    assert second.first_token > first.tokens[-1]


def test_the_gateway_deployment_separates_the_lanes() -> None:
    *documents, question = records("fair", *DOCUMENTS, QUESTION)
    assert sum(record.first_token < question.first_token for record in documents) <= 1


def test_an_unknown_deployment_is_refused() -> None:
    with pytest.raises(ValueError, match="no policy 'lifo'"):
        Deployment("lifo", COST)


def test_a_pricing_deployment_needs_a_cost_profile() -> None:
    Deployment("direct")
    with pytest.raises(ValueError, match="what work costs"):
        Deployment("fair")


def test_results_record_their_limits() -> None:
    assert Deployment("direct").settings() == {}
    assert Deployment("semaphore", COST, seats=4).settings() == {"seats": "4"}
    assert "long_prompt_tokens=2048" in Deployment("fair", COST).settings()["limits"]
    assert Deployment("fair", COST).settings()["slicing"] == "max_stall=0.5 long_share=1.0 step_tokens=8192"
    assert Deployment("fair", COST, slicing=None).settings()["slicing"] == "off"


@pytest.mark.parametrize("profile", ["gemma-4-26b-bf16", "gemma-4-26b-nvfp4", "gemma-4-31b-bf16"])
@pytest.mark.parametrize("tokens", [256, 1500, 6000, 12_000, 25_000])
def test_a_machines_cost_profile_matches_its_times(profile: str, tokens: int) -> None:
    machine = load_profile(profile)
    assert cost_profile(machine).prefill(tokens) == pytest.approx(prefill_alone(machine, tokens), rel=0.05)


def test_every_policy_of_ours_is_a_deployment() -> None:
    assert {*POLICIES} <= {*deployments()}
