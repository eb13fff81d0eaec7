"""A real vLLM on the CPU: `make test-vllm` installs one and names its Python."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

SUPPORT = Path(__file__).parent
SCRIPTS = SUPPORT.parent / "vllm"  # what vLLM's own Python runs
STARTUP = 300.0
SHUTDOWN = 20.0
MODEL = "tiny"
FLAGS = (
    *("--served-model-name", MODEL),
    *("--load-format", "dummy", "--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "16384"),
    # Small steps and a threshold, so that a load of seconds shows what one of minutes does on a GPU.
    *("--max-num-batched-tokens", "512", "--long-prefill-token-threshold", "256"),
    *("--enable-per-request-metrics", "--enable-prompt-tokens-details"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # Weights by chance would write white space for ever.
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
}
# The same model, asked for what its last layer makes of a prompt.
POOLING = (
    *("--served-model-name", MODEL, "--runner", "pooling"),
    *("--load-format", "dummy", "--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "4096"),
)


@dataclass(frozen=True)
class Vllm:
    """A vLLM server: where it answers, the model it serves, the model's folder, and what its metrics say."""

    url: str
    model: str
    folder: Path

    def metric(self, name: str) -> float:
        return metric(self.url, name)


def metric(url: str, name: str) -> float:
    """The sum of a sample of /metrics over its labels; a name that is not there is an error, not 0."""
    text = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).raise_for_status().text
    families = text_string_to_metric_families(text)
    values = [sample.value for family in families for sample in family.samples if sample.name == name]
    if not values:
        raise KeyError(name)
    return sum(values)


def becomes_true(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def run_vllm(folder: Path, *flags: str, change: Callable[[Path], None] = lambda model: None) -> Iterator[Vllm]:
    """A vLLM, until the block is left; `change` may write into the model's folder before."""
    python = os.environ.get("FAIRLANE_VLLM_PYTHON")
    if not python:
        pytest.skip("FAIRLANE_VLLM_PYTHON is not set: `make test-vllm` installs vLLM and runs these tests")
    python = os.path.abspath(python)  # not resolved: a link is what makes it the virtual environment's
    # Neither this environment's path nor its working directory may lend vLLM a module.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    model = folder / "model"
    subprocess.run([python, SUPPORT / "tiny_model.py", model], env=environment, cwd=folder, check=True)
    change(model)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ("--host", "127.0.0.1", "--port", str(port))
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *address, *flags]
    log = folder / "vllm.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    try:
        engine = Vllm(f"http://127.0.0.1:{port}", MODEL, model)
        becomes_true(lambda: server.poll() is not None or _healthy(engine.url), STARTUP)
        if server.poll() is not None or not _healthy(engine.url):
            what = "is not healthy in time" if server.poll() is None else f"ended with {server.returncode}"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
            pytest.fail(f"vLLM {what}; the end of {log}:\n{tail}", pytrace=False)
        yield engine
    finally:
        _stop(server)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and the engine process that it started."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(SHUTDOWN)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # whoever of the group is left
    server.wait()
