"""How true the forecasts are: said in the simulator, with 15 % noise on every step and a wrong cost profile.

The instant is the first token, in seconds from when the forecast was made; only waits longer than 2 s count, by what
they came to. `pytest -s` prints the table. Everything is learned in the run itself, from nothing.

    burst   a few minutes of office, then a flood in a second, then nobody: said of all that wait when the last has come
    going   a quarter of an hour of arrivals: said of each that waits, when it arrives
"""

from collections.abc import Callable
from itertools import cycle
from random import Random
from typing import Literal, NamedTuple

import pytest

from gateway.forecasting.outlook import Eta, forecast
from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.scheduling.limits import Limits
from gateway.storage.profile_file import load as load_cost_profile
from loadtest.results.records import percentile
from loadtest.simulation.simulation import Options, Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.plan import Request
from policies import POLICIES
from policies.base import Job

ENGINE = "gemma-4-26b-bf16"
WRONG = {
    "other precision": load_cost_profile("gemma-4-26b-nvfp4"),
    "1.5x": load_cost_profile(ENGINE).scaled(1.5),
    "1/1.5x": load_cost_profile(ENGINE).scaled(1 / 1.5),
}
A_WAIT_S = 2.0
Size = tuple[int, int]
QUESTION, PROMPT, DOCUMENT = (200, 1900), (3000, 9000), (15_000, 25_000)


class Load(NamedTuple):
    arrivals: list[Request]
    limits: Limits = Limits()
    policy: str = "fair"
    threshold: int = 0  # the engine's --long-prefill-token-threshold


class Said(NamedTuple):
    eta: Eta
    came: float  # seconds from when it was said


def stream(random: Random, rate: float, until: float, size: Size, users: int = 8) -> list[Request]:
    arrivals, at = [], random.expovariate(rate)
    while at < until:
        arrivals.append(arrival(random, at, size, users))
        at += random.expovariate(rate)
    return arrivals


def flood(random: Random, at: float, jobs: int, size: Size, users: int) -> list[Request]:
    return [arrival(random, at + random.random(), size, users) for _ in range(jobs)]


def arrival(random: Random, at: float, size: Size, users: int) -> Request:
    kind = "short" if size is QUESTION else "long"
    return Request(at, f"{kind}{random.randrange(users)}", kind, random.randint(*size), random.randint(100, 400))


def burst(seed: int, jobs: int, size: Size, users: int, rate: float, seats: int = 256, threshold: int = 0) -> Load:
    """Two small floods before the large one, so that there was something to learn from."""
    random = Random(seed)
    office = stream(random, rate, 240.0, QUESTION)
    floods = [(20.0, jobs // 4), (110.0, jobs // 4), (240.0, jobs)]
    arrivals = [each for at, some in floods for each in flood(random, at, some, size, users)]
    return Load(office + arrivals, Limits(max_num_seqs=seats), threshold=threshold)


def seats_going(seed: int) -> Load:
    return Load(stream(Random(seed), 0.3, 900.0, QUESTION), Limits(max_num_seqs=8))


def documents_going(seed: int) -> Load:
    random = Random(seed)
    return Load(stream(random, 0.2, 900.0, QUESTION) + stream(random, 0.11, 900.0, (4000, 25_000), 4))


def floods_going(seed: int) -> Load:
    random = Random(seed)
    office = stream(random, 0.25, 900.0, QUESTION) + stream(random, 0.03, 900.0, (4000, 25_000), 4)
    floods = [
        each
        for _ in range(12)
        for each in flood(random, random.uniform(40, 840), random.randint(2, 8), (4000, 20_000), 1)
    ]
    return Load(office + floods, Limits(max_num_seqs=16))


Counts = Literal["none", "long"]


def says(load: Load, wrong: str, seed: int, *, going: bool, counts: Counts = "none") -> list[Said]:
    """Run it; what was said of those that waited, and what came. Prompts are estimated, unless they are counted."""
    arrivals = sorted(load.arrivals, key=lambda each: each.at)
    shares_steps = load.threshold > 0
    core = Core.create(CostModel(WRONG[wrong]), POLICIES[load.policy](), load.limits, shares_steps=shares_steps)
    progress = core.speed.progress
    jobs: list[Job] = []
    said: list[tuple[int, float, Eta]] = []

    def watch(now: float, job: Job) -> None:
        jobs.append(job)
        if not going and len(jobs) < len(arrivals):
            return
        asking = [each for each in ([job] if going else jobs) if each in progress]
        waiting = [each for each in asking if progress[each].dispatched_at is None]
        if not waiting:
            return
        outlook = forecast(core.admission, now, core.speed)
        for each in waiting:
            core.speed.promise(each, now, outlook.medians(each))
            said.append((jobs.index(each), now, outlook.first_token(each)))

    profile = load_profile(ENGINE).with_flags(long_prefill_token_threshold=load.threshold)
    engine = Engine(profile, seed=seed, noise=0.15)
    records = Simulation(engine, core, Options(watch=watch, counts=counts)).run(arrivals)
    all_said = [Said(eta, records[index].first_token - now) for index, now, eta in said]
    return [each for each in all_said if each.came > A_WAIT_S]


def within(said: list[Said], share: float = 0.25) -> float:
    return sum(abs(each.eta.median - each.came) <= share * each.came for each in said) / len(said)


def covered(said: list[Said]) -> float:
    return sum(each.came <= each.eta.p90 for each in said) / len(said)


def row(name: str, wrong: str, said: list[Said]) -> str:
    ratios = [each.came / each.eta.median for each in said if each.eta.median]
    spread = "/".join(f"{percentile(ratios, q):.2f}" for q in (10, 50, 90))
    mean = sum(each.came for each in said) / len(said)
    return (
        f"\n{name:24} {wrong:16} {len(said):5} waits of {mean:6.1f} s   within 25 %: {within(said):.3f}   "
        f"came/said p10/50/90: {spread}   under p90: {covered(said):.3f}"
    )


NewLoad = Callable[[int], Load]

# Name, load, seeds, the least share within 25 %.
BURSTS: dict[str, tuple[NewLoad, int, float]] = {
    "documents": (lambda seed: burst(seed, 16, DOCUMENT, 2, 0.5), 14, 0.9),
    "long prompts": (lambda seed: burst(seed, 40, PROMPT, 2, 0.5), 6, 0.9),
    "long prompts, 8 users": (lambda seed: burst(seed, 40, PROMPT, 8, 0.5), 6, 0.9),
    "long prompts, threshold": (lambda seed: burst(seed, 40, PROMPT, 2, 0.5, threshold=2560), 6, 0.9),
    "questions, 8 seats": (lambda seed: burst(seed, 80, QUESTION, 2, 0.3, seats=8), 6, 0.85),
    "same, fifo": (lambda seed: burst(seed, 80, QUESTION, 2, 0.3, seats=8)._replace(policy="fifo"), 6, 0.9),
    # Which of eight flows is next hangs on how long the answers in flight turn out, and nobody knows that: with the
    # lengths told, it is 0.99.
    "same, 8 users": (lambda seed: burst(seed, 80, QUESTION, 8, 0.3, seats=8), 6, 0.75),
}
GOING: dict[str, tuple[NewLoad, int]] = {
    "documents": (documents_going, 6),
    "questions, 8 seats": (seats_going, 5),
    "floods, 16 seats": (floods_going, 4),
}


@pytest.mark.parametrize(("name", "wrong"), list(zip(BURSTS, cycle(WRONG), strict=False)))
def test_without_later_arrivals_the_median_forecast_is_accurate(name: str, wrong: str) -> None:
    new_load, seeds, share = BURSTS[name]
    said = [each for seed in range(seeds) for each in says(new_load(seed), wrong, seed, going=False)]
    print(row(name, wrong, said), end="")
    assert within(said) >= share


def test_the_median_forecast_is_accurate_where_prompts_are_counted() -> None:
    """A little less than with estimates, whose errors hide that short prompts beside a long one make its lane look
    faster than it is (0.86 was measured)."""
    new_load, seeds, _ = BURSTS["long prompts"]
    said = [each for seed in range(seeds) for each in says(new_load(seed), "1.5x", seed, going=False, counts="long")]
    print(row("long prompts, counted", "1.5x", said), end="")
    assert within(said) >= 0.8


@pytest.mark.parametrize(("name", "wrong"), list(zip(GOING, cycle(["other precision", "1.5x"]), strict=False)))
def test_with_continuing_arrivals_the_90th_percentile_holds(name: str, wrong: str) -> None:
    new_load, seeds = GOING[name]
    said = [each for seed in range(seeds) for each in says(new_load(seed), wrong, seed, going=True)]
    print(row(name, wrong, said), end="")
    assert len(said) >= 200
    assert 0.85 <= covered(said) <= 0.95
