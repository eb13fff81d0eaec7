"""The `fairlane bench preempt` command at a simulated Spark, through real gateways."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from loadtest.benchmark.figures import Figures
from loadtest.cli.main import app
from loadtest.runs.provenance import command_line
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from loadtest.storage.results_folder import load
from tests.support.servers import serve
from tests.support.waiting import wait_until

NVFP4 = "gemma-4-26b-nvfp4"
SMALL = [
    *("--calibrate", "1", "--longs", "2", "--long-tokens", "4000", "--long-answer", "4"),
    *("--shorts", "4", "--short-answer", "4", "--rate", "40"),
]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def spark() -> Iterator[str]:
    machine = load_profile(NVFP4).with_flags(enable_prefix_caching=True, max_model_len=8192)
    with serve(create_app(machine, ServerOptions(speed=100.0, noise=0.0))) as url:
        yield url


def preempt(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["bench", "preempt", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def test_the_command_measures_compares_and_advises(spark: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = preempt("--upstream", spark, *SMALL, "--only", "sliced", "--repeat", "2", "--out", str(out))
    assert f"{NVFP4} on vLLM" in said
    assert "2 prompts of 4000 tokens at once, 4 of 200 at 40/s" in said
    assert all(f"\n{name} " in said for name in ("direct", "sliced"))
    assert "Take " in said or "Direct is better here" in said

    told = json.loads((out / "summary.json").read_text())
    assert list(told["variants"]) == ["direct", "sliced"]
    assert told["engine"].startswith(NVFP4)
    assert told["load"]["long_tokens"] == 4000
    assert 0 < told["unloaded"]["ttft_s"] <= told["unloaded"]["e2e_s"]
    for variant in told["variants"].values():
        figures: dict[str, Any] = variant["figures"]
        assert set(figures) == set(Figures.__struct_fields__)
        assert (figures["runs"], figures["requests"], figures["failed"]) == (2, 12, 0)
        assert 0 < figures["short_ttft_p50_s"] <= figures["short_e2e_p50_s"] <= figures["makespan_s"]
        assert figures["long_alone_ttft_s"] > 0
    assert set(told["variants"]["direct"]["to_direct"].values()) - {None} == {1.0}  # a figure of 0 has no ratio
    assert told["advice"]["variant"] in told["variants"]

    assert "<svg" in (out / "report.html").read_text()
    assert fairlane_compare(out / "direct", out / "sliced")
    runs = load(out / "sliced")
    assert [run.summary.completed for run in runs] == [6, 6]
    # Each run has the same requests, due when they were in the others; what they say is new.
    due = {tuple((row.n, row.kind, row.scheduled) for row in sorted(run.rows, key=lambda row: row.n)) for run in runs}
    assert len(due) == 1
    assert {row.cached_tokens or 0 for row in load(out / "direct")[0].rows} == {0}
    assert not (tmp_path / "state").exists()


def fairlane_compare(*folders: Path) -> str:
    done = CliRunner().invoke(app, ["load", "compare", *map(str, folders)])
    assert done.exit_code == 0, done.output
    return done.output


def test_with_json_only_json_is_printed(spark: str) -> None:
    told = json.loads(preempt("--upstream", spark, *SMALL, "--only", "gated", "--json", "--set", "policy=fifo"))
    assert list(told["variants"]) == ["direct", "gated"]
    assert told["variants"]["gated"]["settings"] == {"slicing": False}
    assert told["variants"]["gated"]["figures"]["slices"] in (None, 0)


def test_a_key_reaches_the_engine_but_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLANE_UPSTREAM_KEY", "secret")
    out = tmp_path / "out"
    with serve(guarded()) as url:
        preempt("--upstream", url, *SMALL, "--only", "gated", "--out", str(out))
    assert json.loads((out / "summary.json").read_text())["variants"]["gated"]["figures"]["failed"] == 0
    assert not any(b"secret" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def guarded() -> Any:
    """A Spark that wants a key."""
    spark = create_app(load_profile(NVFP4), ServerOptions(speed=100.0, noise=0.0))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        public = scope["type"] != "http" or not scope["path"].startswith("/v1")
        if public or dict(scope["headers"]).get(b"authorization") == b"Bearer secret":
            await spark(scope, receive, send)
        else:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)

    return app


def test_the_recorded_command_line_has_no_keys() -> None:
    assert "secret" not in command_line(["bench", "--set", "upstream_key=secret", "--set=upstream_key=secret"])


def test_an_interrupt_reports_what_was_measured(tmp_path: Path) -> None:
    """Short prompts go on coming for three seconds, and it is interrupted at the first ones of the second run."""
    out = tmp_path / "out"
    slow = ["--calibrate", "1", "--longs", "2", "--long-tokens", "4000", "--long-answer", "4"]
    with serve(create_app(load_profile(NVFP4), ServerOptions(speed=50.0, noise=0.0))) as url:
        command = [sys.executable, "-m", "loadtest", "bench", "preempt", "--upstream", url, *slow, "--rate", "4"]
        command += ["--shorts", "12", "--short-answer", "2", "--only", "gated,sliced", "--out", str(out)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ.copy(), text=True
        ) as run:
            rows = out / "gated" / "1" / "results.jsonl"
            wait_until(lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 2, 50)
            run.send_signal(signal.SIGINT)
            said, _ = run.communicate(timeout=40)
    assert run.returncode == 130
    assert "interrupted: what was measured by then is told" in said
    told = json.loads((out / "summary.json").read_text())
    assert list(told["variants"]) == ["direct"]
    assert told["advice"] is None
    assert json.loads((out / "gated" / "1" / "summary.json").read_text())["interrupted"] > 0


def test_an_engine_failure_reports_what_was_measured(tmp_path: Path) -> None:
    """It answers what comes without a gateway, and nothing else."""
    spark = create_app(load_profile(NVFP4), ServerOptions(speed=100.0, noise=0.0))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        proxied = any(name.startswith(b"x-request-id") for name, _ in scope.get("headers", ()))
        if scope["type"] == "http" and scope["path"] == "/v1/chat/completions" and proxied:
            await JSONResponse({"error": {"message": "gone"}}, 500)(scope, receive, send)
        else:
            await spark(scope, receive, send)

    with serve(app) as url:
        said = preempt("--upstream", url, *SMALL, "--only", "gated", "--out", str(tmp_path / "out"), code=2)
    assert "does not answer a prompt of 200 tokens: http error 500" in said
    assert "\ndirect " in said
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["advice"] is None


# What can go wrong.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "sliced,lifo"], "no variant 'lifo'"),
        (["--long-tokens", "9000"], "--long-tokens 7754 at the most"),
        (["--long-tokens", "1500"], "never sliced"),
        (["--short-tokens", "9000"], "--short-tokens 7818 at the most"),
        (["--set", "polcy=fair"], "did you mean policy?"),
        (["--only", "paced-3"], "long_share"),
        (["--prefer", "itl"], "--prefer"),
    ],
)
def test_bad_input_is_reported_before_anything_is_measured(spark: str, arguments: list[str], said: str) -> None:
    told = preempt("--upstream", spark, *arguments, code=2)
    assert said in " ".join(told.split())
    assert "Traceback" not in told


def test_an_unreachable_engine_is_reported() -> None:
    told = preempt("--upstream", "http://127.0.0.1:9", code=2)
    assert told.splitlines()[-1].startswith("fairlane: ")
    assert "Does vLLM run, and there?" in told


def test_a_gateway_in_place_of_an_engine_is_reported() -> None:
    async def listed(request: Any) -> Response:
        return JSONResponse({"data": [{"id": "m"}]})

    async def metrics(request: Any) -> Response:
        return PlainTextResponse("# \nfairlane_seats 0\n")

    with serve(Starlette(routes=[Route("/v1/models", listed), Route("/metrics", metrics)])) as url:
        assert "is a Fairlane" in preempt("--upstream", url, code=2)


def test_results_are_not_overwritten(spark: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert "is not empty" in preempt("--upstream", spark, "--out", str(tmp_path), code=2)


def test_other_users_of_the_engine_are_reported(spark: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 4000, "ignore_eos": True}
    with httpx.stream("POST", f"{spark}/v1/chat/completions", json=body, timeout=10) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        said = preempt("--upstream", spark, "--long-tokens", "9000", code=2)
    assert "Others use the engine, 1 at this moment" in said
