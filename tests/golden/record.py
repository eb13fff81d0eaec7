"""Compare the code with the golden results, or record them anew.

    python tests/golden/record.py                compare; exit 1 if anything differs
    python tests/golden/record.py --only fifo    only cases with this in their name
    python tests/golden/record.py --write        record

It runs the code of the tree that it lies in, in two processes, for about four minutes.
"""

import json
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.golden.golden import FILE, Case, Entry, cases, entry, recorded

PROCESSES = 2
ABSENT = "-"


def computed(wanted: list[Case], console: Console) -> dict[str, Entry]:
    """The entries of these cases as the code is now."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    found: dict[str, Entry] = {}
    with (
        ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool,
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress,
    ):
        task = progress.add_task("simulating", total=len(wanted))
        running = {pool.submit(entry, case): case for case in wanted}
        for future in as_completed(running):
            found[running[future].name] = future.result()
            progress.advance(task)
    return found


def differences(old: dict[str, Entry], new: dict[str, Entry]) -> Table | None:
    """A row for each value that is not what it was."""
    table = Table("case", "", "old", "new", box=None, pad_edge=False)
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, {}), new.get(name, {})
        for key in sorted(before.keys() | after.keys()):
            was, now = before.get(key, ABSENT), after.get(key, ABSENT)
            if was != now:
                table.add_row(name, key, _short(was), _short(now))
    return table if table.row_count else None


def write(entries: dict[str, Entry]) -> None:
    content = {"python": ".".join(platform.python_version_tuple()[:2]), "cases": entries}
    FILE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main(arguments: Iterable[str]) -> int:
    parser = ArgumentParser(description="Compare the code with the golden results.")
    parser.add_argument("--write", action="store_true", help="record instead of comparing")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    options = parser.parse_args(list(arguments))
    console = Console()
    wanted = [case for case in cases() if options.only in case.name]
    if not wanted:
        parser.error(f"no case has {options.only!r} in its name")
    start = perf_counter()
    found = computed(wanted, console)
    console.print(f"{len(found)} cases in {perf_counter() - start:.0f} s")
    # A recorded case that is gone is a difference; one that was not asked for is none.
    expected = {name: each for name, each in recorded().items() if options.only in name}
    table = differences(expected, found)
    console.print(table or "all as recorded")
    if options.write:
        write((recorded() if options.only else {}) | found)
        console.print(f"wrote {FILE}")
        return 0
    return 1 if table else 0


def _short(value: int | float | str) -> str:
    """A digest is told apart by its beginning."""
    return str(value)[:12]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
