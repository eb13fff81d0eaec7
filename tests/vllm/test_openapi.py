"""vLLM's own OpenAPI description, and what schemathesis makes of it: valid bodies and broken ones, sent through the
gateway. No 500 of ours, no answer that does not come, nothing refused that vLLM takes, nothing held afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from loadtest.runs.process import running
from tests.support.vllm import Vllm, becomes_true, metric

HELD = ("fairlane_seats", "fairlane_prefill_tokens", "fairlane_queue_jobs")
# What keeps an answer short. One that says nothing of it would be thousands of tokens long.
LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}
PASSED_ON = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
POOLED = ("/v1/embeddings", "/v1/score", "/v1/rerank", "/pooling")
MODES = pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "broken"])


@pytest.fixture(scope="module")
def gateway(vllm: Vllm) -> Iterator[str]:
    with in_front_of(vllm) as url:
        yield url


@pytest.fixture(scope="module")
def pooling_gateway(pooler: Vllm) -> Iterator[str]:
    with in_front_of(pooler) as url:
        yield url


@contextmanager
def in_front_of(engine: Vllm) -> Iterator[str]:
    with running(["serve", "--upstream", engine.url, "--set", "state_file=off"]) as url:
        yield url
        assert becomes_true(lambda: not any(metric(url, name) for name in HELD))
        assert becomes_true(lambda: engine.metric("vllm:num_requests_running") == 0)


@pytest.fixture(autouse=True)
def past_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """schemathesis asks by requests, which reads the environment."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@MODES
@pytest.mark.parametrize("path", [*LIMITS, *PASSED_ON])
def test_bodies_from_vllms_openapi_description_are_answered(
    vllm: Vllm, gateway: str, path: str, mode: GenerationMode
) -> None:
    fuzz(vllm, gateway, path, mode)


@MODES
@pytest.mark.parametrize("path", POOLED)
def test_bodies_from_a_poolers_openapi_description_are_answered(
    pooler: Vllm, pooling_gateway: str, path: str, mode: GenerationMode
) -> None:
    fuzz(pooler, pooling_gateway, path, mode)


def fuzz(engine: Vllm, gateway: str, path: str, mode: GenerationMode) -> None:
    description: Any = httpx.get(f"{engine.url}/openapi.json", trust_env=False).json()
    operation = schemathesis.openapi.from_dict(description)[path]["POST"]

    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if path in LIMITS and isinstance(case.body, dict) and case.body.get(LIMITS[path]) is None:
            case.body[LIMITS[path]] = 4
        answer = case.call(base_url=gateway, timeout=60)
        # What else it says is vLLM's own, and passes as it is.
        if error := our_error(answer):
            assert answer.status_code == 400, answer.text
            assert error.get("param") == "background" or case.call(base_url=engine.url, timeout=60).status_code >= 400

    send()


def our_error(answer: Any) -> dict[str, Any]:
    """The gateway's own have a word for a code; vLLM's have a number, or none."""
    if answer.status_code < 400 or answer.headers["content-type"] != "application/json":
        return {}
    error = answer.json().get("error")
    return error if isinstance(error, dict) and isinstance(error.get("code"), str) else {}
