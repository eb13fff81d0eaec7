"""Nothing changes by accident: some golden results in each run of the tests, and the first logs still replay."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from loadtest.simulation.replay import replay
from tests.golden.golden import FILE, LOGS, Case, cases, entry, recorded

BF16, NVFP4 = "gemma-4-26b-bf16", "gemma-4-26b-nvfp4"
QUICK = (
    Case("starvation", BF16, "fair", "sliced"),
    Case("starvation", NVFP4, "fifo", "whole"),
    Case("starvation", NVFP4, "shortest", "sliced"),
    Case("starvation", BF16, "drr", "limited"),
    Case("office-minute", NVFP4, "fair", "whole"),
    Case("office-minute", BF16, "fifo", "sliced"),
    Case("office-minute", BF16, "shortest", "plain"),
    Case("office-minute", BF16, "deadline", "sliced"),
    Case("office-minute", BF16, "priority", "plain"),
    Case("starvation", BF16, "semaphore", "plain"),
    Case("office-mix", NVFP4, "direct", "whole"),
    Case("office-mix", BF16, "fair", "limited"),
    Case("multi-turn", NVFP4, "shortest", "plain"),
)
KINDS = {"arrive", "slice_done", "first_token", "progress", "finish", "leave", "relimit", "use", "correct"}
V1 = sorted(LOGS.glob("*.jsonl.gz"))

# From 3.12 on, sum() rounds floats differently.
PYTHON = json.loads(FILE.read_text())["python"]
same_python = pytest.mark.skipif(
    "{}.{}".format(*sys.version_info) != PYTHON, reason=f"recorded by Python {PYTHON}, whose sum() rounds differently"
)


@same_python
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_simulation_comes_to_what_it_did(case: Case) -> None:
    assert entry(case) == recorded()[case.name]


def test_every_case_is_recorded() -> None:
    assert {case.name for case in cases()} == recorded().keys()


@pytest.mark.parametrize("log", V1, ids=lambda log: log.name)
def test_a_log_in_the_first_format_replays(log: Path) -> None:
    with gzip.open(log, "rt") as lines:
        events = sum(1 for _ in lines) - 1
    with gzip.open(log, "rt") as lines:
        assert replay(lines) == events > 0


def test_the_first_logs_have_events_of_every_kind() -> None:
    kinds = set()
    for log in V1:
        with gzip.open(log, "rt") as lines:
            next(lines)
            kinds |= {json.loads(line)["event"] for line in lines}
    assert kinds == KINDS
