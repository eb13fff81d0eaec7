"""A comparison printed on a terminal."""

from io import StringIO
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType

from loadtest.report.comparison import compare
from loadtest.report.terminal import comparison_table, summary_table
from loadtest.results.records import Outcome, Record
from loadtest.results.result import Result
from loadtest.results.summary import About, Lag, Measurement, row, summarize
from loadtest.workloads.plan import Plan, Point, Request

WIDTH = 100
BOLD, RED = "\x1b[1m", "\x1b[1;31m"


def run(
    policy: str, waits: list[float], *, users: int = 2, points: tuple[Point, ...] = (), kinds: int = 1, **changes: Any
) -> Result:
    """Requests by how long they waited; -1 was turned away."""
    records = []
    for number, wait in enumerate(waits):
        kind, point = f"kind-{number % kinds}", 0 if points else None
        request = Request(float(number), f"user-{number % users}", kind, 200, 11, point=point)
        record = Record(request, number, sent=float(number), prompt_tokens=200)
        if wait < 0:
            record.outcome, record.ended = Outcome.REJECTED, float(number)
        else:
            record.outcome, record.tokens = Outcome.COMPLETED, [number + wait + token / 10 for token in range(11)]
        records.append(record)
    about = About("office", 3, "virtual", policy, "gemma")
    summary = summarize(about, Measurement(Plan((), points=points), records, alone=lambda tokens: 0.5))
    return Result(policy, msgspec.structs.replace(summary, **changes), tuple(map(row, records)))


def printed(table: RenderableType, *, colours: bool = False) -> str:
    written = StringIO()
    console = Console(file=written, width=WIDTH, force_terminal=colours, color_system="standard" if colours else None)
    console.print(table)
    return written.getvalue()


def line(text: str, begin: str) -> str:
    """The first line that begins so, with single blanks."""
    return " ".join(next(each for each in text.splitlines() if each.strip().startswith(begin)).split())


# A run.


def test_a_run_shows_its_workload_and_outcomes() -> None:
    text = printed(summary_table(run("fair", [1.0] * 18 + [-1.0] * 2).summary))
    assert line(text, "office") == "office, fair simulated gemma, seed 3"
    assert line(text, "20 asked") == ("20 asked, 18 completed, 2 failed (2 rejected), 0 interrupted, in 19.0 s")
    assert line(text, "TTFT from send") == "TTFT from send 1.00 s 1.00 s 1.00 s 1.00 s 1.00 s 1.00 s"
    assert line(text, "TPOT").startswith("TPOT 100 ms 100 ms")
    assert "goodput 90.0 %" in text


def test_a_percentile_among_failures_is_never() -> None:
    text = printed(summary_table(run("fair", [1.0] * 18 + [-1.0] * 2).summary))
    assert line(text, "TTFT from arrival") == "TTFT from arrival never 1.00 s never never never never"
    assert line(text, "E2E from arrival") == "E2E from arrival never 2.00 s never never never never"
    assert line(text, "user-0") == "user-0 10 1 1.00 s never 2.00 s never 2.00"
    nobody = printed(summary_table(run("fair", []).summary))
    assert line(nobody, "TTFT from arrival") == "TTFT from arrival" + 6 * " –"


def test_failures_and_interruptions_are_red() -> None:
    calm = printed(summary_table(run("fair", [1.0] * 9).summary), colours=True)
    assert "0 failed" in calm
    assert "0 interrupted" in calm
    assert "\x1b[1;31m" not in calm
    text = printed(summary_table(run("fair", [1.0, -1.0], interrupted=4).summary), colours=True)
    assert f"{RED}1 failed (1 rejected)" in text
    assert f"{RED}4 interrupted" in text


def test_an_invalid_run_shows_the_reason_in_red() -> None:
    spoilt = run("fair", [1.0] * 9, schedule_lag=Lag(1.0, 400.0, 900.0, valid=False))
    text = printed(summary_table(spoilt.summary), colours=True)
    assert f"{RED}not valid: the load tester itself sent late" in text


def test_several_kinds_and_users_have_their_own_rows() -> None:
    one = printed(summary_table(run("fair", [1.0] * 9, users=1).summary))
    assert "kind" not in one
    assert "user" not in one
    text = printed(summary_table(run("fair", [1.0] * 40, users=20, kinds=2).summary))
    assert line(text, "kind-1") == "kind-1 20 0 1.00 s 1.00 s 2.00 s 2.00 s 2.00"
    assert text.count("user-") == 12 + 1  # and the least favoured
    assert "and 8 more" in text


def test_points_are_shown_in_a_table() -> None:
    text = printed(summary_table(run("direct", [1.0] * 5, points=(Point(4096, 256, concurrency=5),)).summary))
    assert "at once" in text
    assert line(text, "4,096, 256").startswith("4,096, 256 5 5 0 1.00 s 1.00 s 10.0 ")
    rates = printed(summary_table(run("direct", [1.0] * 5, points=(Point(4000, 500, rate=0.3),)).summary))
    assert line(rates, "4,000, 500").startswith("4,000, 500 0.30 /s 5 0")


# A comparison.

SLOW, FAST = [4.0 + n / 10 for n in range(40)], [0.4 + n / 100 for n in range(40)]


def test_two_sides_are_shown_with_a_ratio() -> None:
    text = printed(comparison_table(compare([[run("direct", SLOW)], [run("fair", FAST)]])))
    assert line(text, "TTFT from arrival p50") == "TTFT from arrival p50 5.95 s 0.595 s 0.10× (0.10) better"
    assert line(text, "duration").endswith("×")
    assert line(text, "failed") == "failed 0 of 40 0 of 40 1.00× (1.00)"
    assert line(text, "rejected") == "rejected 0 0"
    assert line(text, "interrupted") == "interrupted 0 0"


def test_wins_and_losses_are_equally_bold() -> None:
    for sides, verdict in (((SLOW, FAST), "better"), ((FAST, SLOW), "worse")):
        table = comparison_table(compare([[run("one", sides[0])], [run("two", sides[1])]]))
        first = next(each for each in printed(table, colours=True).splitlines() if "TTFT from arrival p50" in each)
        assert first.count(BOLD) == 2
        assert verdict in first


def test_differences_within_chance_are_not_bold() -> None:
    shuffled = [SLOW[n * 7 % 40] for n in range(40)]
    table = comparison_table(compare([[run("one", SLOW)], [run("two", shuffled)]]))
    first = next(each for each in printed(table, colours=True).splitlines() if "TTFT from arrival p50" in each)
    assert BOLD not in first
    assert "better" not in first
    assert "worse" not in first


@pytest.mark.parametrize("sides", [1, 2, 3, 4, 5, 8])
def test_the_output_fits_100_columns(sides: int) -> None:
    names = ["direct", "a-long-name-of-a-policy", "fair", "semaphore", "priority", "fifo", "drr", "shortest"]
    groups = [[run(name, SLOW if number % 2 else FAST, kinds=2)] for number, name in enumerate(names[:sides])]
    text = printed(comparison_table(compare(groups)))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\u2026" not in text
    wide = run("a-rather-long-policy", [400.0] * 30, users=20, kinds=3, points=())
    assert max(map(len, printed(summary_table(wide.summary)).splitlines())) <= WIDTH


def test_with_many_sides_a_star_marks_clear_differences() -> None:
    text = printed(comparison_table(compare([[run("a", SLOW)], [run("b", FAST)], [run("c", SLOW)]])))
    assert "0.10× (0.10)*" in text
    assert "bold, *:" in text


def test_with_many_sides_intervals_are_left_out() -> None:
    for sides, has_one in ((3, True), (4, False)):
        text = printed(comparison_table(compare([[run(str(n), FAST if n else SLOW)] for n in range(sides)])))
        assert ("0.10× (0.10)*" in text) == has_one
        assert ("0.10×*" in text) != has_one


def test_faults_and_notes_come_first_and_markup_is_escaped() -> None:
    late = run("[red]fair", FAST, schedule_lag=Lag(1.0, 400.0, 900.0, valid=False), clock="real")
    text = printed(comparison_table(compare([[run("direct", SLOW)], [late]])), colours=True)
    assert text.index("not valid") < text.index("not the same clock") < text.index("TTFT")
    assert f"{RED}[red]fair, seed 3: not valid" in text
