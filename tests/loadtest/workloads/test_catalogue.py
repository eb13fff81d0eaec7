"""The registry of workloads: names, look-up, and that each makes a valid plan."""

from dataclasses import replace

import pytest

from loadtest.workloads.catalogue import PRESETS, WORKLOADS, find
from loadtest.workloads.office import office
from loadtest.workloads.workload import Options, Workload

LETTERS = {
    "A": "context-scaling",
    "B": "concurrency-stress",
    "C": "output-throughput",
    "D": "reasoning",
    "E": "multi-turn",
    "F": "rag-mix",
    "G": "long-output",
    "H": "office-baseline",
    "I": "sharegpt-replay",
    "J": "monday-burst",
}
OURS = {"rate-sweep", "office-mix", "starvation", "office-minute"}

every_workload = pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)


def test_workloads_have_names_and_letters() -> None:
    assert {workload.letter: name for name, workload in WORKLOADS.items() if workload.letter} == LETTERS
    assert {name for name, workload in WORKLOADS.items() if not workload.letter} == OURS
    assert all(workload.name == name for name, workload in WORKLOADS.items())


def test_both_workloads_with_number_nine_are_found() -> None:
    repository, website = (tuple(LETTERS[letter] for letter in nine) for nine in ("ABCEFGHIJ", "CFGAEHIJD"))
    assert PRESETS["repo-nine"] == repository
    assert PRESETS["site-nine"] == website


def test_open_and_closed_loops_are_distinguished() -> None:
    loops = {loop: {name for name, each in WORKLOADS.items() if each.loop == loop} for loop in ("closed", "people")}
    assert loops == {"closed": {LETTERS[letter] for letter in "ABCEFG"}, "people": {"office-mix"}}


def test_seeds_are_the_published_ones() -> None:
    published = {name for name, workload in WORKLOADS.items() if workload.seed == 42}
    assert published == {"rate-sweep", *(LETTERS[letter] for letter in "DHIJ")}
    assert WORKLOADS["monday-burst"].plan() == WORKLOADS["monday-burst"].plan(Options(42))


@pytest.mark.parametrize("asked", ["J", "j", "monday-burst", " Monday-Burst "])
def test_workloads_are_found_by_name_and_letter(asked: str) -> None:
    assert find(asked) is WORKLOADS["monday-burst"]


@pytest.mark.parametrize(("asked", "nearest"), [("ofice-mix", "office-mix"), ("sharegpt", "sharegpt-replay")])
def test_an_unknown_name_suggests_a_similar_one(asked: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"no workload '{asked}': do you mean {nearest}\\?"):
        find(asked)


@pytest.mark.parametrize("asked", ["", "K", "qqqq"])
def test_an_unknown_name_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match=f"no workload '{asked}'\\. There are ") as error:
        find(asked)
    for name, workload in WORKLOADS.items():
        assert (f"{name} ({workload.letter})" if workload.letter else name) in str(error.value)


@every_workload
def test_every_workload_makes_a_valid_plan(workload: Workload) -> None:
    plan = workload.plan()
    assert plan.requests
    for number, request in enumerate(plan.requests):
        assert request.at >= 0
        assert request.delay >= 0
        assert request.answer_tokens >= 1
        assert plan.prompt_tokens(number) >= 1
        assert request.user
        assert request.kind
        assert request.point is None if not plan.points else request.point in range(len(plan.points))
    assert {request.point for request in plan.requests if request.point is not None} == set(range(len(plan.points)))
    assert any(not request.after for request in plan.requests)


@every_workload
def test_open_loops_are_ordered_by_arrival(workload: Workload) -> None:
    if workload.loop == "open":
        times = [(request.point or 0, request.at + request.delay) for request in workload.plan().requests]
        assert times == sorted(times)


@every_workload
def test_a_seed_determines_the_plan(workload: Workload) -> None:
    assert workload.plan(Options(7)) == workload.plan(Options(7))


@every_workload
def test_titles_are_one_line_and_notes_are_sentences(workload: Workload) -> None:
    assert len(workload.title) < 100
    assert not workload.title.endswith(".")
    assert workload.note == "" or workload.note.endswith(".")


@every_workload
def test_each_workload_has_its_kind_of_text(workload: Workload) -> None:
    texts = {request.text for request in workload.plan().requests}
    random = {"office-baseline", "monday-burst", "rate-sweep"}
    book, reasoning = workload.loop == "closed", workload.name == "reasoning"
    expected = "book" if book else "reasoning" if reasoning else "random" if workload.name in random else "mixed"
    assert texts == {expected}


def test_the_office_minute_equals_the_demos_load() -> None:
    assert list(WORKLOADS["office-minute"].plan(Options(3)).requests) == office(3)


def test_unused_options_are_ignored() -> None:
    for workload in WORKLOADS.values():
        if workload.loop == "closed":
            given = replace(Options(1), users=3, duration=5.0, rate=2.0)
            assert workload.plan(given) == workload.plan(Options(1))


def test_synthetic_lengths_are_labelled() -> None:
    assert "synthetic lengths" in WORKLOADS["sharegpt-replay"].note
