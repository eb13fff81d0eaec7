"""vLLM's own OpenAPI description, and what schemathesis makes of it: valid bodies and broken ones, sent through the
gateway. No 500 of ours, no answer that does not come, nothing held afterwards.

schemathesis is no dependency of the development environment, for what it brings with it: `pip install schemathesis`.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from loadtest.process import running
from tests.vllm.conftest import Vllm, metric, wait_until

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

HELD = ("fairlane_seats", "fairlane_prefill_tokens", "fairlane_queue_jobs")


@pytest.fixture(scope="module")
def gateway(vllm: Vllm) -> Iterator[str]:
    with running(["serve", "--upstream", vllm.url, "--set", "state_file=off"]) as url:
        yield url
        assert wait_until(lambda: not any(metric(url, name) for name in HELD))
        assert wait_until(lambda: vllm.metric("vllm:num_requests_running") == 0)


def test_what_vllm_says_it_takes(vllm: Vllm, gateway: str) -> None:
    description = httpx.get(f"{vllm.url}/openapi.json", trust_env=False).json()
    for path in ("/v1/chat/completions", "/v1/completions"):
        fuzz(description, path, gateway)


def fuzz(description: Any, path: str, gateway: str) -> None:
    operation = schemathesis.openapi.from_dict(description)[path]["POST"]

    @settings(max_examples=200, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def send(case: Any) -> None:
        response = case.call(base_url=gateway, timeout=60)
        assert "internal_error" not in response.text
        # What else it says is vLLM's own, and passes as it is.
        assert response.status_code not in (502, 503, 504), response.text

    send()
