"""The sentence that summarises a comparison."""

from collections.abc import Sequence

import pytest

from loadtest.report.comparison import compare
from loadtest.report.sentence import sentence
from loadtest.results.records import Outcome, Record
from loadtest.results.result import Result
from loadtest.results.summary import About, Measurement, row, summarize
from loadtest.workloads.plan import Plan, Point, Request

SHORT, LONG = ("question", 200), ("document", 25_000)


def run(
    policy: str, *waits: tuple[tuple[str, int], float], writes: float = 1.0, seed: int = 1, name: str = ""
) -> Result:
    """Requests of a kind and size, by how long they waited for their first token; -1 was turned away."""
    records = []
    for number, ((kind, tokens), wait) in enumerate(waits):
        record = Record(Request(float(number), "ada", kind, tokens, 11), number, sent=float(number))
        record.prompt_tokens = tokens
        if wait < 0:
            record.outcome, record.ended = (Outcome.REJECTED if wait == -1 else Outcome.TIMEOUT), float(number)
        else:
            record.outcome = Outcome.COMPLETED
            record.tokens = [number + wait + writes * token / 10 for token in range(11)]
        records.append(record)
    return made(policy, records, (), seed, name)


def made(policy: str, records: Sequence[Record], points: tuple[Point, ...], seed: int = 1, name: str = "") -> Result:
    about = About("office", seed, "virtual", policy)
    summary = summarize(about, Measurement(Plan((), points=points), records, alone=lambda tokens: 1.0))
    return Result(name or policy, summary, tuple(map(row, records)))


def office(policy: str, short: float, long: float, *, writes: float = 10.0, failed: int = 0) -> Result:
    """Enough of each for an interval, and all alike."""
    turned_away = [(SHORT, -1.0)] * failed
    return run(policy, *turned_away, *[(SHORT, short)] * (30 - failed), *[(LONG, long)] * 10, writes=writes)


def said(*groups: Result | Sequence[Result]) -> str:
    sides = [[group] if isinstance(group, Result) else group for group in groups]
    return sentence(sides, compare(sides))


def test_a_single_run_is_summarised() -> None:
    assert said(office("fair", 1.3, 35.0)) == (
        "With Fairlane (fair) a short question typically waited 1.3 s for its first word; one in twenty waited more "
        "than 1.3 s; a long document waited 35 s; whole short answers took 11 s; nothing failed."
    )


def test_two_runs_are_told_as_one_figure_instead_of_the_other() -> None:
    assert said(office("direct", 24.0, 29.0), office("fair", 1.3, 35.0)) == (
        "With Fairlane (fair) a short question typically waited 1.3 s for its first word instead of 24 s; one in "
        "twenty waited more than 1.3 s instead of 24 s; the long documents' first words came 1.2 times later (35 s, "
        "not 29 s); whole short answers took 11 s instead of 34 s; nothing failed."
    )


def test_a_loss_is_told_as_plainly_as_a_win() -> None:
    assert said(office("fair", 1.3, 35.0), office("direct", 24.0, 29.0)) == (
        "Straight at the engine a short question typically waited 24 s for its first word instead of 1.3 s; one in "
        "twenty waited more than 24 s instead of 1.3 s; the long documents' first words came sooner, after 29 s "
        "instead of 35 s; whole short answers took 3.0 times as long (34 s, not 11 s); nothing failed."
    )


def test_equal_figures_are_called_the_same() -> None:
    assert said(office("direct", 2.0, 29.0), office("fair", 2.0, 29.0)) == (
        "With Fairlane (fair) a short question typically waited 2.0 s for its first word either way; one in twenty "
        "waited more than 2.0 s either way; long documents waited 29 s either way; whole short answers took about as "
        "long (12 s); nothing failed."
    )


def test_chance_is_called_no_clear_difference() -> None:
    one = run("direct", *[(SHORT, 1.0 + n / 10) for n in range(20)])
    two = run("fair", *[(SHORT, 1.1 + (n * 7 % 20) / 10) for n in range(20)], seed=2)
    assert "waited 2.0 s for its first word, no clear difference from 1.9 s" in said(one, two)
    few, more = ([(SHORT, 1.0)] * 9 + [(LONG, long + n) for n in range(9)] for long in (1.0, 2.0))
    assert "long documents waited 6.0 s, no clear difference from 5.0 s" in said(
        run("a", *few), run("b", *more, seed=2)
    )


def test_a_difference_in_the_tail_is_told() -> None:
    short, half = [(SHORT, 1.0)] * 20, [(LONG, 20.0)] * 30
    one = run("direct", *short, *half, *[(LONG, 30.0)] * 20)
    two = run("fair", *short, *half, *[(LONG, 60.0)] * 20)
    assert "; long documents waited 20 s either way, but one in twenty more than 60 s instead of 30 s; " in said(
        one, two
    )
    assert "one in twenty more than" not in said(two, one)
    lost = run("fair", *short, *half, *[(LONG, -1.0)] * 20)
    assert "; long documents waited 20 s either way, but one in twenty never got any; " in said(one, lost)
    later = run("fair", *short, *[(LONG, 40.0)] * 30, *[(LONG, 60.0)] * 20)
    assert "; the long documents' first words came 2.0 times later (40 s, not 20 s); " in said(one, later)


def test_with_one_prompt_size_the_sentence_is_about_requests() -> None:
    assert said(run("direct", *[(LONG, 3.0)] * 20)).startswith(
        "Straight at the engine a request typically waited 3.0 s for its first word"
    )


def test_people_with_many_kinds_of_work_have_short_and_long_requests() -> None:
    kinds = [("chat", 300), ("question", 200), ("rag", 6000), ("document", 25_000)]
    told = said(run("fair", *[(kind, 2.0) for kind in kinds for _ in range(8)]))
    assert "a short request typically waited" in told
    assert "a long request waited 2.0 s" in told


def test_three_runs_are_listed() -> None:
    assert said(office("direct", 24.0, 29.0), office("fair", 1.3, 35.0), office("semaphore", 150.0, 30.0)) == (
        "A short question typically waited 24 s for its first word straight at the engine, 1.3 s with Fairlane (fair) "
        "and 2.5 minutes behind a semaphore; a long document 29 s, 35 s and 30 s; nothing failed."
    )


def test_of_many_runs_the_first_best_and_worst_are_told() -> None:
    runs = [office(name, wait, 30.0) for name, wait in zip("abcdef", (9.0, 7.0, 1.0, 8.0, 60.0, 5.0), strict=True)]
    assert said(*runs) == (
        "A short question typically waited 9.0 s for its first word with a, 1.0 s with c and 60 s with e; a long "
        "document 30 s, 30 s and 30 s; the 3 others lie between; nothing failed."
    )


# Failures.


def test_rejections_are_counted() -> None:
    assert said(office("fair", 1.0, 9.0, failed=3)).endswith("; 3 of 40 requests were turned away.")
    assert said(office("direct", 1.0, 9.0), office("fair", 1.0, 9.0, failed=3)).endswith(
        "; 3 of 40 requests were turned away, none straight at the engine."
    )
    assert said(office("direct", 1.0, 9.0, failed=2), office("fair", 1.0, 9.0)).endswith(
        "; nothing failed, 2 straight at the engine."
    )
    three = said(office("direct", 1.0, 9.0), office("fair", 1.0, 9.0, failed=3), office("fifo", 1.0, 9.0))
    assert three.endswith("; requests that failed: 3 of 40 with Fairlane (fair).")


def test_failures_are_not_called_rejections() -> None:
    told = said(run("direct", *[(SHORT, 1.0)] * 20, (SHORT, -1), (SHORT, -2)))
    assert told.endswith("; 2 of 22 requests failed (1 of them turned away).")
    assert "one in twenty never got any" in told


def test_the_median_may_be_never() -> None:
    told = said(office("direct", 24.0, 29.0), office("fair", 1.0, 35.0, failed=20))
    assert told.startswith(
        "With Fairlane (fair) most short questions never got an answer; straight at the engine it waited 24 s"
    )
    assert "most whole short answers never came, and after 34 s straight at the engine" in told
    back = said(office("direct", 24.0, 29.0, failed=20), office("fair", 1.0, 35.0))
    assert "waited 1.0 s for its first word; straight at the engine most short questions never got an answer" in back
    assert "most whole short answers came after 11 s, and never straight at the engine" in back
    alone = said(office("direct", 24.0, 29.0, failed=20))
    assert alone.startswith("Straight at the engine most short questions never got an answer;")
    both = said(office("direct", 24.0, 29.0, failed=20), office("fair", 1.0, 35.0, failed=20))
    assert both.startswith("With Fairlane (fair) most short questions never got an answer, either way;")


def test_an_empty_run_has_nothing_to_tell() -> None:
    assert said(run("direct")) == "Nothing came to an end straight at the engine, so there is nothing to tell."


# What the sides are called.


@pytest.mark.parametrize(
    ("policy", "how"),
    [
        ("fair", "With Fairlane (fair) "),
        ("priority", "With vLLM's own priorities "),
        ("vllm-0.33", "With vllm-0.33 "),
        ("", "With unnamed "),
    ],
)
def test_sides_are_named_after_their_deployment(policy: str, how: str) -> None:
    assert said(run(policy, *[(SHORT, 1.0)] * 9, name="unnamed")).startswith(how)


def test_sides_of_one_policy_are_named_after_their_runs() -> None:
    one, two = (run("fair", *[(SHORT, 1.0)] * 9, name=name) for name in ("slices-2048", "slices-4096"))
    assert said(one, two).startswith("With slices-4096 ")


# Sweeps and batches.


def sweep(policy: str, waits: dict[float, float]) -> Result:
    records = [
        Record(Request(0.0, "ada", "random", 4000, 2, point=place), 20 * place + n, sent=0.0, tokens=[wait, wait + 1])
        for place, wait in enumerate(waits.values())
        for n in range(20)
    ]
    for record in records:
        record.outcome = Outcome.COMPLETED
    return made(policy, records, tuple(Point(4000, 500, rate=rate) for rate in waits))


def test_a_sweep_is_summarised_by_its_sustained_rates() -> None:
    direct = sweep("direct", {0.1: 2.5, 0.5: 4.0, 1.0: 8.0})
    assert said(direct) == (
        "Straight at the engine it kept up with 0.5 requests a second (95 of 100 first words within 5 s); within 10 s "
        "at least 1; within 2 s not even 0.1; nothing failed."
    )
    fair = sweep("fair", {0.1: 2.2, 0.5: 6.0, 1.0: 12.0})
    assert said(direct, fair) == (
        "With Fairlane (fair) it kept up with 0.1 requests a second instead of 0.5 (95 of 100 first words within 5 s); "
        "within 10 s 0.5 instead of at least 1; within 2 s not even 0.1, either way; nothing failed."
    )
    assert said(direct, fair, sweep("fifo", {0.1: 9.0})).startswith(
        "With 95 of 100 first words within 5 s, so many requests a second may come: 0.5 straight at the engine, 0.1 "
        "with Fairlane (fair) and not even 0.1 with Fairlane (fifo);"
    )


def closed(policy: str, points: dict[tuple[int, int], tuple[float, float]]) -> Result:
    """Of prompt tokens and size: the wait, and tokens a second."""
    records: list[Record] = []
    for place, ((_, size), (wait, speed)) in enumerate(points.items()):
        for slot in range(size):
            request = Request(0.0, f"client-{slot}", "batch", 1000, 11, point=place)
            tokens = [wait + token / speed for token in range(11)]
            record = Record(request, len(records), sent=0.0, tokens=tokens, outcome=Outcome.COMPLETED)
            records.append(record)
    return made(policy, records, tuple(Point(pp, 256, concurrency=size) for pp, size in points))


def test_batches_are_summarised_per_user() -> None:
    direct = closed("direct", {(1000, 1): (0.3, 24), (1000, 10): (2, 12), (25_000, 1): (7, 23), (25_000, 10): (41, 9)})
    assert said(direct) == (
        "Straight at the engine one user got 23 to 24 tokens a second, ten users 9.0 to 12 each; the first word of a "
        "prompt of 25,000 tokens came after 7.0 s with one user, 41 s with ten users; nothing failed."
    )
    fair = closed("fair", {(1000, 1): (0.3, 24), (1000, 10): (2, 15), (25_000, 1): (7, 23), (25_000, 10): (35, 10)})
    assert said(direct, fair) == (
        "With Fairlane (fair) ten users got 10 to 15 tokens a second each instead of 9.0 to 12; the first word of a "
        "prompt of 25,000 tokens came after 35 s instead of 41 s; one user got 23 to 24 tokens a second, either way; "
        "nothing failed."
    )
    assert said(direct, fair, direct).startswith(
        "Ten users got so many tokens a second each: 9.0 to 12 with direct #1,"
    )


def test_batches_of_one_size_are_summarised() -> None:
    assert said(closed("direct", {(1000, 20): (3.0, 5.0)})) == (
        "Straight at the engine 20 users got 5.0 tokens a second; the first word of a prompt of 1,000 tokens came "
        "after 3.0 s; nothing failed."
    )
