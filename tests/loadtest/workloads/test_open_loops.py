"""The open loops against the published runs of the article; tests/vllm compares them with vLLM itself."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from loadtest.workloads.open_loops import (
    MONDAY_BURST,
    OFFICE_BASELINE,
    REASONING,
    OpenLoop,
    arrivals,
    lengths,
    rate_sweep,
)
from loadtest.workloads.workload import Options

PUBLISHED = Options(42)
LOOPS = {"H": OFFICE_BASELINE, "J": MONDAY_BURST, "D": REASONING}
every_loop = pytest.mark.parametrize("letter", LOOPS)


@pytest.mark.parametrize(
    ("count", "total"),
    [(100, 49_146), (125, 61_228), (175, 85_494), (200, 97_092), (250, 123_008), (300, 150_317)],
)
def test_answer_totals_match_the_published_ones(count: int, total: int) -> None:
    assert sum(answer for _, answer in lengths(count, 4000, 500, 42)) == total


@pytest.mark.parametrize(("letter", "total"), [("H", 97_092), ("J", 150_317), ("D", 209_303)])
def test_request_totals_match_the_published_ones(letter: str, total: int) -> None:
    assert sum(request.answer_tokens for request in LOOPS[letter].plan(PUBLISHED).requests) == total


@pytest.mark.parametrize(
    ("prompt", "answer", "prompts", "answers"),
    [(4000, 500, (399, 7600), (49, 950)), (1024, 4096, (102, 1946), (409, 7783)), (1, 1, (0, 2), (1, 2))],
)
def test_length_bounds_match_the_published_logs(
    prompt: int, answer: int, prompts: tuple[int, int], answers: tuple[int, int]
) -> None:
    drawn = lengths(200_000, prompt, answer, 7)
    for column, bounds in zip(zip(*drawn, strict=True), (prompts, answers), strict=True):
        assert (min(column), max(column)) == bounds


def test_arrivals_match_the_published_seed() -> None:
    first = {letter: [request.at for request in loop.plan(PUBLISHED).requests[:3]] for letter, loop in LOOPS.items()}
    assert first["H"] == pytest.approx([1.15055325, 5.57200900, 5.89601144])
    assert first["J"] == pytest.approx([0.32159532, 2.38446939, 3.28685177])
    assert first["D"] == pytest.approx([2.77363413, 20.56511776, 28.34781358])


@every_loop
def test_arrivals_are_ordered_and_end_on_time(letter: str) -> None:
    loop = LOOPS[letter]
    times = [request.at for request in loop.plan(PUBLISHED).requests]
    assert len(times) == loop.count
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] == pytest.approx(loop.count / loop.rate)


def test_bursts_have_their_size_and_spacing() -> None:
    """The variation of the gaps is 1 for Poisson and 1/sqrt(0.7) in bursts."""
    for burstiness, expected in ((1.0, 1.0), (0.7, 1.195)):
        times = arrivals(20_000, 1.0, burstiness, 5)
        gaps = [after - before for before, after in pairwise(times)]
        mean = sum(gaps) / len(gaps)
        variation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean
        assert variation == pytest.approx(expected, rel=0.03)


def test_the_chat_template_is_added_to_prompts() -> None:
    drawn = lengths(200, 4000, 500, 42)
    found = [(request.prompt_tokens, request.output_tokens) for request in OFFICE_BASELINE.plan(PUBLISHED).requests]
    assert found == [(prompt + 13, answer) for prompt, answer in drawn]


def test_each_workload_has_its_kind_of_text() -> None:
    assert {letter: {request.text for request in loop.plan(PUBLISHED).requests} for letter, loop in LOOPS.items()} == {
        "H": {"random"},
        "J": {"random"},
        "D": {"reasoning"},
    }


def test_only_the_monday_burst_has_a_concurrency_cap() -> None:
    caps = {letter: loop.plan(PUBLISHED).max_concurrency for letter, loop in LOOPS.items()}
    assert caps == {"H": None, "J": 25, "D": None}


def test_requests_are_assigned_to_25_users_at_random() -> None:
    requests = MONDAY_BURST.plan(PUBLISHED).requests
    assert sorted({request.user for request in requests}) == [f"user-{number:02}" for number in range(1, 26)]
    other = MONDAY_BURST.plan(Options(43)).requests
    assert [request.user for request in other] != [request.user for request in requests]


def test_another_rate_scales_the_same_pattern() -> None:
    published = OFFICE_BASELINE.plan(PUBLISHED).requests
    faster = OFFICE_BASELINE.plan(Options(42, rate=0.6)).requests
    assert [request.at for request in faster] == pytest.approx([request.at / 2 for request in published])
    assert [replace(request, at=0) for request in faster] == [replace(request, at=0) for request in published]


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_of_zero_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0 requests a second"):
        OFFICE_BASELINE.plan(Options(42, rate=rate))


STEPS = [(0.1, 100), (0.2, 100), (0.3, 100), (0.5, 125), (0.7, 175), (1.0, 250)]


def test_the_sweep_has_six_rates() -> None:
    plan = rate_sweep(PUBLISHED)
    assert [(point.rate, point.pp, point.tg) for point in plan.points] == [(rate, 4000, 500) for rate, _ in STEPS]
    for number, (rate, count) in enumerate(STEPS):
        step = [request for request in plan.requests if request.point == number]
        alone = OpenLoop(count, rate, burstiness=0.7).plan(PUBLISHED).requests
        assert [request.delay if number else request.at for request in step] == [request.at for request in alone]
        assert [replace(request, at=0, delay=0, after=(), point=None) for request in step] == [
            replace(request, at=0) for request in alone
        ]


def test_a_step_of_the_sweep_waits_for_all_of_the_previous_step() -> None:
    plan = rate_sweep(PUBLISHED)
    start, before = 0, tuple[int, ...]()
    for _, count in STEPS:
        step = plan.requests[start : start + count]
        assert all(request.after == before for request in step)
        assert not before or all(request.at == 0 for request in step)
        before = tuple(range(start, start + count))
        start += count


def test_numpy_is_imported_only_when_needed() -> None:
    script = "import sys, loadtest.workloads; print('numpy' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout == "False\n"
    )
