"""A run on disk: results.jsonl, a row a request, written as they end, and summary.json, written last.

A run that was interrupted has the rows of all that had ended. A folder that holds folders of runs is read as one set
of repeated runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec

from loadtest.results.records import Record
from loadtest.results.result import Result
from loadtest.results.run import Load
from loadtest.results.summary import Row, Summary, row

ROWS, SUMMARY = "results.jsonl", "summary.json"


class ResultError(ValueError):
    """What is wrong with a folder of results, and what to do."""


class Writer:
    """Keeps what comes, from the first request on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows = (folder / ROWS).open("wb")

    def add(self, record: Record) -> None:
        self._rows.write(msgspec.json.encode(row(record)) + b"\n")
        self._rows.flush()

    def close(self) -> None:
        self._rows.close()

    def finish(self, summary: Summary) -> None:
        (self._folder / SUMMARY).write_bytes(encode(summary) + b"\n")


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """Raises ResultError if the folder has results already: nothing is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SUMMARY).exists() or (folder / ROWS).exists():
        raise ResultError(f"{folder} has results already; name another folder, or remove it")
    writer = Writer(folder)
    try:
        yield writer
    finally:
        writer.close()


def encode(content: object) -> bytes:
    """JSON that a person can read, too."""
    return msgspec.json.format(msgspec.json.encode(content), indent=2)


def load(folder: Path) -> list[Result]:
    """The run in a folder, or the runs in its folders, in the order of their names; each called as its summary calls
    what was measured. Raises ResultError."""
    if (folder / SUMMARY).is_file():
        return [_run(folder)]
    runs = [_run(each) for each in sorted(folder.glob("*")) if (each / SUMMARY).is_file()]
    if not runs:
        raise ResultError(f"{folder} holds no results: there is no {SUMMARY} in it, nor in a folder of it")
    return runs


def has(folder: Path, load_wanted: Load, name: str) -> bool:
    """Whether that very run is there already. ValueError if the folder has another one."""
    if not (folder / SUMMARY).is_file():
        return False
    found = _run(folder).summary
    wanted = (load_wanted.workload.name, load_wanted.options.seed, name)
    same = (found.workload, found.seed, found.policy) == wanted
    if not same or found.offered + found.interrupted != len(load_wanted.plan.requests):
        raise ValueError(f"{folder} has another run ({found.offered} requests, seed {found.seed}): remove it")
    return not found.interrupted


def put_aside(folder: Path) -> Path | None:
    """What an interrupted run has left there goes beside it, under another name, so that it can be run again."""
    if not folder.exists():
        return None
    beside = next(
        other for number in count(1) if not (other := folder.with_name(f"{folder.name}.interrupted-{number}")).exists()
    )
    return folder.rename(beside)


def load_apart(folders: Sequence[Path]) -> list[list[Result]]:
    """Of several folders; where two have the same name, they are called by their folders."""
    groups = [load(folder) for folder in folders]
    names = [group[0].name for group in groups]
    if len({*names}) == len(names):
        return groups
    named = zip(folders, groups, strict=True)
    return [[replace(run, name=f"{run.name} ({folder.name})") for run in group] for folder, group in named]


def _run(folder: Path) -> Result:
    try:
        summary = msgspec.json.decode((folder / SUMMARY).read_bytes(), type=Summary)
        lines = (folder / ROWS).read_bytes().splitlines()
        return Result(summary.policy, summary, tuple(msgspec.json.decode(line, type=Row) for line in lines))
    except (OSError, msgspec.DecodeError) as error:
        raise ResultError(f"{folder}: {error}") from error
