"""A whole gateway on a real socket, in a thread: its URL, its jobs, and its metrics as any outsider reads them."""

import asyncio
import json
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.app import Gateway, create_gateway
from gateway.config.settings import Settings
from gateway.pricing.profile import Profile
from gateway.server.server import Server
from policies.base import Job
from tests.support.client import PendingRequest
from tests.support.servers import run_in_thread
from tests.support.waiting import DEADLINE, wait_until
from tests.support.wire import CHAT

T = TypeVar("T")

# The gateway asks the engine for nothing but answers, keeps no state for the next test, and does not wait for an
# engine that cannot be reached.
ISOLATED = {"tokenizer": "off", "state_file": "off", "engine_grace": 0.0}
BUDGETS = ("fairlane_queue_jobs", "fairlane_prefill_jobs", "fairlane_prefill_tokens", "fairlane_seats")

# Costs next to nothing, so a job is never held back by its predicted duration.
TINY = Profile(c_s=0.0, a_s_per_token=1e-9, b_s_per_token2=0.0, decode_s_per_token=1e-9)


class _ServerInThread(Server):
    """The gateway's own server without signal handlers, which only a main thread may install; and it stops quickly."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        self.loop = asyncio.get_running_loop()
        yield

    async def main_loop(self) -> None:
        while not self.should_exit:  # noqa: ASYNC110  uvicorn has a flag, and no event
            await asyncio.sleep(0.005)


@dataclass
class RunningGateway:
    """A gateway that serves: how a test sends requests to it, reads its metrics and stops it."""

    url: str
    gateway: Gateway
    _server: _ServerInThread
    _stack: ExitStack
    _http: httpx.Client
    stopped: bool = False
    _asked: list[PendingRequest] = field(default_factory=list)
    _before: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def call(self, function: Callable[[], T]) -> T:
        """Run the function on the gateway's own event loop: nothing else may change the gateway."""

        async def called() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._server.loop).result(DEADLINE)

    def ask(
        self, body: object, path: str = CHAT, headers: dict[str, str] | None = None, **options: Any
    ) -> PendingRequest:
        """Send a request; its answer is read later, or never."""
        asked = PendingRequest(self.url, body, path, headers, **options)
        self._asked.append(asked)
        return asked

    def post(self, body: object, path: str = CHAT, headers: dict[str, str] | None = None) -> httpx.Response:
        """Send a request and read its whole answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        return self._http.post(path, content=content, headers=headers)

    def get(self, path: str) -> httpx.Response:
        return self._http.get(path)

    def read(self, path: str, headers: dict[str, str]) -> str:
        """A page's text."""
        return self._http.get(path, headers=headers).raise_for_status().text

    def samples(self) -> list[Sample]:
        """Every sample of /metrics."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        return [sample for family in families for sample in family.samples]

    def counters(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """The samples that only ever grow."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for sample in self.samples()
            if sample.name.endswith(("_total", "_count", "_sum", "_bucket"))
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, counted from the start of the test; 0 if there are none."""
        return sum(
            sample.value - self._before.get((name, frozenset(sample.labels.items())), 0.0)
            for sample in self.samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def connections(self) -> set[Any]:
        """uvicorn's open connections."""
        return self._server.server_state.connections

    def jobs(self) -> list[Job]:
        """Those that wait or run, in the order of their arrival."""
        return self.call(lambda: list(self.gateway.core.speed.progress))

    def queued(self, lane: str | None = None) -> int:
        return int(self.metric("fairlane_queue_jobs", **({} if lane is None else {"lane": lane})))

    def wait_queued(self, count: int, lane: str | None = None) -> None:
        wait_until(lambda: self.queued(lane) == count, what=f"{count} are queued")

    def in_prefill(self, lane: str | None = None) -> int:
        return int(self.metric("fairlane_prefill_jobs", **({} if lane is None else {"lane": lane})))

    def seats(self) -> int:
        return int(self.metric("fairlane_seats"))

    def ended(self, outcome: str) -> int:
        return int(self.metric("fairlane_requests_total", outcome=outcome))

    def wait_ended(self, outcome: str, count: int = 1) -> None:
        """Wait until so many requests have ended with this outcome; a client may have its answer a moment before."""
        wait_until(lambda: self.ended(outcome) >= count, what=f"{count} requests ended as {outcome}")
        assert self.ended(outcome) == count

    def budgets(self) -> dict[str, float]:
        samples = self.samples()
        return {name: sum(sample.value for sample in samples if sample.name == name) for name in BUDGETS}

    def check_budgets(self) -> None:
        """Every budget returns to zero."""
        zero = dict.fromkeys(BUDGETS, 0.0)
        with suppress(AssertionError):
            wait_until(lambda: self.budgets() == zero)
        assert self.budgets() == zero

    def for_next_test(self) -> "RunningGateway":
        """The same gateway with nobody at it: what it counts begins at zero, what it has learned stays."""
        return replace(self, _asked=[], _before=self.counters())

    def leave_all(self) -> None:
        for asked in self._asked:
            asked.leave()

    def stop(self) -> None:
        """Shut down in order. Calling it again does nothing."""
        self.stopped = True
        self._stack.close()


class StartGateway(Protocol):
    def __call__(self, upstream: str, profile: Profile | None = None, **settings: Any) -> RunningGateway: ...


def run_gateway(upstream: str, profile: Profile | None = None, **settings: Any) -> RunningGateway:
    stack = ExitStack()
    made = create_gateway(
        Settings(**{**ISOLATED, "upstream": upstream, "port": 0, "drain_timeout": 1.0, **settings}), profile
    )
    port: queue.Queue[int] = queue.Queue()
    server = _ServerInThread(made, port.put)
    stack.enter_context(run_in_thread(server))
    try:
        scheme = "https" if "tls_certificate" in settings else "http"
        url = f"{scheme}://127.0.0.1:{port.get(timeout=DEADLINE)}"
    except BaseException:
        stack.close()
        raise
    client = stack.enter_context(httpx.Client(base_url=url, timeout=DEADLINE, verify=False, trust_env=False))
    return RunningGateway(url, made, server, stack, client)
