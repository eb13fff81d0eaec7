"""The folder that results are written to and read from."""

from pathlib import Path

import pytest

from loadtest.results.records import Outcome, Record
from loadtest.results.summary import About, Measurement, Summary, summarize
from loadtest.storage.results_folder import ResultError, load, load_apart, writing
from loadtest.workloads.plan import Plan, Request

RECORDS = [
    Record(Request(0.0, "ada", "chat", 10, 2), 0, sent=0.0, tokens=[1.0, 2.0], outcome=Outcome.COMPLETED),
    Record(Request(1.0, "ben", "chat", 10, 2), 1, sent=1.0, outcome=Outcome.REJECTED, detail="queue_full"),
]


def summary() -> Summary:
    about = About("starvation", 1, "virtual", "fair")
    return summarize(about, Measurement(Plan(()), RECORDS, alone=lambda tokens: 1.0))


def write(folder: Path) -> None:
    with writing(folder) as writer:
        for record in RECORDS:
            writer.add(record)
        writer.finish(summary())


def test_results_are_read_back(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (result,) = load(tmp_path / "run")
    assert (result.name, result.summary) == ("fair", summary())
    assert [(row.user, row.outcome, row.detail) for row in result.rows] == [
        ("ada", Outcome.COMPLETED, ""),
        ("ben", Outcome.REJECTED, "queue_full"),
    ]


def test_each_row_is_written_when_its_request_ends(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.add(RECORDS[0])
        assert (tmp_path / "results.jsonl").read_text().count("\n") == 1


def test_repeated_runs_form_one_group(tmp_path: Path) -> None:
    for number in (2, 1):
        write(tmp_path / "fair" / f"run-{number}")
    assert [result.name for result in load(tmp_path / "fair")] == ["fair", "fair"]


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ResultError, match="has results already"):
        write(tmp_path)
    (tmp_path / "summary.json").unlink()  # as a run leaves it that was killed
    with pytest.raises(ResultError, match="has results already"):
        write(tmp_path)


def test_a_folder_without_results_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"there is no summary.json in it"):
        load(tmp_path)
    write(tmp_path)
    (tmp_path / "results.jsonl").write_text("{not json\n")
    with pytest.raises(ResultError, match=str(tmp_path)):
        load(tmp_path)


def test_runs_with_the_same_name_are_distinguished_by_folder(tmp_path: Path) -> None:
    write(tmp_path / "before")
    write(tmp_path / "after")
    groups = load_apart([tmp_path / "before", tmp_path / "after"])
    assert [group[0].name for group in groups] == ["fair (before)", "fair (after)"]
    assert load_apart([tmp_path / "before"])[0][0].name == "fair"
