"""Comparing runs: figures, ratios, intervals, and notes about what differs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import msgspec
import pytest

from loadtest.report.comparison import Comparison, compare
from loadtest.report.differences import spoiled
from loadtest.results.groups import long_kinds
from loadtest.results.records import Outcome, Record
from loadtest.results.result import Result
from loadtest.results.summary import About, Lag, Measurement, Slo, row, summarize
from loadtest.workloads.plan import Plan, Request

SHORT, LONG = 200, 25_000


def run(
    waits: Sequence[float],
    *,
    name: str = "direct",
    kind: str = "question",
    tokens: int = SHORT,
    seed: int = 1,
    slo: Slo | None = None,
    **about: Any,
) -> Result:
    """A request a second, which waits so long for its first token and a second for its last; -1 is turned away."""
    return mixed([(kind, tokens, wait) for wait in waits], name=name, seed=seed, slo=slo, **about)


def mixed(
    asked: Sequence[tuple[str, int, float]],
    *,
    name: str = "direct",
    seed: int = 1,
    slo: Slo | None = None,
    **about: Any,
) -> Result:
    records = []
    for number, (kind, tokens, wait) in enumerate(asked):
        request = Request(float(number), f"user-{number % 3}", kind, tokens, 11)
        at = request.at + wait
        record = Record(request, number, sent=request.at, prompt_tokens=tokens)
        if wait < 0:
            record.outcome, record.ended = Outcome.REJECTED, request.at
        else:
            record.outcome, record.ended, record.output_tokens = Outcome.COMPLETED, at + 1, 11
            record.tokens = [at + 0.1 * n for n in range(11)]
        records.append(record)
    told = msgspec.convert({"workload": "office", "clock": "virtual", "policy": name, "seed": seed, **about}, About)
    plan = Plan(tuple(record.request for record in records))
    summary = summarize(told, Measurement(plan, records, alone=lambda tokens: tokens / 1000, slo=slo or Slo()))
    return Result(name, summary, tuple(map(row, records)))


def waits(count: int, seed: int = 1, mean: float = 2.0) -> list[float]:
    random = Random(seed)
    return [random.expovariate(1 / mean) for _ in range(count)]


def changed(result: Result, **fields: object) -> Result:
    return replace(result, summary=msgspec.structs.replace(result.summary, **fields))


def said(compared: Comparison) -> str:
    return "\n".join(compared.notes)


# Values.


def test_a_single_run_has_its_summarys_figures_and_no_ratio() -> None:
    one = run([*waits(60), -1, -1])
    compared = compare([[one]])
    summary = one.summary
    assert summary.ttft_arrival_ms.p50 is not None
    for key, value in {
        "ttft_arrival_p50": summary.ttft_arrival_ms.p50 / 1e3,
        "tpot_p50": summary.tpot_ms.p50,
        "goodput": summary.goodput,
        "failed": 2 / 62,
        "itl_p99": summary.itl_ms.p99,
        "rps": summary.rps,
        "jain": summary.jain,
        "duration": summary.duration_s,
    }.items():
        (cell,) = compared.cells(key)
        assert cell.value == pytest.approx(value, abs=1e-4), key
        assert (cell.ratio, cell.interval, cell.verdict) == (None, None, "")
    assert compared.cells("ttft_arrival_p99")[0].value == inf
    assert summary.ttft_arrival_ms.p99 is None


def test_figures_of_several_runs_are_pooled_or_averaged() -> None:
    one, two = run([1.0] * 10), run([3.0] * 30, seed=2)
    compared = compare([[one, two]])
    assert compared.cells("ttft_arrival_p50")[0].value == 3.0
    assert compared.cells("duration")[0].value == pytest.approx((one.summary.duration_s + two.summary.duration_s) / 2)
    assert (compared.sides[0].runs, compared.sides[0].offered) == (2, 40)


def test_interrupted_requests_are_excluded() -> None:
    one = run([1.0] * 20)
    rows = (*one.rows[:10], *(msgspec.structs.replace(each, outcome=Outcome.INTERRUPTED) for each in one.rows[10:]))
    compared = compare([[changed(replace(one, rows=rows), offered=10, interrupted=10)]])
    assert compared.cells("failed")[0].value == 0
    assert "10 requests are not in the figures" in compared.faults[0]


# Ratios and intervals.


def test_sides_with_the_same_requests_are_compared_in_pairs() -> None:
    """Each wait is half as long: whichever requests are drawn, the ratio is a half."""
    before = waits(60)
    base, now = compare([[run(before)], [run([wait / 2 for wait in before], name="fair")]]).cells("ttft_arrival_p50")
    assert base.ratio is None
    assert now.ratio == pytest.approx(0.5)
    assert now.interval == pytest.approx((0.5, 0.5), abs=1e-6)
    assert now.verdict == "better"


def test_sides_with_other_requests_are_not_compared_in_pairs() -> None:
    before = waits(60)
    now = compare([[run(before)], [run([wait / 2 for wait in before], name="fair", seed=2)]])
    within = now.cells("ttft_arrival_p50")[1].interval
    assert within is not None
    assert within[1] - within[0] > 0.2
    assert "not the same seed" in said(now)


def test_pairs_are_matched_by_request_number() -> None:
    """A run that was stopped has fewer rows, in the order in which they ended."""
    before = waits(60)
    one, two = run(before), run([wait / 2 for wait in before], name="fair")
    shuffled = list(two.rows)
    Random(1).shuffle(shuffled)
    compared = compare([[one], [replace(two, rows=tuple(shuffled))]])
    assert compared.cells("ttft_arrival_p50")[1].interval == pytest.approx((0.5, 0.5), abs=1e-6)


def test_a_difference_within_chance_has_no_verdict() -> None:
    compared = compare([[run(waits(60, 1))], [run(waits(60, 2), name="fair", seed=2)]])
    cell = compared.cells("ttft_arrival_p50")[1]
    assert cell.interval is not None
    assert cell.interval[0] < 1 < cell.interval[1]
    assert cell.verdict == ""
    assert cell.in_doubt


@pytest.mark.parametrize(("factor", "wait", "good"), [(0.2, "better", "better"), (5.0, "worse", "worse")])
def test_a_verdict_knows_which_direction_is_better(factor: float, wait: str, good: str) -> None:
    before = waits(100, mean=2.0)
    compared = compare([[run(before)], [run([each * factor for each in before], name="fair")]])
    assert compared.cells("ttft_arrival_p50")[1].verdict == wait
    assert compared.cells("goodput")[1].verdict == good


@pytest.mark.parametrize(
    ("key", "enough"), [("ttft_arrival_p50", 8), ("ttft_arrival_p95", 20), ("ttft_arrival_p99", 100)]
)
def test_too_few_requests_have_no_interval(key: str, enough: int) -> None:
    for count, has_one in ((enough - 1, False), (enough, True)):
        compared = compare([[run(waits(count))], [run(waits(count, 2), name="fair")]])
        cell = compared.cells(key)[1]
        assert cell.ratio is not None
        assert (cell.interval is not None) == has_one
        assert not (cell.verdict and not has_one)


def test_failures_count_as_infinite_waits() -> None:
    """Whoever turns half away answers the rest at once, and has gained nothing."""
    before = waits(100, mean=10)
    sheds = [-1.0 if wait > 5 else 0.01 for wait in before]
    compared = compare([[run(before)], [run(sheds, name="sheds")]])
    cell = compared.cells("ttft_arrival_p95")[1]
    assert (cell.value, cell.ratio, cell.interval, cell.verdict) == (inf, inf, (inf, inf), "worse")
    assert compared.cells("ttft_send_p95")[1].verdict == "better"
    assert compared.cells("failed")[1].verdict == "worse"


def test_one_failure_may_be_chance_but_a_third_of_failures_is_not() -> None:
    nothing = run([1.0] * 60)
    for count, verdict in ((1, ""), (20, "worse")):
        cell = compare([[nothing], [run([-1.0] * count + [1.0] * (60 - count), name="fair")]]).cells("failed")[1]
        assert (cell.ratio, cell.verdict) == (inf, verdict)
    same = compare([[nothing], [run([1.0] * 60, name="fair")]]).cells("failed")[1]
    assert (same.ratio, same.interval, same.verdict) == (1.0, (1.0, 1.0), "")


def test_two_infinite_waits_are_equal() -> None:
    nobody = [-1.0] * 30
    cell = compare([[run(nobody)], [run(nobody, name="fair")]]).cells("ttft_arrival_p50")[1]
    assert (cell.value, cell.ratio, cell.verdict) == (inf, 1.0, "")
    back = compare([[run(nobody)], [run([1.0] * 30, name="fair")]]).cells("ttft_arrival_p50")[1]
    assert (back.value, back.ratio, back.verdict) == (1.0, 0.0, "better")


def test_missing_figures_have_no_ratio() -> None:
    compared = compare([[run([-1.0] * 30)], [run([1.0] * 30, name="fair")]])
    base, now = compared.cells("tpot_p50")
    assert (base.value, now.ratio, now.interval) == (None, None, None)


def test_differences_between_runs_widen_the_interval() -> None:
    """Half of all waits are short, but in one side's runs they are all short or all long."""

    def side(waits: Callable[[int], list[float]], name: str) -> list[Result]:
        return [run(waits(seed), name=name, seed=seed, slo=Slo(2.0, None)) for seed in range(4)]

    steady = side(lambda seed: [1.0, 3.0] * 20, "direct")
    even = compare([steady, side(lambda seed: [3.0, 1.0] * 20, "fair")]).cells("goodput")[1]
    moody = compare([steady, side(lambda seed: [1.0 if seed % 2 else 3.0] * 40, "fair")]).cells("goodput")[1]
    assert even.value == moody.value == 0.5
    assert even.interval == pytest.approx((0.75, 1.35), abs=0.1)
    assert moody.interval == pytest.approx((0.0, 2.0), abs=0.2)


def test_figures_with_one_value_per_run_need_three_runs() -> None:
    def side(name: str, runs: int, wait: float) -> list[Result]:
        return [run([wait] * 10, name=name, seed=seed) for seed in range(runs)]

    for runs, has_one in ((1, False), (2, False), (3, True)):
        cell = compare([side("direct", runs, 1.0), side("fair", runs, 20.0)]).cells("duration")[1]
        assert (cell.interval is not None) == has_one
        assert cell.verdict == ("worse" if has_one else "")


def test_the_same_runs_give_the_same_comparison() -> None:
    groups = [[run(waits(40))], [run(waits(40, 2), name="fair", seed=2)]]
    assert compare(groups) == compare(groups)


def test_the_goodput_limit_is_that_of_the_first_side() -> None:
    lax, strict = Slo(ttft=10.0, tpot=None), Slo(ttft=0.5, tpot=None)
    compared = compare([[run([1.0] * 20, slo=lax)], [run([1.0] * 20, name="fair", slo=strict)]])
    assert [cell.value for cell in compared.cells("goodput")] == [1.0, 1.0]
    assert "not the same limits" in said(compared)
    assert "first word within 10 s" in said(compared)


# Parts.


def test_kinds_are_short_or_long_by_their_median_prompt() -> None:
    asked = (
        [("chat", SHORT, 1.0)] * 3 + [("chat", LONG, 1.0)] * 2 + [("paste", LONG, 1.0)] * 2 + [("paste", SHORT, 1.0)]
    )
    assert long_kinds([[mixed(asked)]]) == {"paste"}
    compared = compare([[mixed(asked)]])
    assert (compared.short, compared.long) == ("chat", "paste")
    assert compared.cells("ttft_arrival_p50", "paste")[0].value == 1.0


def test_several_short_kinds_are_reported_together_and_one_by_one() -> None:
    asked = [("chat", SHORT, 1.0), ("ask", SHORT, 3.0), ("paste", LONG, 9.0), *((f"{n}", SHORT, 2.0) for n in range(5))]
    compared = compare([[mixed(asked * 9)]])
    kinds = ["0", "1", "2", "3", "4", "ask", "chat"]
    assert list(dict.fromkeys(line.part for line in compared.lines)) == ["", "short prompts", "paste", *kinds]
    assert (compared.short, compared.long) == ("short prompts", "paste")
    assert compared.cells("ttft_arrival_p50", "short prompts")[0].value == 2.0
    assert [compared.cells("ttft_arrival_p50", kind)[0].value for kind in ("ask", "chat", "paste")] == [3.0, 1.0, 9.0]


@pytest.mark.parametrize("tokens", [SHORT, LONG])
def test_prompts_of_one_size_are_not_split_into_short_and_long(tokens: int) -> None:
    compared = compare([[run(waits(10), tokens=tokens)]])
    assert (compared.short, compared.long) == ("", "")
    assert {line.part for line in compared.lines} == {""}


# What cannot be compared, and what must be said.


def test_other_workloads_are_refused() -> None:
    with pytest.raises(ValueError, match="different workloads cannot be compared: office, starvation"):
        compare([[run([1.0])], [run([1.0], workload="starvation")]])
    with pytest.raises(ValueError, match="each side needs a run"):
        compare([[run([1.0])], []])
    with pytest.raises(ValueError, match="each side needs a run"):
        compare([])


@pytest.mark.parametrize(
    ("differs", "note"),
    [
        ({"clock": "real"}, "not the same clock (direct: simulated; fair: real)"),
        ({"profile": "gemma"}, "not the same machine (direct: not told; fair: gemma)"),
        ({"model": "gemma"}, "not the same model (direct: not told; fair: gemma)"),
    ],
)
def test_differing_settings_are_noted(differs: dict[str, Any], note: str) -> None:
    compared = compare([[run([1.0] * 10)], [run([1.0] * 10, name="fair", **differs)]])
    assert compared.notes == (note,)


def test_equal_settings_are_not_noted() -> None:
    compared = compare([[run(waits(20))], [run(waits(20, 2), name="fair")]])
    assert compared.notes == compared.faults == ()


def test_a_different_rate_is_noted() -> None:
    one, two = run([1.0] * 20), changed(run([1.0] * 20, name="fair"), offered_rps=0.5)
    assert "did not come at the same rate (direct: 1.05 /s; fair: 0.500 /s)" in said(compare([[one], [two]]))


def test_the_same_seed_with_other_options_is_noted() -> None:
    one = run(waits(20))
    assert "options differ" in said(compare([[one], [run(waits(10), name="fair")]]))
    assert "options differ" in said(compare([[one], [run(waits(20), name="fair", kind="chat")]]))


def test_an_invalid_run_is_reported() -> None:
    late = changed(run([1.0] * 10, name="fair"), schedule_lag=Lag(1.0, 400.0, 900.0, valid=False))
    assert spoiled(run([1.0]).summary) == ""
    assert "p99 400 ms, at most 900 ms" in spoiled(late.summary)
    (fault,) = compare([[run([1.0] * 10)], [late]]).faults
    assert fault.startswith("fair, seed 1: not valid")


def test_sides_with_the_same_name_are_distinguished() -> None:
    sides = compare([[run([1.0])], [run([1.0])], [run([1.0], name="fair")]]).sides
    assert [side.name for side in sides] == ["direct #1", "direct #2", "fair"]


def test_a_comparison_can_be_written_as_json() -> None:
    compared = compare([[run(waits(20))], [run(waits(20, 2), name="fair")]])
    told = msgspec.json.decode(msgspec.json.encode(compared))
    assert told["sides"][1]["name"] == "fair"
    assert told["lines"][0]["figure"]["key"] == "ttft_arrival_p50"
