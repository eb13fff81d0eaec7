"""The gateway as a process: its output, waiting for its engine, reloading, draining."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from loadtest.cli.main import app
from tests.support.client import PendingRequest
from tests.support.process import COMMAND, Process
from tests.support.scripted_engine import ScriptedEngine
from tests.support.servers import serve
from tests.support.waiting import DEADLINE, wait_until
from tests.support.wire import DONE, chat, token

Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[Process] = []

    def start(*arguments: str) -> Process:
        processes.append(Process(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def ask() -> Iterator[Callable[..., PendingRequest]]:
    everything: list[PendingRequest] = []

    def ask(url: str, **fields: Any) -> PendingRequest:
        everything.append(PendingRequest(url, chat(**fields)))
        return everything[-1]

    yield ask
    for asked in everything:
        asked.leave()


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=50, env=dict(os.environ) | environ
    )


def queued(url: str) -> bool:
    return 'fairlane_queue_jobs{lane="short"} 1.0' in httpx.get(f"{url}/metrics", verify=False).text


def refuses(url: str) -> bool:
    address = httpx.URL(url)
    try:
        socket.create_connection((address.host, address.port or 0)).close()
    except ConnectionRefusedError:
        return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Draining


def test_a_drain_finishes_running_requests_and_refuses_queued_ones(
    engine: ScriptedEngine, start: Start, ask: Callable[..., PendingRequest]
) -> None:
    process = start("serve", "--upstream", engine.url, "--port", "0", "--set", "engine.max_num_seqs=1")
    url = process.url
    runs = ask(url, stream=True)
    call = engine.asked()
    call.start()
    call.send(token("one"))
    assert runs.event() == token("one")
    waits = ask(url, stream=True)
    wait_until(lambda: queued(url))
    process.signal(signal.SIGTERM)

    assert waits.status == 503  # while the other still runs
    assert waits.json()["error"]["code"] == "draining"
    assert 1 <= int(waits.header("retry-after") or "0") <= 60
    wait_until(lambda: refuses(url))
    assert process.runs
    assert engine.pending == 0

    call.send(token("two"))
    assert runs.event() == token("two")
    call.end(DONE)
    assert runs.read() == DONE
    assert process.exit_code() == 0
    assert "1 running may finish, 1 waiting get 503" in process.said
    assert "Traceback" not in process.said


def test_a_drain_refuses_requests_on_open_connections(
    engine: ScriptedEngine, start: Start, ask: Callable[..., PendingRequest]
) -> None:
    """Between the signal and the closing of the doors a request gets 503; after it, no connection."""
    process = start("serve", "--upstream", engine.url, "--port", "0")
    runs = ask(process.url, stream=True)
    call = engine.asked()
    call.start()
    call.send(token())
    runs.event()
    with httpx.Client(base_url=process.url, verify=False) as client:
        assert client.get("/health").json()["status"] == "ok"
        process.signal(signal.SIGTERM)
        with suppress(httpx.TransportError):
            response = client.post("/v1/chat/completions", json=chat())
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "draining"
    assert engine.pending == 0
    call.end(DONE)
    assert runs.read() == DONE
    assert process.exit_code() == 0


def test_a_drain_ends_after_drain_timeout(
    engine: ScriptedEngine, start: Start, ask: Callable[..., PendingRequest]
) -> None:
    process = start("serve", "--upstream", engine.url, "--port", "0", "--set", "drain_timeout=1")
    runs = ask(process.url, stream=True)
    call = engine.asked()
    call.start()
    call.send(token())
    runs.event()
    begun = time.perf_counter()
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 0
    assert time.perf_counter() - begun >= 1.0
    assert call.left.wait(DEADLINE)
    told = runs.read()  # that this is not all, and why
    assert b'"code": "draining"' in told
    assert told.endswith(b"data: [DONE]\n\n")
    process.says(r"outcome=draining")
    assert "Traceback" not in process.said


def test_sighup_reloads_the_settings(
    engine: ScriptedEngine, start: Start, ask: Callable[..., PendingRequest], tmp_path: Path
) -> None:
    """One seat is taken and one request waits; the file then allows two, and the waiting one goes."""
    file = tmp_path / "fairlane.toml"
    file.write_text("[engine]\nmax_num_seqs = 1\n")
    process = start("serve", "--upstream", engine.url, "--port", "0", "--config", str(file))
    ask(process.url, stream=True)
    running = engine.asked()
    waits = ask(process.url)
    wait_until(lambda: b'fairlane_queue_jobs{lane="short"} 1.0' in httpx.get(f"{process.url}/metrics").content)
    file.write_text("polcy = 'fifo'\n")
    process.signal(signal.SIGHUP)
    process.says("nothing changed: unknown key polcy")
    file.write_text("[engine]\nmax_num_seqs = 2\n")
    process.signal(signal.SIGHUP)
    process.says("settings are in force")
    engine.asked().answer()
    assert waits.status == 200
    running.stream(token(), DONE)


def test_a_second_signal_stops_at_once(
    engine: ScriptedEngine, start: Start, ask: Callable[..., PendingRequest]
) -> None:
    process = start("serve", "--upstream", engine.url, "--port", "0")
    ask(process.url, stream=True)
    engine.asked()
    process.signal(signal.SIGINT)
    process.says("draining")
    process.signal(signal.SIGINT)
    process.exit_code()


# Starting


def test_the_startup_message_names_version_engine_and_url(
    engine: ScriptedEngine, start: Start, ask: Callable[..., PendingRequest]
) -> None:
    process = start("serve", "--upstream", f"{engine.url}/v1", "--port", "0", "--policy", "fifo")
    port = httpx.URL(process.url).port
    assert port
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"] == "scripted"
    process.says(rf"fairlane {re.escape(version('fairlane'))}, in front of {engine.url}\n")
    process.says(r"base URL in the LAN +not reachable")
    process.says(r"base URL in containers +not reachable")
    process.says(r"policy +fifo")
    process.says(r"seats +256")
    process.says(rf"engine: {engine.url} serves scripted \(up to 32768 tokens\)")
    asked = ask(process.url)
    engine.asked().answer()
    asked.read()
    process.says(r"INFO fairlane\.requests: id=[0-9a-f]{32} user=[0-9a-f]{12} lane=short .* outcome=completed\n")
    assert "HTTP Request" not in process.said  # httpx's


def test_the_startup_message_lists_urls_for_a_public_host(engine: ScriptedEngine, start: Start) -> None:
    process = start("serve", "--upstream", engine.url, "--port", "0", "--host", "0.0.0.0", "--insecure")
    port = httpx.URL(process.url).port
    assert process.url == f"http://127.0.0.1:{port}"
    lan = process.says(r"base URL in the LAN +(http://\S+)/v1")
    assert httpx.URL(lan).port == port
    assert process.says(r"base URL in containers +(http://\S+)") == f"http://host.docker.internal:{port}/v1"


def test_the_gateway_waits_for_an_engine_that_is_not_up_yet(start: Start, ask: Callable[..., PendingRequest]) -> None:
    port = free_port()
    process = start("serve", "--upstream", f"http://127.0.0.1:{port}", "--port", "0")
    process.says("engine: not there yet, waiting for it")
    asked = ask(process.url)
    process.says("requests wait for it for 120 s")
    engine = ScriptedEngine()
    with serve(engine, port):
        process.says(rf"engine: http://127.0.0.1:{port} serves scripted")
        engine.asked().answer()
        assert asked.status == 200
        asked.read()
    assert process.said.count("not there yet") == 1
    assert process.said.count("cannot be reached; requests wait") == 1


def test_trace_and_decision_files_are_written(
    engine: ScriptedEngine, start: Start, ask: Callable[..., PendingRequest], tmp_path: Path
) -> None:
    spans, decisions = tmp_path / "spans.jsonl", tmp_path / "decisions.jsonl"
    process = start(
        *("serve", "--upstream", engine.url, "--port", "0"),
        *("--trace-file", str(spans), "--decision-log", str(decisions)),
    )
    asked = ask(process.url)
    engine.asked().answer()
    asked.read()
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 0
    assert len(spans.read_text().splitlines()) == 5
    events = [json.loads(line)["event"] for line in decisions.read_text().splitlines()[1:]]
    assert (events[0], events[-1]) == ("arrived", "finished")


# What is wrong is said plainly


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "polcy=fifo"], "unknown key polcy (command line): did you mean policy?"),
        (["--set", "policy"], "write KEY=VALUE"),
        (["--policy", "random"], "no policy 'random': choose"),
        (["--set", "queue_timeout=soon"], "queue_timeout"),
        (["--set", "long_lane_jobs=4"], "long_prefill_threshold"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--profile", "gemma"], "no profile 'gemma'"),
        (["--profile", "/nowhere/profile.toml"], "/nowhere/profile.toml"),
        (["--config", "/nowhere/fairlane.toml"], "/nowhere/fairlane.toml"),
        (["--trace-file", "/nowhere/spans.jsonl"], "/nowhere/spans.jsonl"),
        (["--decision-log", "/nowhere/log.jsonl"], "/nowhere/log.jsonl"),
        (["--port", "70000"], "port"),
        (["--set", "tls_certificate=/nowhere/chain.pem"], "/nowhere/chain.pem"),
        (["--set", "tls_key=/nowhere/key.pem"], "tls_certificate"),
        (["--upstream", "spark:8000:x"], "upstream"),
    ],
)
def test_bad_settings_are_reported(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert said in result.stderr
    assert all(line.startswith("fairlane: ") for line in result.stderr.splitlines())


def test_a_bad_environment_variable_is_reported() -> None:
    result = run("config", "show", FAIRLANE_POLCY="fifo")  # as a process, for its exit code
    assert result.returncode == 2
    assert result.stderr == "fairlane: unknown variable FAIRLANE_POLCY: did you mean FAIRLANE_POLICY?\n"


def test_a_bad_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "fairlane.toml"
    file.write_text("policy = fifo")
    result = CliRunner().invoke(app, ["config", "show", "--config", str(file)])
    assert result.exit_code == 2
    assert f"{file} is not valid TOML" in result.stderr
    file.write_text("[engine]\nmax_num_seq = 3\n")
    result = CliRunner().invoke(app, ["serve", "--config", str(file)])
    assert result.exit_code == 2
    assert f"unknown key engine.max_num_seq ({file}): did you mean engine.max_num_seqs?" in result.stderr


def test_a_port_in_use_is_reported(engine: ScriptedEngine) -> None:
    result = run("serve", "--upstream", engine.url, "--port", str(httpx.URL(engine.url).port))
    assert result.returncode != 0
    assert "address already in use" in result.stderr
    assert "Traceback" not in result.stderr


# The other commands


def test_config_show_prints_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "fairlane.toml"
    file.write_text('queue_timeout = 12.5\npolicy = "fifo"\n\n[[keys]]\nkey = "secret"\nowner = "ada"\n')
    result = run(*("config", "show", "--config", str(file), "--set", "policy=fair"), FAIRLANE_ENGINE__MAX_NUM_SEQS="32")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split()[0]: " ".join(line.split()) for line in result.stdout.splitlines() if line.strip()}
    assert rows["setting"] == "setting value unit source what it is"
    assert rows["queue_timeout"].startswith("queue_timeout 12.5 s ")
    assert rows["policy"].startswith("policy fair command line")
    assert rows["engine.max_num_seqs"].startswith("engine.max_num_seqs 32 sequences environment")
    assert rows["port"].startswith("port 8100 default")
    assert rows["max_body"].startswith("max_body 67108864 bytes default")
    assert "ada" in result.stdout
    assert "secret" not in result.stdout


def test_version_and_help_are_printed() -> None:
    version_asked = run("--version")
    assert (version_asked.returncode, version_asked.stdout) == (0, f"{version('fairlane')}\n")
    for arguments in (["--help"], []):
        result = CliRunner().invoke(app, arguments)
        for command in ("serve", "config", "sim"):
            assert command in result.output
    assert CliRunner().invoke(app, ["serve", "--help"]).exit_code == 0


def test_the_simulated_spark_serves(start: Start) -> None:
    port = free_port()
    process = start("sim", "--port", str(port), "--speed", "100", "--seed", "1")
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: not refuses(url) or not process.runs)
    response = httpx.post(f"{url}/v1/chat/completions", json=chat(model="gemma-4-26b-bf16", max_tokens=3))
    assert response.json()["usage"]["completion_tokens"] == 3
    process.signal(signal.SIGTERM)
    process.exit_code()


def test_an_unknown_simulated_profile_is_reported() -> None:
    result = CliRunner().invoke(app, ["sim", "--profile", "gemma"])
    assert result.exit_code == 2
    assert "gemma" in result.stderr
