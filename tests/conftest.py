"""Real servers on real sockets for every test: a gateway, an engine that the test steers, a simulated Spark.

The tests are plain functions and the servers run in threads of their own, so a test reads from top to bottom: ask,
wait for the engine to be asked, say what it answers, look at what came. `until` waits for a condition under a
deadline; nothing sleeps to be on the safe side.
"""

import asyncio
import http.client
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx
import hypothesis
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import Gateway, create_gateway
from gateway.config.settings import Settings
from gateway.pricing.profile import Profile
from gateway.server.server import Server
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile

# How long an example takes says more of what else the machine does than of the code; pytest has a time limit.
hypothesis.settings.register_profile("fairlane", deadline=None)
hypothesis.settings.load_profile("fairlane")

T = TypeVar("T")

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
DEADLINE = 10.0
# A gateway that asks the engine for nothing but answers, keeps nothing for the next test, and takes an engine that is
# not there for one that does not come back.
ALONE = {"tokenizer": "off", "state_file": "off", "engine_grace": 0.0}
BUDGETS = ("fairlane_queue_jobs", "fairlane_prefill_jobs", "fairlane_prefill_tokens", "fairlane_seats")
SPARK_SPEED = 50.0

# Costs next to nothing: what is predicted to take its time has taken it.
TINY = Profile(c_s=0.0, a_s_per_token=1e-9, b_s_per_token2=0.0, decode_s_per_token=1e-9)


def until(condition: Callable[[], object], seconds: float = DEADLINE, what: str = "") -> float:
    """Wait for the condition; how long it took, in seconds. Fails when the deadline has passed."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(0.001)
    return time.perf_counter() - start


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}


def sse(event: object) -> bytes:
    """One event, as vLLM writes it."""
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def token(text: str = "word", index: int = 0) -> bytes:
    """A chunk of a chat answer."""
    choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
    return sse({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})


def usage(prompt_tokens: int = 7, completion_tokens: int = 3) -> bytes:
    """The chunk that vLLM sends last when `include_usage` is on."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return sse({"id": "chatcmpl-1", "choices": [], "usage": counts})


DONE = b"data: [DONE]\n\n"


# Servers


@contextmanager
def running(server: uvicorn.Server, listener: socket.socket | None = None) -> Iterator[None]:
    """The server, in a thread until the block is left."""
    sockets = None if listener is None else [listener]
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, name="server")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"


@contextmanager
def serve(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """The base URL of the app, served for real. Its socket listens before the server runs, so nobody has to wait."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    with running(uvicorn.Server(config), listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class _ServerInThread(Server):
    """The gateway's own server, but that only a main thread may be told of signals; and quick to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        self.loop = asyncio.get_running_loop()
        yield

    async def main_loop(self) -> None:
        while not self.should_exit:  # noqa: ASYNC110  uvicorn has a flag, and no event
            await asyncio.sleep(0.005)


# The engine that the test steers


@dataclass(eq=False)
class Call:
    """One request that has reached the scripted engine, and the test's hands on its answer.

    left  set when the gateway has closed the connection before the answer was over
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    query: str = ""
    left: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _steps: asyncio.Queue[Message | bytes | None] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def start(self, status: int = 200, content_type: str = "text/event-stream; charset=utf-8", **headers: str) -> None:
        """Send status and headers; an underscore in a name stands for a hyphen."""
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-type", content_type.encode()))
        self._step({"type": "http.response.start", "status": status, "headers": raw})

    def send(self, chunk: bytes) -> None:
        self._step({"type": "http.response.body", "body": chunk, "more_body": True})

    def end(self, chunk: bytes = b"") -> None:
        self._step({"type": "http.response.body", "body": chunk, "more_body": False})

    def stream(self, *chunks: bytes) -> None:
        """A whole stream."""
        self.start()
        for chunk in chunks:
            self.send(chunk)
        self.end()

    def answer(self, status: int = 200, content: object = None, **headers: str) -> None:
        """A whole answer in JSON: an ordinary one, unless it is given."""
        ordinary = {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }
        self.start(status, "application/json", **headers)
        self.end(
            content if isinstance(content, bytes) else json.dumps(ordinary if content is None else content).encode()
        )

    def say(self, raw: bytes) -> None:
        """Write bytes past HTTP."""
        self._step(raw)

    def hang_up(self) -> None:
        """Close the connection at this point."""
        self._step(None)

    def _step(self, step: Message | bytes | None) -> None:
        if not self._over.is_set():
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._steps.put_nowait, step)


class ScriptedEngine:
    """A fake vLLM: it says which model it serves, and of anything else what the test says, chunk by chunk."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.metrics: bytes | None = None  # without any, the gateway's ledger stands alone
        self._asked: queue.Queue[Call] = queue.Queue()

    def asked(self, seconds: float = DEADLINE) -> Call:
        """The next request, once it is there."""
        try:
            return self._asked.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"the engine was not asked within {seconds:g} s") from None

    @property
    def pending(self) -> int:
        """Requests that the test has not taken yet."""
        return self._asked.qsize()

    def reset(self) -> None:
        for call in self.calls:
            call.hang_up()
        self.calls = []
        self.metrics = None
        self._asked = queue.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        call = Call(scope["method"], scope["path"], headers, body, scope["query_string"].decode())
        if call.path == "/metrics":
            call.answer(404 if self.metrics is None else 200, self.metrics or {})
        elif call.path == "/version":
            call.answer(200, {"version": "scripted"})
        elif call.path in ("/v1/models", "/health"):
            card = {"id": "scripted", "object": "model", "created": 0, "owned_by": "vllm", "max_model_len": 32768}
            call.answer(200, {"object": "list", "data": [card]}, x_engine="scripted")
        else:
            self.calls.append(call)
            self._asked.put(call)
        await self._act(call, receive, send)

    async def _act(self, call: Call, receive: Receive, send: Send) -> None:
        watching = asyncio.create_task(self._watch(call, receive))
        try:
            while True:
                step = asyncio.create_task(call._steps.get())
                await asyncio.wait({watching, step}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    step.cancel()
                    return
                message = step.result()
                # uvicorn's `send` is a method of the one request that it serves, which knows its connection.
                transport = getattr(send, "__self__").transport  # noqa: B009
                if message is None:
                    transport.close()
                    await watching
                    return
                if isinstance(message, bytes):
                    transport.write(message)
                    continue
                if not message.get("more_body", True):
                    call._over.set()
                await send(message)
                if call._over.is_set():
                    return
        finally:
            call._over.set()
            watching.cancel()

    async def _watch(self, call: Call, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not call._over.is_set():
            call.left.set()


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
    with serve(create_app(load_profile("gemma-4-26b-bf16"), ServerOptions(speed=SPARK_SPEED, noise=0.0))) as url:
        yield url


# The gateway


class Asked:
    """A request under way: sent at once, its answer read when the test wants to."""

    def __init__(
        self,
        url: str,
        body: object,
        path: str = CHAT,
        headers: dict[str, str] | None = None,
        *,
        method: str = "POST",
        receive_buffer: int | None = None,
    ) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=DEADLINE)
        if receive_buffer is not None:
            # Before the connection is made, for that is when the window is settled.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(DEADLINE)
            sock.connect((address.hostname, address.port))
            self._connection.sock = sock
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
        self._response: http.client.HTTPResponse | None = None

    @property
    def response(self) -> http.client.HTTPResponse:
        """Status and headers, once they are there."""
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str | None:
        return self.response.getheader(name)

    def read(self) -> bytes:
        """The rest of the answer. Raises http.client.IncompleteRead if it was broken off."""
        return self.response.read()

    def json(self) -> Any:
        return json.loads(self.read())

    def event(self) -> bytes:
        """The next event of a stream, its blank line included; what there is at the end of it."""
        event = b""
        while not event.endswith(b"\n\n"):
            if not (line := self.response.readline()):
                break
            event += line
        return event

    def leave(self) -> None:
        """Hang up, now."""
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        if self._response is not None:
            self._response.close()
        self._connection.close()


@dataclass
class RunningGateway:
    """A gateway that serves: its URL, its parts, and its metrics as anybody may read them."""

    url: str
    gateway: Gateway
    _server: _ServerInThread
    _stack: ExitStack
    _http: httpx.Client
    stopped: bool = False
    _asked: list[Asked] = field(default_factory=list)
    _before: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def call(self, function: Callable[[], T]) -> T:
        """On the gateway's own loop, as everything that changes it must be."""

        async def called() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._server.loop).result(DEADLINE)

    def ask(self, body: object, path: str = CHAT, headers: dict[str, str] | None = None, **options: Any) -> Asked:
        """Send a request; its answer is read later, or never."""
        asked = Asked(self.url, body, path, headers, **options)
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
        """What /metrics says."""
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
        """uvicorn's, as they are at any moment."""
        return self._server.server_state.connections

    def queued(self, lane: str | None = None) -> int:
        return int(self.metric("fairlane_queue_jobs", **({} if lane is None else {"lane": lane})))

    def wait_queued(self, count: int, lane: str | None = None) -> None:
        until(lambda: self.queued(lane) == count, what=f"{count} are queued")

    def in_prefill(self, lane: str | None = None) -> int:
        return int(self.metric("fairlane_prefill_jobs", **({} if lane is None else {"lane": lane})))

    def seats(self) -> int:
        return int(self.metric("fairlane_seats"))

    def ended(self, outcome: str) -> int:
        return int(self.metric("fairlane_requests_total", outcome=outcome))

    def wait_ended(self, outcome: str, count: int = 1) -> None:
        """Until so many requests have ended like this. A client may have its answer a moment before."""
        until(lambda: self.ended(outcome) >= count, what=f"{count} requests ended as {outcome}")
        assert self.ended(outcome) == count

    def budgets(self) -> dict[str, float]:
        samples = self.samples()
        return {name: sum(sample.value for sample in samples if sample.name == name) for name in BUDGETS}

    def check_budgets(self) -> None:
        """Every budget is at zero, in a moment."""
        zero = dict.fromkeys(BUDGETS, 0.0)
        with suppress(AssertionError):
            until(lambda: self.budgets() == zero, 2.0)
        assert self.budgets() == zero

    def leave_all(self) -> None:
        for asked in self._asked:
            asked.leave()

    def stop(self) -> None:
        """Shut down in order, as often as wanted."""
        self.stopped = True
        self._stack.close()


class StartGateway(Protocol):
    def __call__(self, upstream: str, profile: Profile | None = None, **settings: Any) -> RunningGateway: ...


def _start(upstream: str, profile: Profile | None = None, **settings: Any) -> RunningGateway:
    stack = ExitStack()
    made = create_gateway(
        Settings(**{**ALONE, "upstream": upstream, "port": 0, "drain_timeout": 1.0, **settings}), profile
    )
    port: queue.Queue[int] = queue.Queue()
    server = _ServerInThread(made, port.put)
    stack.enter_context(running(server))
    try:
        scheme = "https" if "tls_certificate" in settings else "http"
        url = f"{scheme}://127.0.0.1:{port.get(timeout=DEADLINE)}"
    except BaseException:
        stack.close()
        raise
    client = stack.enter_context(httpx.Client(base_url=url, timeout=DEADLINE, verify=False, trust_env=False))
    return RunningGateway(url, made, server, stack, client)


@pytest.fixture
def _nothing_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client, an engine or a collector does may make the gateway itself fail."""
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
    """Starts gateways. When the test is over, every budget of theirs must be at zero."""
    gateways: list[RunningGateway] = []

    def start(upstream: str, profile: Profile | None = None, **settings: Any) -> RunningGateway:
        gateways.append(_start(upstream, profile, **settings))
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
    gateway = _start(_scripted_engine.url)
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(engine: ScriptedEngine, _shared_gateway: RunningGateway, _nothing_failed: None) -> Iterator[RunningGateway]:
    """A gateway with its defaults in front of the scripted engine. Others have used it before: what it has learned
    it keeps, what it counts begins at zero."""
    gateway = replace(_shared_gateway, _asked=[], _before=_shared_gateway.counters())
    yield gateway
    try:
        gateway.check_budgets()
    finally:
        gateway.leave_all()


@pytest.fixture(scope="session", autouse=True)
def _no_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests may have a collector, a proxy or settings of their own, and state to lose."""
    with pytest.MonkeyPatch.context() as environ:
        for name in list(os.environ):
            if name.startswith(("OTEL_", "FAIRLANE_")) and not name.endswith("LLM_PYTHON"):
                environ.delenv(name)
            if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
                environ.delenv(name)
        environ.delenv("STATE_DIRECTORY", raising=False)
        environ.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
