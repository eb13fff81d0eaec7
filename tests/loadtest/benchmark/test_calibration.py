"""`fairlane calibrate` at a simulated Spark on real sockets whose true curve is known, and the use of its result."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from gateway.engine import monitor as gateway_engine
from gateway.pricing.cost_model import CostModel
from gateway.pricing.curves import PrefillSample
from gateway.pricing.profile import Profile
from gateway.pricing.prompt import Prompt, PromptSize
from gateway.pricing.snapshot import CostSnapshot
from gateway.storage.profile_file import load
from loadtest.benchmark import engine_probe, ladder
from loadtest.benchmark.calibration import Calibration
from loadtest.cli.main import app
from loadtest.results.records import Outcome, Record
from loadtest.runs.probe import ServerError
from loadtest.spark.engine import prefill_alone
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.plan import Request
from tests.support.running_gateway import StartGateway
from tests.support.servers import serve
from tests.support.waiting import DEADLINE, wait_until
from tests.support.wire import chat

BF16, NVFP4 = "gemma-4-26b-bf16", "gemma-4-26b-nvfp4"
SPEED = 5.0  # at a greater one what our own sockets take would be a good part of a short prompt
SECONDS = 4.0
SIZES = (256, 1000, 4000, 16_000, 25_000)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


@pytest.fixture
def bf16() -> Iterator[str]:
    """A Spark as noisy as a real one is at its worst."""
    with serve(create_app(load_profile(BF16), ServerOptions(speed=SPEED, noise=0.1))) as url:
        yield url


@pytest.fixture
def quick() -> Iterator[str]:
    """Another that is done with anything at once."""
    with serve(create_app(load_profile(BF16), ServerOptions(speed=200.0, noise=0.0))) as url:
        yield url


def calibrate(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["calibrate", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def off(learned: Profile, machine: str, speed: float = SPEED) -> float:
    """The median error of the curve, by the machine's own."""
    engine = load_profile(machine)
    return median(abs(learned.prefill(size) * speed / prefill_alone(engine, size) - 1) for size in SIZES)


def step_off(learned: Profile, machine: str) -> float:
    """The median error of the time of a decoding step."""
    engine = load_profile(machine)
    true = {many: engine.step_s(engine.mixed_work(decoding=many, context=50 * many)) / SPEED for many in (1, 2, 5, 10)}
    return median(abs((learned.step(many) or 0.0) / step - 1) for many, step in true.items())


def kept(path: Path) -> Profile:
    learned = CostSnapshot.read(path.read_bytes())
    model = CostModel(learned.profile)
    learned.apply_to(model)
    return model.profile


# What it learns.


@pytest.mark.parametrize(("machine", "factor"), [(BF16, 2.0), (BF16, 0.5), (NVFP4, 2.0)])
def test_a_prior_that_is_off_by_a_factor_of_two_is_corrected(machine: str, factor: float, tmp_path: Path) -> None:
    start, out = tmp_path / "start.toml", tmp_path / "my machine.toml"
    start.write_text(load(machine).scaled(factor / SPEED).toml("start"))
    assert off(load(str(start)), machine) > 0.4
    state = tmp_path / "learned.json"
    with serve(create_app(load_profile(machine), ServerOptions(speed=SPEED, noise=0.1))) as url:
        said = calibrate(
            *("--upstream", url, "--profile", str(start), "--seconds", str(SECONDS)),
            *("--state-file", str(state), "--out", str(out)),
        )
    # The measured times include what else this machine does; test_curves.py bounds the error on a virtual clock.
    before = off(load(str(start)), machine)
    assert off(kept(state), machine) < before / 2
    assert "[my-machine]" in out.read_text()
    assert off(load(str(out)), machine) < before / 2
    assert step_off(load(str(out)), machine) < step_off(load(str(start)), machine)
    assert f"Kept in {state}" in said
    assert "answers at once" in said
    assert "median error" in said


def test_a_calibrated_gateway_predicts_its_first_request_well(bf16: str, start_gateway: StartGateway) -> None:
    said = calibrate("--upstream", bf16, "--profile", BF16, "--seconds", str(SECONDS))
    gateway = start_gateway(bf16, state_file="auto")
    wait_until(lambda: gateway.gateway.core.max_model_len)
    wait_until(lambda: gateway.metric("fairlane_samples", of="prefill") > 0)
    text = "Nobody answered for the letters on Tuesday. " * 1000
    asked = gateway.ask(chat(text, model=BF16, stream=True, max_tokens=1))
    predicted = float(asked.header("x-fairlane-cost-s") or 0)
    asked.read()
    gateway.wait_ended("completed")
    tokens = gateway.metric("fairlane_prompt_tokens_total")
    true, uncalibrated = prefill_alone(load_profile(BF16), int(tokens)) / SPEED, load(BF16).prefill(tokens)
    assert 0.8 * true < predicted < uncalibrated / 3  # a busy machine only makes it larger
    assert "takes it over within a minute" in " ".join(said.split())


def test_calibration_prompts_miss_the_prefix_cache() -> None:
    machine = load_profile(BF16).with_flags(enable_prefix_caching=True)
    calibration = Calibration(CostModel(load(BF16).scaled(1 / 50)))
    with serve(create_app(machine, ServerOptions(speed=50.0, noise=0.0))) as url:
        for _ in range(2):
            measured_by(url, calibration, 2.0)
        hits = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if "prefix_cache_hits_total{" in line]
    assert [trial.cached for trial in calibration.trials] == [0] * len(calibration.trials)
    assert float(hits[0].split()[-1]) < 500  # the warm-up's, and what was counted


def measured_by(url: str, calibration: Calibration, seconds: float) -> list[str]:
    said: list[str] = []

    async def run() -> None:
        target = await engine_probe.find(url, None)
        await engine_probe.calibrate(target, calibration, seconds, most_streams=4, say=said.append)

    anyio.run(run)
    return said


def test_prompts_stop_at_the_models_context_length(quick: str) -> None:
    machine = load_profile(BF16).with_flags(max_model_len=4096)
    calibration = Calibration(CostModel(load(BF16).scaled(1 / 200)))
    with serve(create_app(machine, ServerOptions(speed=200.0, noise=0.0))) as url:
        said = measured_by(url, calibration, 5.0)  # it ends as soon as it has measured everything
    largest = calibration.sizes[-1]
    assert 3600 < largest.tokens <= 4096
    assert largest.times == ladder.REPEATS
    assert said[1].startswith("warm-up")
    assert [step.sequences for step in calibration.steps] == [1, 4]


def test_time_in_the_engines_own_queue_is_not_measured() -> None:
    """As where others' prompts are before ours, and vLLM tells how long that was."""
    calibration = Calibration(CostModel(load(BF16)))
    prompts = (Prompt(PromptSize(words=6000)),)
    record = Record(Request(0.0, "u", "k", 1500, 1), tokens=[2.5], sent=0.5, outcome=Outcome.COMPLETED)
    record.prompt_tokens, record.output_tokens, record.cached_tokens, record.queue = 1500, 1, 500, 1.0
    assert calibration.prompt(1500, prompts, record)
    assert calibration.trials[0].seconds == pytest.approx(1.0)
    (sample,) = calibration.model.prefill.regression.samples
    assert list(sample.x) == [1.0, 1000, 1500**2 - 500**2, 0]
    assert sample.y == pytest.approx(1.0)


def test_nothing_is_learned_from_answers_without_usage() -> None:
    calibration = Calibration(CostModel(load(BF16)))
    prompts = (Prompt(PromptSize(words=6000)),)
    counts: list[int | None] = [None, 7]
    for counted in counts:
        record = Record(Request(0.0, "u", "k", 1500, 1), tokens=[1.0], sent=0.5, prompt_tokens=counted)
        assert not calibration.prompt(1500, prompts, record)


def test_step_times_are_measured_while_all_streams_run() -> None:
    def stream(first: float, per_token: float, chunk: int = 1) -> Record:
        tokens = [first + per_token * chunk * number for number in range(20 // chunk)]
        return Record(Request(0.0, "u", "k", 32, 20), tokens=tokens, output_tokens=20, outcome=Outcome.COMPLETED)

    calibration = Calibration(CostModel(load(BF16)))
    calibration.streams([stream(0.0, 0.1), stream(0.3, 0.1)])
    calibration.streams([stream(0.0, 0.05, chunk=2)] * 4)
    calibration.streams([stream(0.0, 0.1), stream(5.0, 0.1)] * 4)  # never together
    calibration.streams([stream(0.0, 0.0)] * 16)  # all at one instant
    assert {step.sequences: step.seconds for step in calibration.steps} == pytest.approx({2: 0.1, 4: 0.05})


# Which prompts.


def climb(most: int, seconds: float, cost: Callable[[float], float], predict: Callable[[float], float]) -> list[int]:
    prompts, sizes = ladder.Prompts(most), []
    while size := prompts.next(seconds, predict):
        sizes.append(size)
        prompts.took(size, cost(size))
        seconds -= cost(size)
    return sizes


def test_prompts_grow_and_are_repeated() -> None:
    curve = load(BF16).prefill
    sizes = climb(100_000, 13.0, curve, curve)
    largest = max(sizes)
    assert sizes[:4] == [128, 512, 2048, 8192]
    assert 10_000 < largest < 20_000
    assert all(sizes.count(size) > 1 for size in sizes)
    assert sum(map(curve, sizes)) < 13.0


def test_a_much_too_fast_prediction_does_not_exceed_the_time() -> None:
    slow = load(BF16).scaled(20).prefill
    sizes = climb(100_000, 60.0, slow, load(BF16).prefill)
    assert sum(map(slow, sizes)) < 70


def test_calibration_of_a_fast_machine_ends_early() -> None:
    sizes = climb(30_000, 1e6, lambda size: 1e-6 * size, lambda size: 1e-6 * size)
    assert max(sizes) == 30_000
    assert all(sizes.count(size) == ladder.REPEATS for size in sizes)


def test_at_least_one_prompt_is_measured() -> None:
    assert climb(30_000, 0.1, lambda size: 100.0, lambda size: 100.0) == [ladder.FIRST_TOKENS]


def test_a_refused_size_is_not_asked_again() -> None:
    prompts = ladder.Prompts(100_000)
    prompts.took(128, 0.1)
    prompts.refused(512)
    assert prompts.next(100.0, lambda size: 0.1) == 128


def test_the_number_of_streams_grows_and_is_repeated() -> None:
    done: list[int] = []
    left = 17.0
    while many := ladder.streams(done, left, 256, lambda sequences: 1.0 + 0.1 * sequences):
        done.append(many)
        left -= 1.0 + 0.1 * many
    assert done[:4] == [1, 4, 16, 64]
    assert done[4:] == [1, 4]
    assert ladder.streams([1, 4], 20.0, 4, lambda sequences: 1.0) == 1
    assert ladder.streams([1, 4] * ladder.STREAM_REPEATS, 20.0, 2, lambda sequences: 1.0) is None
    assert ladder.streams([], -1.0, 256, lambda sequences: 1.0) == 1


def test_a_prior_of_another_kind_of_machine_is_corrected() -> None:
    """One with attention so dear, beside all else, that the samples of long prompts look like mistakes."""
    true = Profile(c_s=0.02, a_s_per_token=6e-5, b_s_per_token2=3.7e-8, decode_s_per_token=0.001)
    model = CostModel(load(BF16))
    for number, tokens in enumerate((128, 512, 2048, 8192) * 3):
        model.prefill.observe(PrefillSample(tokens, 0, true.prefill(tokens) * (0.97 + 0.02 * (number % 4)), None, 0))
    for tokens in SIZES:
        assert model.profile.prefill(tokens) == pytest.approx(true.prefill(tokens), rel=0.1)


# Where it is kept.


def test_calibration_keeps_what_was_learned_about_texts(quick: str, tmp_path: Path) -> None:
    state = tmp_path / "learned.json"
    calibrate("--upstream", quick, "--seconds", "1", "--state-file", str(state))
    first = json.loads(state.read_bytes())
    assert first["engine"] == f"{BF16} on vLLM 0.32.0+simulated"
    real = [[5120, 80, 0, 2, 1303]]
    state.write_text(json.dumps(first | {"tokens": real, "answers": [0.5], "prefill": [[1, 10, 100, 0, 9.9]]}))
    calibrate("--upstream", quick, "--seconds", "1", "--state-file", str(state))
    second = json.loads(state.read_bytes())
    assert (second["tokens"], second["answers"]) == (real, [0.5])
    assert [1, 10, 100, 0, 9.9] not in second["prefill"]
    state.write_text(json.dumps(second | {"engine": "another on vLLM 1"}))
    calibrate("--upstream", quick, "--seconds", "1", "--state-file", str(state))
    third = json.loads(state.read_bytes())
    assert third["engine"] == first["engine"]
    assert third["tokens"] != real


def test_a_broken_state_file_is_replaced(quick: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "learned.json"
    state.write_text("{")
    calibrate("--upstream", quick, "--seconds", "1", "--state-file", str(state))
    assert "cannot be used" in caplog.text
    assert kept(state).c_s > 0


def test_an_unwritable_state_file_is_an_error_after_the_figures(quick: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    state = tmp_path / "file" / "learned.json"
    said = calibrate("--upstream", quick, "--seconds", "1", "--state-file", str(state), code=2)
    assert "median error" in said
    assert f"{state} cannot be written" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_state_file_written_by_root_belongs_to_the_folders_owner(quick: str, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    os.chown(folder, 12_345, 12_346)
    calibrate("--upstream", quick, "--seconds", "1", "--state-file", str(folder / "learned.json"))
    kept_by = (folder / "learned.json").stat()
    assert (kept_by.st_uid, kept_by.st_gid) == (12_345, 12_346)


def test_the_result_may_be_kept_nowhere(quick: str, tmp_path: Path) -> None:
    said = calibrate("--upstream", quick, "--seconds", "1", "--state-file", "off")
    assert "state_file is off" in said
    assert list(tmp_path.iterdir()) == []


def test_a_running_gateway_adopts_a_calibration(
    quick: str, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_engine, "KEEP", 0.05)
    gateway = start_gateway(quick, state_file="auto")
    wait_until(lambda: gateway.gateway.core.max_model_len)
    gateway.post(chat("Who carried the ledger?", model=BF16, max_tokens=2))
    assert gateway.metric("fairlane_samples", of="prefill") <= 1
    calibrate("--upstream", quick, "--seconds", "1")
    wait_until(lambda: gateway.metric("fairlane_samples", of="prefill") > 5)
    assert gateway.gateway.core.cost_model.profile.prefill(25_000) < load(BF16).prefill(25_000) / 20


def test_a_gateway_that_stops_does_not_overwrite_a_calibration(
    quick: str, start_gateway: StartGateway, tmp_path: Path
) -> None:
    state = tmp_path / "learned.json"
    gateway = start_gateway(quick, state_file=state)
    wait_until(lambda: gateway.gateway.core.max_model_len)
    gateway.post(chat("Who carried the ledger?", model=BF16, max_tokens=2))
    calibrate("--upstream", quick, "--seconds", "1", "--state-file", str(state))
    written = state.read_bytes()
    gateway.stop()
    assert state.read_bytes() == written


# What can go wrong.


def test_other_users_of_the_engine_are_reported(bf16: str) -> None:
    with httpx.stream(
        "POST", f"{bf16}/v1/chat/completions", json=chat(model=BF16, stream=True, max_tokens=10_000), timeout=DEADLINE
    ) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        said = calibrate("--upstream", bf16, "--seconds", "1", "--state-file", "off")
    assert "Others use the engine, 1 at this moment" in said


def fake(
    models: Any = None, status: int = 200, metrics: str = "", answers: Callable[[], Response] = Response
) -> Starlette:
    """What is no vLLM, or none that can be measured."""

    async def listed(request: Any) -> Response:
        return JSONResponse(models, status)

    async def measured(request: Any) -> Response:
        return PlainTextResponse(metrics)

    async def answered(request: Any) -> Response:
        return answers()

    return Starlette(
        routes=[
            Route("/v1/models", listed),
            Route("/metrics", measured),
            Route("/v1/chat/completions", answered, methods=["POST"]),
        ]
    )


CARD = {"data": [{"id": "m", "max_model_len": 8192}]}


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (fake({}, 401), "wants an API key, and got none"),
        (fake({"data": []}), "lists no model"),
        (fake({"data": [{"id": "m", "max_model_len": 512}]}), "takes 512 tokens at the most"),
        (fake(CARD, metrics="# \nfairlane_seats 0\n"), "is a Fairlane"),
        (fake(CARD, answers=lambda: JSONResponse({"error": {"message": "no"}}, 500)), "http error, 500 no"),
        (
            fake(
                CARD,
                answers=lambda: JSONResponse(
                    {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}, 200
                ),
            ),
            "counts no tokens",
        ),
    ],
)
def test_an_unsuitable_server_is_reported(server: Starlette, said: str) -> None:
    with serve(server) as url:
        told = calibrate("--upstream", url, "--seconds", "1", code=2)
    assert said in told
    assert told.splitlines()[-1].startswith("fairlane: ")


def test_a_refused_key_is_reported() -> None:
    with serve(fake({}, 401)) as url:
        assert "not this one" in calibrate("--upstream", url, "--set", "upstream_key=wrong", code=2)


def test_an_unreachable_server_is_reported() -> None:
    told = calibrate("--upstream", "http://127.0.0.1:9", code=2)
    assert told == "fairlane: The engine at http://127.0.0.1:9 cannot be reached. Does vLLM run, and there?\n"


def test_settings_of_a_public_gateway_are_accepted(quick: str, tmp_path: Path) -> None:
    """Its keys may be in the environment of a service, which is not ours."""
    file = tmp_path / "fairlane.toml"
    file.write_text(f'upstream = "{quick}"\nhost = "0.0.0.0"\n')
    assert "Kept in" in calibrate("--config", str(file), "--seconds", "1")


def test_an_unknown_profile_is_reported(quick: str) -> None:
    assert "no profile 'h100'" in calibrate("--upstream", quick, "--profile", "h100", code=2)


def test_too_little_time_is_reported() -> None:
    with serve(create_app(load_profile(BF16), ServerOptions(speed=0.5, noise=0.0))) as url:
        assert "give it more --seconds" in calibrate("--upstream", url, "--seconds", "1", code=2)


def test_an_engine_is_measured_up_to_the_first_refused_size() -> None:
    """vLLM refuses a prompt that is too long with 400."""
    machine = load_profile(BF16).with_flags(max_model_len=4096)
    calibration = Calibration(CostModel(load(BF16).scaled(1 / 200)))
    with serve(create_app(machine, ServerOptions(speed=200.0, noise=0.0))) as url:

        async def run() -> None:
            found = await engine_probe.find(url, None)
            served = type(found.served)(found.served.name, dict.fromkeys(found.served.lengths))
            await engine_probe.calibrate(engine_probe.Target(url, None, served), calibration, 1.0, most_streams=1)

        anyio.run(run)
    assert calibration.sizes[-1].tokens < 4096


def test_any_other_failure_ends_the_calibration() -> None:
    target = engine_probe.Target("http://127.0.0.1:9", None, gateway_engine.Served("m", {"m": None}))
    record = Record(Request(0.0, "u", "k", 512, 1), outcome=Outcome.UNAVAILABLE, detail="full")
    with pytest.raises(ServerError, match="does not answer a prompt of 512 tokens: unavailable, full"):
        engine_probe.EngineProbe(target, 1.0).check_goes_on(512, record)


def prompts_served(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{"))


def test_an_interrupt_shows_the_measurements_and_keeps_nothing(bf16: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest", "calibrate", "--upstream", bf16, "--seconds", "60"]
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: prompts_served(bf16) >= 4, 90)  # now it measures
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=2 * DEADLINE)
    assert process.returncode == 130, said
    assert "interrupted: nothing is kept" in said
    assert "measured" in said
    assert not (tmp_path / "state").exists()
