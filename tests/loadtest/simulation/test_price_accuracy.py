"""How right a price is after 40 mixed requests: on the simulated Spark with 10 % noise on every step, through the real
admission and policy, from a start profile that is twofold off.

What is predicted is held against the same machine without noise and with nobody else in it. `pytest -s` prints the
table. Everything is learned in the run itself, from nothing; each seed has its own bytes a token.

    sparse  a request in 15 s: most prompts have the engine to themselves, or those who decode beside them
    busy    one in 5 s: half of the time somebody waits, lanes overlap
    alongside  a second user at work, a request in 6 s, answers of some hundred tokens all the time
"""

from collections.abc import Callable
from functools import cache
from random import Random
from statistics import median
from typing import NamedTuple

import pytest

from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.prompt import Prompt, PromptSize
from gateway.pricing.usage import PromptDetails, Usage
from gateway.scheduling.limits import Limits
from gateway.storage.profile_file import load as load_cost_profile
from loadtest.results.records import percentile
from loadtest.simulation.simulation import Options, Simulation
from loadtest.spark.engine import Engine, prefill_alone
from loadtest.spark.profile import EngineProfile
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.plan import Request
from policies import POLICIES

SEEDS = range(1, 6)
ENGINES = ("gemma-4-26b-bf16", "gemma-4-26b-nvfp4")
THRESHOLD = 2560  # the engine's --long-prefill-token-threshold
SIZES = 60  # prompts that are asked about, from 64 to 25 000 tokens, as many of each magnitude


class Off(NamedTuple):
    """Relative errors, of each seed: of seconds, of tokens."""

    seconds: list[list[float]]
    tokens: list[list[float]]

    @property
    def all_seconds(self) -> list[float]:
        return [each for errors in self.seconds for each in errors]


def mixed(seed: int, gap: float) -> list[Request]:
    """Forty requests of four users, from a short question to 25 000 tokens."""
    random, at, requests = Random(seed), 0.0, []
    for number in range(40):
        at += random.expovariate(1 / gap)
        prompt, answer = int(2 ** random.uniform(6, 14.6)), random.randint(20, 300)
        requests.append(Request(at, f"user {number % 4}", "mixed", prompt, answer))
    return requests


def background(seed: int, until: float) -> list[Request]:
    random, at, requests = Random(1000 + seed), 0.0, []
    while (at := at + random.expovariate(1 / 6)) < until:
        requests.append(Request(at, "somebody", "other", int(2 ** random.uniform(6, 12)), random.randint(100, 400)))
    return requests


@cache
def alone(name: str, tokens: int) -> float:
    return prefill_alone(machine(name), tokens)


def machine(name: str) -> EngineProfile:
    return load_profile(name).with_flags(long_prefill_token_threshold=THRESHOLD)


@cache
def learned(
    name: str, factor: float, seed: int, gap: float, *, alongside: bool = False, tells_times: bool = True
) -> CostModel:
    """What a gateway knows after the forty."""
    requests = mixed(seed, gap)
    if alongside:
        requests = sorted(requests + background(seed, requests[-1].at), key=lambda each: each.at)
    cost_model = CostModel(load_cost_profile(name).scaled(factor), threshold=THRESHOLD)
    core = Core.create(cost_model, POLICIES["fair"](), Limits())
    engine = Engine(machine(name), seed=seed, noise=0.1)
    Simulation(engine, core, Options(bytes_a_token(seed), tells_times=tells_times)).run(requests)
    return cost_model


def bytes_a_token(seed: int) -> float:
    return 2.7 + 0.3 * seed


def off(name: str, new: Callable[[int], CostModel]) -> Off:
    seconds, tokens = [], []
    for seed in SEEDS:
        cost_model = new(seed)
        asked = [int(2 ** (6 + 8.6 * number / SIZES)) for number in range(SIZES + 1)]
        prices = [cost_model.price([Prompt(PromptSize(words=round(each * bytes_a_token(seed))))]) for each in asked]
        seconds.append([abs(p.seconds / alone(name, n) - 1) for p, n in zip(prices, asked, strict=True)])
        tokens.append([abs(p.tokens / n - 1) for p, n in zip(prices, asked, strict=True)])
    return Off(seconds, tokens)


def row(title: str, found: Off) -> str:
    medians = " ".join(f"{median(errors):.3f}" for errors in found.seconds)
    p95s = " ".join(f"{percentile(errors, 95):.3f}" for errors in found.seconds)
    return (
        f"\n{title:50} median {median(found.all_seconds):.3f} ({medians})   "
        f"p95 {percentile(found.all_seconds, 95):.3f} ({p95s})   tokens {max(map(max, found.tokens)):.3f}"
    )


every_machine = pytest.mark.parametrize("name", ENGINES)


@every_machine
@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("tells_times", [True, False])
def test_prices_are_accurate_after_forty_requests(name: str, factor: float, tells_times: bool) -> None:
    found = off(name, lambda seed: learned(name, factor, seed, 15.0, tells_times=tells_times))
    print(row(f"sparse {name[12:]} x{factor} {'told' if tells_times else ''}", found), end="")
    for errors, tokens in zip(found.seconds, found.tokens, strict=True):
        assert median(errors) <= 0.05
        assert percentile(errors, 95) <= 0.15
        assert max(tokens) <= 0.03


@every_machine
@pytest.mark.parametrize(("factor", "tells_times"), [(2.0, False), (0.5, True)])
@pytest.mark.parametrize("load", ["busy", "sparse, alongside", "busy, alongside"])
def test_concurrent_work_is_not_learned_as_the_prompts_own(
    name: str, factor: float, tells_times: bool, load: str
) -> None:
    """The bounds hold over the five seeds together: the less a sample is its own, the more noise a seed alone has."""
    gap, alongside = 5.0 if "busy" in load else 15.0, "alongside" in load

    def new(seed: int) -> CostModel:
        return learned(name, factor, seed, gap, alongside=alongside, tells_times=tells_times)

    found = off(name, new)
    print(row(f"{load} {name[12:]} x{factor} {'told' if tells_times else ''}", found), end="")
    assert median(found.all_seconds) <= 0.05
    assert percentile(found.all_seconds, 95) <= 0.15
    assert all(median(errors) <= 0.08 and percentile(errors, 95) <= 0.2 for errors in found.seconds)
    assert max(map(max, found.tokens)) <= 0.03


@every_machine
def test_compile_times_and_preemptions_do_not_spoil_the_prices(name: str) -> None:
    """The first prompt takes a minute, then every sixth ten times as long as it should."""
    random = Random(1)

    def new(seed: int) -> CostModel:
        cost_model = learned(name, 2.0, seed, 15.0)
        wrong = CostModel(load_cost_profile(name).scaled(2.0), threshold=THRESHOLD)
        for number, sample in enumerate(cost_model.prefill.regression.samples):
            tokens = int(sample.x[1])
            late = 60.0 if number == 0 else 10 * sample.y if number % 6 == 0 else sample.y
            prompts = [Prompt(PromptSize(words=round(tokens * bytes_a_token(seed))))]
            usage = Usage(tokens, random.randint(20, 300), PromptDetails(0))
            wrong.learn(prompts, wrong.price(prompts), usage, PrefillObservation(late, 0), 0.0)
        return wrong

    found = off(name, new)
    print(row(f"a sixth went wrong {name[12:]}", found), end="")
    assert median(found.all_seconds) <= 0.05
    assert percentile(found.all_seconds, 95) <= 0.15
