"""How requests are priced in a simulation, and choosing the pricing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel, Counts, Price
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.prompt import PrefixHash, Prompt, PromptSize
from gateway.pricing.usage import PromptDetails, Usage
from gateway.scheduling.limits import Limits
from gateway.storage.profile_file import load as load_cost_profile
from loadtest.cli.load import GatewayOptions, app, deployment
from loadtest.results.records import Record
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.deployment import DEFAULT_LIMITS, Deployment
from loadtest.simulation.pricing import PRICINGS, TYPICAL_TOKENS, cost_model
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.plan import Plan, Request
from policies.fifo import Fifo

MACHINE = load_profile("gemma-4-26b-bf16").with_flags(enable_prefix_caching=True)
OWN = cost_profile(MACHINE)
TOLD = OWN.scaled(2)

LENGTHS = (100, 2000, TYPICAL_TOKENS, 25_000)
DOCUMENTS = [Request(0.0, "ida", "long", 20_000, 20) for _ in range(8)]


def model(pricing: str) -> CostModel:
    return cost_model(pricing, TOLD, MACHINE)


def text(tokens: int, name: str = "text") -> Prompt:
    size = PromptSize(words=4 * tokens)
    return Prompt(size, (PrefixHash(name.encode(), size),))


def seconds(priced: CostModel, tokens: int) -> float:
    return priced.price([text(tokens)], tokens).seconds


def serve_documents(priced: CostModel) -> list[Record]:
    return Simulation(Engine(MACHINE), Core.create(priced, Fifo(), Limits())).run(Plan(tuple(DOCUMENTS)))


def taught(pricing: str) -> CostModel:
    """After eight documents at once, one of which is in prefill while the others wait at the gateway."""
    priced = model(pricing)
    serve_documents(priced)
    return priced


@pytest.mark.parametrize("tokens", LENGTHS)
def test_the_true_price_is_the_machines_own(tokens: int) -> None:
    priced = model("true")
    assert seconds(priced, tokens) == OWN.prefill(tokens)
    assert priced.true_cost(Counts(tokens, 50, 300)) == OWN.prefill(tokens, 50) + OWN.decode(300)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_the_learned_price_starts_at_the_given_profile(tokens: int) -> None:
    assert seconds(model("learned"), tokens) == TOLD.prefill(tokens)


class Listening(CostModel):
    def __init__(self) -> None:
        super().__init__(TOLD)
        self.engine_queues: list[float | None] = []

    def learn(
        self,
        prompts: Sequence[Prompt],
        price: Price,
        usage: Usage,
        observation: PrefillObservation | None = None,
        queue_s: float | None = None,
    ) -> bool:
        self.engine_queues.append(queue_s)
        return super().learn(prompts, price, usage, observation, queue_s)


def test_the_engine_reports_only_its_own_queue_time() -> None:
    """Seven of the eight wait at the gateway, the last for more than half a minute. That is no part of it."""
    priced = Listening()
    records = serve_documents(priced)
    assert max(record.queue or 0.0 for record in records) > 30
    assert len(priced.engine_queues) == 8
    assert all(queue is not None and queue < 1 for queue in priced.engine_queues)


def test_the_learned_price_converges_to_the_true_one() -> None:
    assert seconds(taught("learned"), 20_000) == pytest.approx(OWN.prefill(20_000), rel=0.05)


@pytest.mark.parametrize("pricing", ["true", "tokens", "requests"])
def test_other_pricings_learn_no_seconds(pricing: str) -> None:
    assert [seconds(taught(pricing), tokens) for tokens in LENGTHS] == [
        seconds(model(pricing), tokens) for tokens in LENGTHS
    ]


@pytest.mark.parametrize("pricing", PRICINGS)
def test_every_pricing_learns_tokens_per_text(pricing: str) -> None:
    before, after = (each.price([text(1000)]).tokens for each in (model(pricing), taught(pricing)))
    assert before == 1000
    assert after == pytest.approx(1250, rel=0.01)  # at 3.2 bytes


def test_token_pricing_counts_tokens() -> None:
    priced = model("tokens")
    rate = OWN.prefill(TYPICAL_TOKENS) / TYPICAL_TOKENS
    assert [seconds(priced, tokens) for tokens in LENGTHS] == pytest.approx([rate * tokens for tokens in LENGTHS])
    assert priced.true_cost(Counts(1000, 0, 300)) == pytest.approx(1000 * rate + OWN.decode(300))


def test_request_pricing_counts_requests() -> None:
    priced = model("requests")
    assert {seconds(priced, tokens) for tokens in LENGTHS} == {OWN.prefill(TYPICAL_TOKENS)}
    assert priced.true_cost(Counts(25_000, 0, 3000)) == OWN.prefill(TYPICAL_TOKENS)


@pytest.mark.parametrize("pricing", PRICINGS)
def test_only_cold_pricing_ignores_the_cache(pricing: str) -> None:
    priced = model(pricing)
    first = priced.price([text(1000)], 1000)
    priced.insert_prefixes([text(1000)], first)
    priced.learn([text(1000)], first, Usage(1000, 20, PromptDetails(0)))
    assert priced.price([text(1000)]).uncached == (1000 if pricing == "cold" else 8)


def waits(pricing: str, *prompts: int, policy: str = "shortest", limits: Limits = DEFAULT_LIMITS) -> list[float]:
    """For the first token, of prompts of so many tokens, all at once and before anybody has counted a token."""
    plan = Plan(
        tuple(replace(DOCUMENTS[0], user=f"{number}", prompt_tokens=tokens) for number, tokens in enumerate(prompts))
    )
    return [record.ttft for record in Deployment(policy, TOLD, limits, pricing=pricing).simulate(plan, MACHINE)]


def test_only_true_pricing_counts_the_tokens_of_short_prompts() -> None:
    """By their size at four bytes a token, both fit into the short lane at once; by their count, only one does."""
    limits = Limits(short_lane_tokens=2000)
    first, second = waits("true", 1200, 1200, limits=limits)
    assert second > 1.5 * first
    first, second = waits("learned", 1200, 1200, limits=limits)
    assert second == first


@pytest.mark.parametrize("pricing", PRICINGS)
def test_every_pricing_counts_the_tokens_of_nearly_long_prompts(pricing: str) -> None:
    """By their size at four bytes a token, both would be short prompts and start at once; by their count, they are
    long prompts, of which one is prefilled at a time."""
    first, second = waits(pricing, 2400, 2400)
    assert second > 1.5 * first


def test_a_deployment_prices_as_it_is_told() -> None:
    """Where all cost the same, the shortest first is the first that came."""
    _, second, _, short = waits("true", 20_000, 20_000, 20_000, 3000)
    assert short < second
    *_, third, short = waits("requests", 20_000, 20_000, 20_000, 3000)
    assert short > third


def test_a_deployments_title_names_its_pricing() -> None:
    assert Deployment("fair", OWN).title == "fair"
    assert Deployment("fair", OWN, pricing="tokens").title == "fair, tokens"
    assert Deployment("direct", pricing="tokens").title == "direct"  # nobody prices there
    assert Deployment("fair", OWN, pricing="tokens").settings()["pricing"] == "tokens"


def test_an_unknown_pricing_is_refused() -> None:
    with pytest.raises(ValueError, match="no pricing 'words': choose learned, true, cold, tokens or requests"):
        Deployment("fair", OWN, pricing="words")


def test_a_gateway_may_be_given_another_machines_profile() -> None:
    assert deployment("fair", MACHINE, GatewayOptions()).cost == OWN
    assert deployment("fair", MACHINE, GatewayOptions(["profile=gemma-4-31b-bf16"])).cost == load_cost_profile(
        "gemma-4-31b-bf16"
    )


def fairlane(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["simulate", "starvation", "--requests", "6", *arguments], env={"COLUMNS": "160"})
    assert done.exit_code == code, done.output
    return done.output


def test_pricings_are_compared_and_results_kept(tmp_path: Path) -> None:
    chosen = ("--policy", "direct", "--policy", "fair", "--pricing", "true", "--pricing", "learned")
    said = fairlane(*chosen, "--out", str(tmp_path))
    assert "fair, true" in said
    kept = {path.parent.name: json.loads(path.read_text())["policy"] for path in tmp_path.glob("*/summary.json")}
    assert kept == {"direct": "direct", "fair": "fair", "fair-true": "fair, true"}


def test_an_unknown_pricing_is_reported_in_one_line() -> None:
    shown = " ".join(fairlane("--policy", "fair", "--pricing", "words", code=2).replace("│", " ").split())
    assert "no pricing 'words'" in shown
    assert "Traceback" not in shown
