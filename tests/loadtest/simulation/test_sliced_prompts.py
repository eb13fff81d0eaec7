"""Sliced prefill in virtual time: what it gains, what it costs, and that it changes nothing else."""

from dataclasses import replace
from typing import TypeVar

import pytest

from gateway.forecasting.speed import EngineSpeed
from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.pricing.curves import PrefillObservation
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Arrived, Event, Finished, SliceDone
from gateway.scheduling.limits import Limits
from gateway.slicing.planner import Slicing
from loadtest.results.office_minute import figures
from loadtest.results.records import Record
from loadtest.simulation.cost_fit import cost_profile
from loadtest.simulation.deployment import Deployment
from loadtest.simulation.pricing import cost_model
from loadtest.simulation.simulation import Simulation
from loadtest.spark.engine import Engine
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.office import office
from loadtest.workloads.plan import Plan, Request
from policies import POLICIES
from policies.base import Job
from policies.fifo import Fifo

BF16, NVFP4 = "gemma-4-26b-bf16", "gemma-4-26b-nvfp4"
MACHINE = load_profile(NVFP4).with_flags(enable_prefix_caching=True)
DOCUMENT = Request(0.0, "ida", "long", 25_000, 20)
QUESTIONS = tuple(Request(0.5 + 2.0 * number, f"user {number}", "short", 700, 40) for number in range(8))

Figures = dict[str, float]
E = TypeVar("E", bound=Event)


def simulate(slicing: Slicing | None, *requests: Request, policy: str = "fair", machine: str = NVFP4) -> list[Record]:
    engine = load_profile(machine).with_flags(enable_prefix_caching=True)
    deployment = Deployment(policy, cost_profile(engine), slicing=slicing)
    return deployment.simulate(Plan(tuple(sorted(requests, key=lambda request: request.at))), engine)


def minute(slicing: Slicing | None, policy: str = "fair") -> Figures:
    return figures(simulate(slicing, *office(0), policy=policy))


class RecordingSpeed(EngineSpeed):
    """Keeps the events that admission was told, each with its time."""

    def __init__(self, model: CostModel) -> None:
        super().__init__(
            lambda tokens: model.profile.decode(tokens),
            model.step,
            prefill_cost=lambda tokens: model.profile.prefill(tokens),
        )
        self.events: list[tuple[float, Event]] = []

    def observe(self, event: Event, dispatched: list[Job], now: float) -> None:
        self.events.append((now, event))
        super().observe(event, dispatched, now)


class RecordedSimulation:
    """A simulated gateway, and which events its admission was told."""

    def __init__(self, slicing: Slicing | None, caching: bool = True) -> None:
        machine = MACHINE.with_flags(enable_prefix_caching=caching)
        model = cost_model("learned", cost_profile(machine), machine)
        self._speed = RecordingSpeed(model)
        core = Core(model, Admission(Fifo(), Limits()), self._speed)
        core.set_slicing(slicing)
        self._simulation = Simulation(Engine(machine), core)

    def run(self, requests: list[Request]) -> list[Record]:
        return self._simulation.run(requests)

    def events(self, kind: type[E]) -> list[tuple[float, E]]:
        """Those of one kind, each with its time."""
        return [(at, event) for at, event in self._speed.events if isinstance(event, kind)]

    def slices(self) -> list[int]:
        """How many slices each sliced job had before its own request."""
        jobs = [event.job for _, event in self.events(SliceDone)]
        return [jobs.count(job) for job in dict.fromkeys(jobs)]


@pytest.mark.parametrize("policy", POLICIES)
def test_slices_shorten_the_wait_of_short_prompts(policy: str) -> None:
    whole, sliced = minute(None, policy), minute(Slicing(), policy)
    assert sliced["failed"] == 0
    assert sliced["short_ttft_p95_s"] < 0.3 * whole["short_ttft_p95_s"]
    assert sliced["itl_p99_s"] < 0.5 * whole["itl_p99_s"]
    assert sliced["long_ttft_p50_s"] < 1.6 * whole["long_ttft_p50_s"]


def test_slices_beat_the_engines_best_flag_without_delaying_long_prompts() -> None:
    flagged = MACHINE.with_flags(long_prefill_token_threshold=512)
    flag = figures(Deployment("direct").simulate(Plan(tuple(office(0))), flagged))
    paced = minute(Slicing(long_share=0.9))
    assert paced["long_ttft_p50_s"] < flag["long_ttft_p50_s"]
    assert paced["short_ttft_p95_s"] < flag["short_ttft_p95_s"] / 4
    assert paced["short_e2e_p50_s"] < flag["short_e2e_p50_s"]


def test_a_pace_trades_long_prompts_for_short_ones() -> None:
    paces = [minute(Slicing(long_share=share)) for share in (1.0, 0.7, 0.4)]
    for name in ("short_e2e_p50_s", "short_tpot_p50_ms"):
        fast, middling, slow = (pace[name] for pace in paces)
        assert slow < 0.8 * middling < 0.8 * 0.8 * fast
    fast, middling, slow = (pace["long_ttft_p50_s"] for pace in paces)
    assert fast < middling < slow


def test_the_inter_token_target_is_met_beside_a_long_document() -> None:
    """About: that a slice begins in the midst of a step of theirs is not in the rule."""
    stream, target = Request(0.0, "ada", "short", 200, 400), 0.1

    def gap(wanted: float | None) -> float:
        """Seconds a token, while the document is prefilled."""
        streamed, document = simulate(Slicing(tpot_target=wanted), stream, replace(DOCUMENT, at=1.0))
        tokens = [at for at in streamed.tokens if 1.0 < at < document.first_token]
        return (tokens[-1] - tokens[0]) / (len(tokens) - 1)

    assert 0.7 * target < gap(target) < 1.2 * target < gap(None)


@pytest.mark.parametrize("machine", [BF16, NVFP4, "gemma-4-31b-bf16"])
def test_slices_of_a_lone_prompt_cost_little(machine: str) -> None:
    (whole,), (sliced,) = (simulate(slicing, DOCUMENT, machine=machine) for slicing in (None, Slicing()))
    assert whole.ttft < sliced.ttft <= 1.05 * whole.ttft


def test_a_lone_prompt_has_few_slices_and_no_pause() -> None:
    for share in (1.0, 0.3):
        simulation = RecordedSimulation(Slicing(long_share=share))
        (record,) = simulation.run([DOCUMENT])
        assert simulation.slices() == [3]
        assert record.ttft < 8


def test_without_a_prefix_cache_nothing_is_sliced() -> None:
    simulation = RecordedSimulation(Slicing(), caching=False)
    records = simulation.run([DOCUMENT, *QUESTIONS])
    assert simulation.slices() == []
    assert all(record.completed for record in records)
    assert simulation.run([DOCUMENT])[0].ttft == simulate(None, DOCUMENT)[0].ttft


def test_a_sliced_prompt_is_counted_and_charged_like_a_whole_one() -> None:
    """A document that others have begun, too: its beginning is cached, and the rest is not free."""
    first = replace(DOCUMENT, prompt_tokens=12_000, system="handbook", system_tokens=8000)
    second = replace(first, at=30.0)
    found = {}
    for name, slicing in (("whole", None), ("sliced", Slicing())):
        simulation = RecordedSimulation(slicing)
        records = simulation.run([first, second, *(replace(each, at=each.at + 29) for each in QUESTIONS)])
        tokens = [(each.prompt_tokens, each.cached_tokens, each.output_tokens, len(each.tokens)) for each in records]
        charged = [event.cost_s for _, event in simulation.events(Finished) if event.job.lane == "long"]
        found[name] = tokens, charged, simulation.slices()
    assert found["whole"][0] == found["sliced"][0]
    assert found["sliced"][0][1][:2] == (20_000, 8000)
    assert found["sliced"][1] == pytest.approx(found["whole"][1], rel=0.05)
    assert (found["whole"][2], len(found["sliced"][2])) == ([], 2)


def test_cached_prefixes_are_not_sliced() -> None:
    simulation = RecordedSimulation(Slicing())
    again = Request(30.0, "ida", "long", 2100, 20, after=(0,), continues=0)
    simulation.run([replace(DOCUMENT, prompt_tokens=5000), again])
    assert len(simulation.slices()) == 1
    _, (_, second) = simulation.events(Arrived)
    assert second.slice is None


def test_the_pause_ends_when_no_request_decodes() -> None:
    """It would be nine times as long as the slice; the only stream ends before."""
    stream = Request(0.0, "ada", "short", 200, 30)
    simulation = RecordedSimulation(Slicing(long_share=0.01))
    answered, document = simulation.run([stream, replace(DOCUMENT, at=0.5)])
    assert answered.ended is not None
    done = [at for at, _ in simulation.events(SliceDone)]
    assert done[0] == pytest.approx(answered.ended)
    assert document.first_token - answered.ended < 1.1 * document.request.prompt_tokens / 25_000 * 7.6


def test_a_pausing_job_keeps_its_lane() -> None:
    """No other document begins meanwhile."""
    stream = Request(0.0, "ada", "short", 200, 300)
    simulation = RecordedSimulation(Slicing(long_share=0.5))
    documents = [replace(DOCUMENT, at=at, user=user) for at, user in ((0.5, "ida"), (0.6, "jon"))]
    simulation.run([stream, *documents])
    began = [event.job.flow for _, event in simulation.events(SliceDone)]
    assert began == sorted(began)


def test_the_curve_learns_from_slices() -> None:
    """A gateway that believed another machine prices the next document right."""
    machine = load_profile(BF16).with_flags(enable_prefix_caching=True)
    model = cost_model("learned", cost_profile(MACHINE).scaled(2.0), machine)
    simulation = Simulation(Engine(machine), Core.create(model, Fifo(), Limits(), Slicing()))
    simulation.run([replace(DOCUMENT, at=20.0 * number) for number in range(4)])
    assert model.profile.prefill(25_000) == pytest.approx(cost_profile(machine).prefill(25_000), rel=0.05)
    assert not model.learn_slice(8000, 4000, None, None)
    assert not model.learn_slice(8000, None, PrefillObservation(1.0, 0), 0.0)
