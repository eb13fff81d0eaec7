"""What a calibration makes a gateway know of a real vLLM: what prompts cost, and what of them is cached."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.pricing.cost_model import CostModel
from gateway.pricing.snapshot import CostSnapshot
from gateway.telemetry import semconv
from loadtest.cli.main import app
from tests.support.running_gateway import RunningGateway, StartGateway
from tests.support.tiny_model import words
from tests.support.vllm import MODEL, Vllm
from tests.support.waiting import wait_until

# What vLLM was started with (conftest.py).
ENGINE = {"step_tokens": 512, "long_prefill_threshold": 256}
FLAGS = [each for key, value in ENGINE.items() for each in ("--set", f"engine.{key}={value}")]
SECONDS = 15
REQUESTS = 30
TURNS, CHATS = 5, 8

pytestmark = pytest.mark.timeout(240, func_only=True)


@pytest.fixture(scope="module")
def calibrated(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state file. The start is a DGX Spark's, which this machine is not."""
    path = tmp_path_factory.mktemp("calibrated") / "learned.json"
    arguments = ["--upstream", vllm.url, "--seconds", str(SECONDS), "--state-file", str(path), *FLAGS]
    ours = {"FAIRLANE_VLLM_PYTHON": None}  # the tests', and no setting
    done = CliRunner().invoke(app, ["calibrate", *arguments], env=ours)
    print(done.output)
    assert done.exit_code == 0
    return path


@pytest.fixture
def gateway(vllm: Vllm, calibrated: Path, tmp_path: Path, start_gateway: StartGateway) -> RunningGateway:
    state = tmp_path / "learned.json"
    state.write_bytes(calibrated.read_bytes())
    settings: dict[str, Any] = {"tokenizer": "engine", "engine": ENGINE}
    gateway = start_gateway(vllm.url, state_file=state, trace_file=tmp_path / "spans.jsonl", **settings)
    wait_until(lambda: gateway.metric("fairlane_samples", of="prefill") > 0)
    wait_until(lambda: gateway.metric("fairlane_engine_metrics_up") == 1)
    return gateway


def test_the_calibrated_curve_matches_the_engine(calibrated: Path, vllm: Vllm) -> None:
    learned = CostSnapshot.read(calibrated.read_bytes())
    model = CostModel(learned.profile)
    learned.apply_to(model)
    errors = sorted(map(abs, model.prefill.regression.errors()))
    assert len(errors) >= 8
    assert median(errors) < 0.2  # two cores that have other work make noise of that size
    longest = max(sample.x[1] for sample in model.prefill.regression.samples)
    assert longest > 2000
    assert model.step.regression.samples


def test_prompts_take_the_predicted_time(gateway: RunningGateway, tmp_path: Path) -> None:
    """Most of them one by one, two of each length: what these two differ by, nobody can predict."""
    random = Random(5)
    lengths = [int(30 * 200 ** random.random()) for _ in range(REQUESTS)]
    pairs = REQUESTS // 3
    lengths[1 : 2 * pairs : 2] = lengths[0 : 2 * pairs : 2]

    def ask(number: int) -> None:
        text = words(lengths[number], seed=1000 + number)
        assert gateway.post(asked([{"role": "user", "content": text}], 2 + number % 20)).status_code == 200

    for number in range(2 * pairs):
        ask(number)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, range(2 * pairs, REQUESTS)))
    gateway.wait_ended("completed", REQUESTS)
    error = gateway.metric("fairlane_prediction_error", what="prefill", quantile="0.5")
    tokens = gateway.metric("fairlane_prediction_error", what="tokens", quantile="0.5")
    spans = served(gateway, tmp_path)[: 2 * pairs]
    observed = [span.get(semconv.OBSERVED_PREFILL, 0.0) for span in spans]
    off = [span[semconv.PREDICTED_COST] / seconds - 1 for span, seconds in zip(spans, observed, strict=True) if seconds]
    differences = [
        abs(one / other - 1) for one, other in zip(observed[::2], observed[1::2], strict=True) if one and other
    ]
    print(f"median error: tokens {tokens:.3f}, prefill {median(map(abs, off)):.3f}, by the metric {error:.3f}")
    print(
        f"median difference of two of a length {median(differences):.3f}; each error:",
        [round(e, 2) for e in sorted(off)],
    )
    assert len(off) > REQUESTS // 2
    assert median(map(abs, off)) <= max(0.15, median(differences))
    assert error <= max(0.15, median(differences))


def test_cached_tokens_of_a_chat_are_predicted(gateway: RunningGateway, vllm: Vllm, tmp_path: Path) -> None:
    """With random weights an answer's text is cut otherwise than it was made: that is learned, too."""
    random = Random(6)
    system = {"role": "system", "content": words(300, seed=1)}
    chats = [[system] for _ in range(CHATS)]
    block = gateway.gateway.core.cost_model.prefixes.block
    for turn in range(TURNS):
        for number, messages in enumerate(chats):
            text = words(random.randint(20, 400), seed=random.randrange(1 << 30))
            messages.append({"role": "user", "content": text})
            answer = gateway.post(asked(messages, random.randint(8, 200), stream=(number + turn) % 2 == 0))
            messages.append({"role": "assistant", "content": said(answer.text)})
    gateway.wait_ended("completed", TURNS * CHATS)
    turns = [(span[semconv.PREDICTED_CACHED], span[semconv.CACHED_TOKENS]) for span in served(gateway, tmp_path)]
    prefixes = gateway.gateway.core.cost_model.prefixes
    print(f"block {block}, answers found again {prefixes.answer_shares()}, trust {prefixes.trust.value:.3f}")
    print("predicted and cached:", turns)
    assert block == 128
    assert sum(cached for _, cached in turns) > 1000 * CHATS
    within = sum(abs(predicted - cached) <= block for predicted, cached in turns)
    assert within >= 0.9 * len(turns)


def asked(messages: list[dict[str, str]], max_tokens: int, *, stream: bool = True) -> dict[str, Any]:
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "stream": stream, "ignore_eos": True}


def said(text: str) -> str:
    """Of an answer, streamed or not."""
    if text.startswith("{"):
        return str(json.loads(text)["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def served(gateway: RunningGateway, folder: Path) -> list[dict[str, Any]]:
    """The attributes of the requests' spans, in order; the gateway is stopped for them to be written."""
    gateway.check_budgets()
    gateway.stop()
    spans = [json.loads(line) for line in (folder / "spans.jsonl").read_text().splitlines()]
    return [span["attributes"] for span in spans if semconv.OUTCOME in span["attributes"]]
