"""Fairlane's servers as processes of their own, for whoever measures them."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0


@contextmanager
def running(command: list[str], **variables: str) -> Iterator[str]:
    """`fairlane COMMAND --port ...`, from when it answers until the block is left; its URL, on loopback.

    No FAIRLANE_* variable reaches it but those that are given. Raises RuntimeError, with the end of its log, if it
    does not start.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLANE_")}
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest", *command, "--port", str(port)],
            env=environ | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for whoever started it, and that one ends it in order
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"fairlane {command[0]} did not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
