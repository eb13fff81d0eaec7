"""Real servers on real sockets, each in a thread of its own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def run_in_thread(server: uvicorn.Server, listener: socket.socket | None = None) -> Iterator[None]:
    """Run the server in a thread until the block is left."""
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
    """Serve the app; its base URL. The socket listens before the server runs, so no client has to wait for it."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    with run_in_thread(uvicorn.Server(config), listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
