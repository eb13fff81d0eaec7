"""The `fairlane load` commands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtest.cli.load import read_slo
from loadtest.cli.main import app
from loadtest.results.summary import Slo
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.server import create_app
from loadtest.storage.engine_profiles import load_profile
from loadtest.workloads.catalogue import PRESETS, WORKLOADS
from tests.support.servers import serve
from tests.support.waiting import wait_until

BF16 = "gemma-4-26b-bf16"
FEW = ["--requests", "6"]


def fairlane(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["load", *arguments], env={"COLUMNS": "160"})
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def summary(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fairlane(*arguments, "--json"))
    return found


def test_the_list_names_every_workload() -> None:
    listed = fairlane("list")
    assert all(name in listed for name in (*WORKLOADS, *PRESETS))


def test_a_simulation_prints_only_its_summary() -> None:
    found = summary("simulate", "starvation", "--policy", "fair", *FEW)
    assert (found["workload"], found["policy"], found["profile"], found["clock"]) == (
        *("starvation", "fair", BF16, "virtual"),
    )
    assert (found["offered"], found["completed"]) == (6, 6)
    assert "fairlane load" in found["provenance"]["command"] or found["provenance"]["command"].startswith("fairlane")


def test_the_same_seed_gives_the_same_figures_and_another_seed_others() -> None:
    def figures(seed: str) -> dict[str, Any]:
        found = summary("simulate", "office-mix", "--duration", "60", "--seed", seed)
        return {key: value for key, value in found.items() if key != "provenance"}

    assert figures("3") == figures("3")
    assert figures("3") != figures("4")


def test_a_closed_loop_prints_its_points() -> None:
    points = summary("simulate", "B")["points"]
    assert [(point["pp"], point["tg"], point["concurrency"]) for point in points] == [
        *((25000, 256, 5), (25000, 256, 10), (25000, 256, 20)),
    ]
    assert all(point["ttft_ms"] and point["prefill_tps"] and point["decode_tps_total"] for point in points)


def test_several_policies_are_compared_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = fairlane("simulate", "starvation", "--policy", "direct", "--policy", "fair", "--out", str(out))
    assert "TTFT from arrival p50" in said
    for name in ("direct", "fair"):
        rows = (out / name / "results.jsonl").read_text().splitlines()
        assert len(rows) == json.loads((out / name / "summary.json").read_text())["offered"]
    assert "Fairlane" in (out / "report.html").read_text()
    page = tmp_path / "page.html"
    assert "question" in fairlane("compare", str(out / "direct"), str(out / "fair"), "--html", str(page))
    assert "<svg" in page.read_text()


def test_the_concurrency_cap_of_a_workload_can_be_removed() -> None:
    capped, free = summary("simulate", "J"), summary("simulate", "J", "--max-concurrency", "0")
    assert capped["ttft_send_ms"]["p50"] < 2000 < capped["ttft_arrival_ms"]["p50"]
    assert free["ttft_send_ms"] == free["ttft_arrival_ms"]
    assert free["rps"] > 2 * capped["rps"]


def test_engine_flags_and_gateway_settings_reach_the_simulation() -> None:
    stock = summary("simulate", "starvation", "--policy", "fair")
    tuned = summary("simulate", "starvation", "--policy", "fair", "--long-prefill-token-threshold", "2560")
    seats = summary("simulate", "starvation", "--policy", "fair", "--set", "engine.max_num_seqs=4")
    assert tuned["kinds"]["question"]["ttft_arrival_ms"]["p95"] < stock["kinds"]["question"]["ttft_arrival_ms"]["p95"]
    assert seats["duration_s"] > stock["duration_s"]
    assert "max_num_seqs=4" in seats["provenance"]["limits"]


def test_results_can_be_written_in_vllms_schema(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    found = summary("simulate", "H", "--vllm-json", str(file))
    bench = json.loads(file.read_text())
    assert bench["completed"] == 200
    assert bench["total_output_tokens"] == 97092
    assert bench["median_ttft_ms"] == pytest.approx(found["ttft_send_ms"]["p50"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "monday"], "monday-burst"),
        (["simulate", "J", "--policy", "lifo"], "no policy 'lifo'"),
        (["simulate", "J", "--profile", "h100"], "no engine profile 'h100'"),
        (["simulate", "J", "--slo", "ttft=2"], "write it like"),
        (["simulate", "J", "--set", "seats"], "write KEY=VALUE"),
        (["simulate", "H", "--duration", "1", "--seed", "42"], "nothing of office-baseline is left"),
        (["run", "J", "--base-url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["compare", "/nowhere"], "holds no results"),
        (["suite", "nine", "--out", "/tmp/never"], "no workload 'nine'"),
        (["fit", "h100"], "nothing was measured on 'h100'"),
    ],
)
def test_errors_are_reported_in_one_line(arguments: list[str], said: str) -> None:
    shown = " ".join(fairlane(*arguments, code=2).replace("│", " ").split())
    assert said in shown
    assert "Traceback" not in shown


def test_a_suite_resumes_and_writes_its_page(tmp_path: Path) -> None:
    first = fairlane("suite", "F,G", "--policy", "direct", "--policy", "fair", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "under half a second for ten short prompts" in page
    assert "481 ms" in page  # as measured
    before = (tmp_path / "rag-mix" / "direct" / "summary.json").stat().st_mtime_ns
    again = CliRunner().invoke(
        app, ["load", "suite", "F,G", "--policy", "direct", "--policy", "fair", "--out", str(tmp_path)]
    )
    assert again.exit_code == 0, again.output
    assert (tmp_path / "rag-mix" / "direct" / "summary.json").stat().st_mtime_ns == before
    other = fairlane("suite", "F,G", "--policy", "direct", "--seed", "5", "--out", str(tmp_path), code=2)
    assert "another run" in " ".join(other.split())
    assert first == ""


def test_slos_are_parsed() -> None:
    assert read_slo("ttft=2s,tpot=150ms") == Slo(2.0, 0.15)
    assert read_slo("ttft=500ms") == Slo(0.5, None)
    with pytest.raises(ValueError, match="write it like"):
        read_slo("e2e=1s")


def test_a_real_run_is_measured_and_kept(tmp_path: Path) -> None:
    with serve(create_app(load_profile(BF16), ServerOptions(speed=20))) as spark:
        out = tmp_path / "out"
        found = summary("run", "starvation", "--base-url", spark, "--speed", "20", "--out", str(out), *FEW)
    assert (found["clock"], found["completed"], found["failed"]) == ("real", 6, 0)
    assert (out / "report.html").is_file()
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["first"] >= row["sent"] >= row["scheduled"] and row["queue_ms"] >= 0 for row in rows)


def test_an_interrupted_run_keeps_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serve(create_app(load_profile(BF16), ServerOptions(speed=4))) as spark:
        command = [sys.executable, "-m", "loadtest", "load", "run", "office-mix", "--base-url", spark, "--speed", "4"]
        run = subprocess.Popen([*command, "--out", str(out), "--json"], stdout=subprocess.PIPE, env={**os.environ})
        rows = out / "results.jsonl"
        wait_until(lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 2, 30)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=40)
    found = json.loads(said)
    assert found["completed"] >= 2
    assert found["interrupted"] > 0
    assert found["failed"] == 0
    assert json.loads((out / "summary.json").read_text())["completed"] == found["completed"]


def test_an_interrupted_suite_repeats_only_unfinished_runs(tmp_path: Path) -> None:
    folder = tmp_path / "rag-mix" / "direct"
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text('{"n": 0}\n')  # its run was killed
    fairlane("suite", "F", "--out", str(tmp_path))
    assert json.loads((folder / "summary.json").read_text())["interrupted"] == 0
    assert (tmp_path / "rag-mix" / "direct.interrupted-1" / "results.jsonl").read_text() == '{"n": 0}\n'
