"""Preemptible prefill at a real vLLM: what it does for short prompts, that it changes no answer, that slices hit the
cache, and that it stays away where there is none.

The counters are the gateway's own: what slices left in the engine's cache, and what of it was found there again.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from loadtest.benchmark.slice_counters import SliceCounters
from loadtest.cli.main import app
from loadtest.runs.process import running
from tests.support.tiny_model import words
from tests.support.vllm import FLAGS, MODEL, Vllm, run_vllm

# What vLLM was started with (conftest.py).
ENGINE = ("engine.step_tokens=512", "engine.long_prefill_threshold=256")
LONG, HALF = 3500, 1750  # tokens: one to four seconds of prefill, whatever the cores
# So small that such a prompt has several slices on any of them.
SLICED = ("slicing=true", "max_stall=0.1")

pytestmark = pytest.mark.timeout(240, func_only=True)


@pytest.fixture(scope="module")
def uncached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with run_vllm(tmp_path_factory.mktemp("uncached"), *FLAGS, "--no-enable-prefix-caching") as server:
        yield server


@pytest.fixture(scope="module")
def state_file(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What vLLM costs here: from what a DGX Spark costs, a gateway would cut other slices."""
    path = tmp_path_factory.mktemp("preempt") / "learned.json"
    arguments = ["--upstream", vllm.url, "--seconds", "10", "--state-file", str(path), *_set(*ENGINE)]
    done = CliRunner().invoke(app, ["calibrate", *arguments], env={"FAIRLANE_VLLM_PYTHON": None})
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture(scope="module")
def gateway(vllm: Vllm, state_file: Path) -> Iterator[str]:
    with running(["serve", "--upstream", vllm.url, *_set(*ENGINE, *SLICED, f"state_file={state_file}")]) as url:
        yield url


def _set(*assignments: str) -> list[str]:
    return [f"--set={each}" for each in assignments]


def _slices(url: str) -> SliceCounters:
    slices = SliceCounters.read(httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text)
    assert slices, "the gateway does not count its slices"
    return slices


def _post(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> dict[str, Any]:
    answer = httpx.post(f"{url}{path}", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _chat(text: str, **fields: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": asked, "max_tokens": 24, "temperature": 0, "seed": 1, **fields}


def test_short_prompts_run_between_the_slices(vllm: Vllm) -> None:
    """Direct against sliced, in one run of the command that a user has for it."""
    load = [
        *("--longs", "4", "--long-tokens", str(LONG), "--long-answer", "8"),
        *("--shorts", "10", "--short-answer", "8", "--rate", "4"),
    ]
    command = ["bench", "preempt", "--upstream", vllm.url, "--calibrate", "8", "--only", "sliced-0.1", "--json"]
    done = CliRunner().invoke(app, [*command, *load, *_set(*ENGINE)], env={"FAIRLANE_VLLM_PYTHON": None})
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    direct, sliced = (told["variants"][name] for name in ("direct", "sliced-0.1"))
    print(json.dumps(told["variants"], indent=1), told["advice"]["words"])
    assert direct["figures"]["failed"] == sliced["figures"]["failed"] == 0
    assert (sliced["figures"]["slices"] or 0) > 3
    assert sliced["figures"]["slice_cached_share"] >= 0.95
    assert sliced["to_direct"]["short_ttft_p95_s"] <= 0.5


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_slicing_does_not_change_the_answer(vllm: Vllm, gateway: str, api: str) -> None:
    """The gateway first, or it would find all of it cached; then vLLM by itself, which has to prefill it anew: a salt
    keeps the two apart."""
    text = words(LONG, seed=71 if api == "chat" else 72)
    body = _chat(text)
    path = "/v1/chat/completions"
    if api == "completions":
        body = {"model": MODEL, "prompt": text, "max_tokens": 24, "temperature": 0, "seed": 1}
        path = "/v1/completions"
    before = _slices(gateway)
    sliced = _post(gateway, body | {"cache_salt": f"sliced-{api}"}, path)
    assert _slices(gateway).since(before).count >= 1
    plain = _post(vllm.url, body | {"cache_salt": f"plain-{api}"}, path)
    assert _said(sliced) == _said(plain)
    assert sliced["choices"][0]["finish_reason"] == plain["choices"][0]["finish_reason"]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert sliced["usage"][count] == plain["usage"][count]


def _said(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def test_a_chat_with_tools_hits_the_cache_of_its_slices(gateway: str) -> None:
    """The slices are token ids, the request itself is messages and tools: vLLM makes the same prompt of both."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"name": "weather", "description": words(200, seed=80), "parameters": parameters}
    before = _slices(gateway)
    for seed in (81, 82):
        system = {"role": "system", "content": words(HALF, seed=seed)}
        body = _chat("", tools=[{"type": "function", "function": tool}], max_tokens=4)
        body["messages"] = [system, {"role": "user", "content": words(HALF, seed=seed + 10)}]
        answer = _post(gateway, body)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        print(f"{answer['usage']['prompt_tokens']} tokens, {cached} of them cached for the request itself")
    slices = _slices(gateway).since(before)
    assert slices.count >= 2
    assert slices.cached_share is not None
    assert slices.cached_share >= 0.95
    assert not slices.off


def test_without_a_prefix_cache_there_are_no_slices(uncached: Vllm) -> None:
    """Within two long requests it is off, and nothing failed."""
    with running(["serve", "--upstream", uncached.url, *_set(*ENGINE, *SLICED, "state_file=off")]) as url:
        for seed in (91, 92):
            _post(url, _chat(words(LONG, seed=seed), max_tokens=4))
        then = _slices(url)
        # Whether it knew from the metrics of the engine, or had to see it, it does so no more.
        assert then.off or not then.count
        _post(url, _chat(words(LONG, seed=93), max_tokens=4))
        assert _slices(url).count == then.count
