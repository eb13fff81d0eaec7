"""uvicorn, told to drain.

Alone, uvicorn raises the signal again once it has shut down, so that a service manager sees a death by SIGTERM;
and it learns of the signal at its next tick. Here draining begins with the signal, what runs may finish within
`drain_timeout`, and the exit code is 0. A second Ctrl-C ends at once. SIGHUP reads the
settings anew.
"""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import anyio
import uvicorn

from gateway.app import Gateway
from gateway.server.connection import Bounds, bounded
from gateway.tcp import PROBES, unacknowledged_for

logger = logging.getLogger("fairlane")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Seconds that clients have to read why their stream ended.
CUT_OFF_TIMEOUT = 2


def _news(record: logging.LogRecord) -> bool:
    """uvicorn takes it for an error that a client who stopped reading is cut off; the request's own line says why."""
    return record.msg != "ASGI callable returned without completing response."


def _allow_files(count: int) -> None:
    """A connection is a file, and the usual limit of 1024 is one that a process may raise by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        given = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
        if given < wanted:
            logger.warning("the system allows %d open files: too few for max_connections", given)


def _config(gateway: Gateway) -> uvicorn.Config:
    settings, metrics = gateway.settings, gateway.telemetry.metrics
    bounds = Bounds(settings.max_connections, settings.max_headers, lambda error: metrics.refused(error.outcome))
    return uvicorn.Config(
        gateway.app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=bounded(bounds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


class Server(uvicorn.Server):
    def __init__(
        self,
        gateway: Gateway,
        on_start: Callable[[int], None] | None = None,
        reload: Callable[[], None] | None = None,
    ) -> None:
        """`on_start` is told the port when connections are accepted; `reload` is called at SIGHUP,
        and may raise ValueError or OSError if nothing was changed.

        Raises ValueError if the TLS certificate cannot be used.
        """
        settings = gateway.settings
        super().__init__(_config(gateway))
        if settings.tls_key and not settings.tls_certificate:
            raise ValueError("tls_key without tls_certificate: nothing is encrypted with a key alone")
        try:
            self.config.load()
        except OSError as error:
            raise ValueError(f"tls_certificate = {settings.tls_certificate}, tls_key: {error}") from error
        logging.getLogger("uvicorn.error").addFilter(_news)
        self._gateway = gateway
        self._on_start = on_start
        self._reload = reload

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        _allow_files(2 * self._gateway.settings.max_connections)
        await super().startup(sockets)
        self._watch_over_listeners()
        if self._on_start and not self.should_exit:
            self._on_start(self.servers[0].sockets[0].getsockname()[1])

    def _watch_over_listeners(self) -> None:
        """Linux hands a listener's options down to its connections. A window that stays shut ends one like silence
        does, so a client may be unacknowledged for as long as it may read nothing."""
        options = (*PROBES, unacknowledged_for(self._gateway.settings.client_stall))
        for listener in (listener for server in self.servers for listener in server.sockets):
            for option in options:
                listener.setsockopt(*option)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # A handler may run between any two instructions: what it does to the gateway waits for the loop's next turn.
        self._loop = asyncio.get_running_loop()
        previous = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        if self._reload:
            previous[signal.SIGHUP] = signal.signal(
                signal.SIGHUP, lambda *_: self._loop.call_soon_threadsafe(self._reconfigure)
            )
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit and sig == signal.SIGINT
        self._loop.call_soon_threadsafe(self._gateway.cut_off if again else self._gateway.drain)
        super().handle_exit(sig, frame)

    def _reconfigure(self) -> None:
        assert self._reload
        try:
            self._reload()
            self._watch_over_listeners()
        except (ValueError, OSError) as error:
            logger.error("SIGHUP: nothing changed: %s", error)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A backstop: by then the gateway has ended everything itself.
        self.config.timeout_graceful_shutdown = int(self._gateway.settings.drain_timeout) + CUT_OFF_TIMEOUT
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cut_off)
            await super().shutdown(sockets)
            tasks.cancel_scope.cancel()

    async def _cut_off(self) -> None:
        await anyio.sleep(self._gateway.settings.drain_timeout)
        self._gateway.cut_off()
