"""The fixtures that every test can use: real servers on real sockets, which `tests.support` makes.

The tests are plain functions and the servers run in threads of their own, so a test reads from top to bottom: send a
request, wait until the engine has it, say what the engine answers, look at what the client received.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from gateway.pricing.profile import Profile
from tests.support.running_gateway import RunningGateway, StartGateway, run_gateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.servers import serve
from tests.support.simulated_spark import simulated_spark

# How long an example takes, or to draw one, depends on what else the machine does; pytest limits a whole test's time.
hypothesis.settings.register_profile("fairlane", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("fairlane")


@pytest.fixture(scope="session")
def _scripted_engine() -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    with serve(engine) as engine.url:
        yield engine


@pytest.fixture
def engine(_scripted_engine: ScriptedEngine) -> Iterator[ScriptedEngine]:
    """A fake vLLM that the test steers chunk by chunk."""
    _scripted_engine.reset()
    yield _scripted_engine
    _scripted_engine.reset()


@pytest.fixture(scope="session")
def spark() -> Iterator[str]:
    """The URL of a simulated Spark, fast and without noise."""
    with simulated_spark() as url:
        yield url


@pytest.fixture
def _nothing_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No request, engine or collector may make the gateway itself log an error."""
    caplog.set_level(logging.INFO, "fairlane")
    yield
    failures = [
        record.getMessage()
        for record in caplog.get_records("call")
        if (record.name.startswith("fairlane") and record.levelno >= logging.ERROR)
        or "Exception in ASGI application" in record.getMessage()
    ]
    assert failures == []


@pytest.fixture
def start_gateway(_nothing_failed: None) -> Iterator[StartGateway]:
    """Starts gateways. When the test is over, each gateway's budgets must be at zero."""
    gateways: list[RunningGateway] = []

    def start(upstream: str, profile: Profile | None = None, **settings: Any) -> RunningGateway:
        gateways.append(run_gateway(upstream, profile, **settings))
        return gateways[-1]

    yield start
    try:
        for gateway in gateways:
            if not gateway.stopped:
                gateway.check_budgets()
    finally:
        for gateway in gateways:
            gateway.leave_all()
            gateway.stop()


@pytest.fixture(scope="session")
def _shared_gateway(_scripted_engine: ScriptedEngine) -> Iterator[RunningGateway]:
    gateway = run_gateway(_scripted_engine.url)
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(engine: ScriptedEngine, _shared_gateway: RunningGateway, _nothing_failed: None) -> Iterator[RunningGateway]:
    """A gateway with default settings in front of the scripted engine. All tests share it: it keeps what it has
    learned from earlier ones, while `RunningGateway.metric` counts from the start of each test."""
    gateway = _shared_gateway.for_next_test()
    yield gateway
    try:
        gateway.check_budgets()
    finally:
        gateway.leave_all()


@pytest.fixture(scope="session", autouse=True)
def _no_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the environment of whoever runs the tests: a collector, a proxy, settings, and saved state."""
    with pytest.MonkeyPatch.context() as environ:
        for name in list(os.environ):
            if name.startswith(("OTEL_", "FAIRLANE_")) and not name.endswith("LLM_PYTHON"):
                environ.delenv(name)
            if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
                environ.delenv(name)
        environ.delenv("STATE_DIRECTORY", raising=False)
        environ.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
