"""Each entry of the TOML files beside this one makes one mistake in the source. The tests must fail for every one.

    [cap-ignored]
    sin = "what it does wrong, in a sentence"
    file = "gateway/scheduling/queue.py"
    old = '''
            these lines, indentation included, which occur in the file once
    '''
    new = '''
            become these; "" takes them out
    '''
    tests = ["tests/gateway/api/test_sse.py"]      what pytest runs instead of FAST, where that notices sooner

A mistake in several places has `[[cap-ignored.edits]]`, each with its file, old and new. Where `file` is gone, the
lines are looked for in all modules, so that a mutant outlives a move; a note says what `file` should be.

A mutant is made in a copy of the tree, and the tests run there until the first failure; a hang is a failure too. The
same tests first run in the tree as it is: they must pass there, and how long they took says what is a hang.
`make mutants` runs all of them, `make mutants ARGS="no-lift cap-ignored"` these two, and `make mutants ARGS=--check`
none: it says which ones can no longer be made, in a second.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# Those that say most in the least time come first.
FAST = (
    "--noconftest",
    *(f"tests/gateway/scheduling/test_{name}.py" for name in ("admission", "ledger", "sliced_admission", "queue")),
    *("tests/gateway/scheduling/test_transitions.py", "tests/gateway/lifecycle", "tests/gateway/slicing"),
    *("tests/gateway/proxy/test_waiting_room.py", "tests/policies"),
)

# A mutant's tests hang if they take so many times what they took in the tree as it is, just before and on this machine,
# and at least so many seconds: other load may come at any moment, and what is slow has noticed nothing.
PATIENCE, LEAST_LIMIT_S = 4.0, 150.0
# For the tree as it is: only so that a hang there does not last for ever.
CLEAN_LIMIT_S = 1800.0
AT_ONCE = 2

# The same examples every time, and none made smaller: that they fail is enough. No deadline and no time limit for a
# single test: a machine that is slow at the moment has noticed nothing.
PYTEST = """
import sys, pytest

class Quick:
    def pytest_configure(self):
        from hypothesis import Phase, settings
        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=phases)
        settings.load_profile("mutants")

options = ["-x", "-q", "--tb=short", "--timeout=0", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*options, *sys.argv[1:]], [Quick()]))
"""

GONE = """\
there is no {file}, and {holders} the lines of `old`.
  Put the module that is meant into `file`.
"""
CHANGED = """\
{file} does not have the lines of `old`: the source has changed.
  Copy the lines that are now to be changed into `old`, indentation included, and make the mistake in `new`.
  If it can no longer be made, delete the entry.
"""
AMBIGUOUS = """\
{file} has the lines of `old` {times} times.
  Add the line before or after them to `old`, and to `new`.
"""
NO_PYTHON = """\
{file} would be no Python: {error}.
  Indent `new` as `old` is.
"""
NO_TEST = """\
there is no {test}.
  Put where it is now into `tests`.
"""

Tests = tuple[str, ...]
K = TypeVar("K")


class BadEntry(Exception):
    """An entry that is not of the form above."""


class DoesNotApply(Exception):
    """A mistake that cannot be made in the source as it is, and what to do."""


@dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    name: str
    source: Path  # the TOML file that it is in
    sin: str
    edits: tuple[Edit, ...]
    tests: Tests = FAST


@dataclass(frozen=True)
class Verdict:
    said: str  # caught | survived | does not apply | does not run
    seconds: float = 0.0
    by: str = ""  # the test that noticed
    output: str = ""

    @property
    def good(self) -> bool:
        return self.said == "caught"


def read_all() -> list[Mutant]:
    mutants: dict[str, Mutant] = {}
    for source in sorted(HERE.glob("*.toml")):
        try:
            entries = tomllib.loads(source.read_text())
        except tomllib.TOMLDecodeError as error:
            raise BadEntry(f"{source.relative_to(ROOT)}: {error}") from error
        for name, entry in entries.items():
            if name in mutants:
                raise BadEntry(f"{name} is in {mutants[name].source.name} and in {source.name}.")
            mutants[name] = read(name, source, entry)
    return list(mutants.values())


def read(name: str, source: Path, entry: dict[str, Any]) -> Mutant:
    try:
        rest = dict(entry)
        sin, tests, edits = " ".join(rest.pop("sin").split()), rest.pop("tests", FAST), rest.pop("edits", [])
        if isinstance(tests, str):
            raise TypeError("tests is a list")
        if rest or not edits:
            edits = [rest]
        return Mutant(name, source, sin, tuple(Edit(**edit) for edit in edits), tuple(tests))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        keys = "has sin, perhaps tests, and either file, old and new or a list of edits that have these"
        raise BadEntry(
            f"{source.relative_to(ROOT)}: [{name}] is not what it should be ({error}). It {keys}."
        ) from error


def make(mutant: Mutant, tree: Path) -> dict[str, str]:
    """The files that the mutant changes, as it has them. Raises DoesNotApply."""
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        file = whereabouts(edit, tree)
        text = texts[file] if file in texts else (tree / file).read_text()
        times = occurrences(edit.old, text)
        if times == 0:
            raise DoesNotApply(CHANGED.format(file=file))
        if times > 1:
            raise DoesNotApply(AMBIGUOUS.format(file=file, times=times))
        texts[file] = f"\n{text}".replace(f"\n{edit.old}", f"\n{edit.new}")[1:]
    for file, text in texts.items():
        try:
            ast.parse(text)
        except SyntaxError as error:
            raise DoesNotApply(NO_PYTHON.format(file=file, error=error)) from error
    if missing := missing_tests(mutant.tests, tree):
        raise DoesNotApply(NO_TEST.format(test=missing[0]))
    return texts


def occurrences(lines: str, text: str) -> int:
    """As whole lines: what is indented further is something else."""
    return len(re.findall(f"^{re.escape(lines)}", text, re.MULTILINE))


def whereabouts(edit: Edit, tree: Path) -> str:
    """The file to edit: the one named, or if that is gone the only module that has the lines."""
    if (tree / edit.file).is_file():
        return edit.file
    modules = (path for path in sorted(tree.rglob("*.py")) if tree / "tests" not in path.parents)
    found = [str(path.relative_to(tree)) for path in modules if occurrences(edit.old, path.read_text())]
    if len(found) != 1:
        holders = f"{len(found)} modules have ({', '.join(found)})" if found else "no other module has"
        raise DoesNotApply(GONE.format(file=edit.file, holders=holders))
    return found[0]


def missing_tests(tests: Sequence[str], tree: Path) -> list[str]:
    return [test for test in tests if test.startswith("tests/") and not (tree / test.partition("::")[0]).exists()]


def run_tests(tree: Path, tests: Tests, limit_s: float) -> Verdict:
    """What the tests say of this tree: `survived` if nothing failed."""
    start = monotonic()
    command = [sys.executable, "-c", PYTEST, *tests]
    environ = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    try:
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Verdict("caught", monotonic() - start, f"nobody ended within {limit_s:.0f} s")
    output = done.stdout + done.stderr
    failed = [line.split()[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    said = {0: "survived", 1: "caught"}.get(done.returncode, "does not run")
    return Verdict(said, monotonic() - start, failed[0] if failed else "", output)


def judge(mutant: Mutant, original: Path, limit_s: float) -> Verdict:
    try:
        texts = make(mutant, original)
    except DoesNotApply as error:
        return Verdict("does not apply", output=str(error))
    with TemporaryDirectory(prefix=f"{mutant.name}-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(original, tree)
        for file, text in texts.items():
            (tree / file).write_text(text)
        return run_tests(tree, mutant.tests, limit_s)


def side_by_side(jobs: dict[K, Callable[[], Verdict]], told: Callable[[], None]) -> dict[K, Verdict]:
    verdicts = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(job): key for key, job in jobs.items()}
        for future in as_completed(running):
            verdicts[running[future]] = future.result()
            told()
    return {key: verdicts[key] for key in jobs}


def table(verdicts: dict[Mutant, Verdict]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("mutant", "what it does", "", "s", "noticed by"):
        table.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
    for mutant, verdict in verdicts.items():
        said = Text(verdict.said, "green" if verdict.good else "bold red")
        by = verdict.by.rpartition("/")[2].partition("[")[0]
        table.add_row(mutant.name, Text(mutant.sin), said, f"{verdict.seconds:.0f}", Text(by))
    return table


def tell_unapplied(console: Console, mutant: Mutant, why: str) -> None:
    text = f"{mutant.source.relative_to(ROOT)}: [{mutant.name}] does not apply any more: {why}"
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def tell_moved(console: Console, mutants: Sequence[Mutant], tree: Path) -> None:
    """What should be renamed in the entries, although they apply."""
    for mutant in mutants:
        for edit in mutant.edits:
            with suppress(DoesNotApply):
                if (file := whereabouts(edit, tree)) != edit.file:
                    text = (
                        f"{mutant.source.relative_to(ROOT)}: [{mutant.name}] {edit.file} is now {file}: change `file`"
                    )
                    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def check(console: Console, mutants: Sequence[Mutant], original: Path) -> int:
    """Can every one be made? Runs no tests."""
    start, bad = monotonic(), 0
    for mutant in mutants:
        try:
            make(mutant, original)
        except DoesNotApply as error:
            bad += 1
            tell_unapplied(console, mutant, str(error))
    tell_moved(console, mutants, original)
    if missing := missing_tests(FAST, original):
        console.print(f"FAST in run.py names what does not exist: {', '.join(missing)}", style="red")
    console.print(f"{len(mutants) - bad} of {len(mutants)} apply ({monotonic() - start:.1f} s)")
    return 1 if bad or missing else 0


def run(console: Console, mutants: Sequence[Mutant], original: Path) -> int:
    start = monotonic()
    selections = dict.fromkeys(mutant.tests for mutant in mutants if not missing_tests(mutant.tests, original))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        first = progress.add_task("the tree as it is", total=len(selections))
        clean = side_by_side(
            {tests: partial(run_tests, original, tests, CLEAN_LIMIT_S) for tests in selections},
            lambda: progress.advance(first),
        )
        if not all(verdict.said == "survived" for verdict in clean.values()):
            progress.stop()
            return tell_unclean(console, clean)
        limits = {tests: max(LEAST_LIMIT_S, PATIENCE * verdict.seconds) for tests, verdict in clean.items()}
        task = progress.add_task("mutants", total=len(mutants))
        verdicts = side_by_side(
            {mutant: partial(judge, mutant, original, limits.get(mutant.tests, 0.0)) for mutant in mutants},
            lambda: progress.advance(task),
        )
    console.print(table(verdicts))
    bad = {mutant: verdict for mutant, verdict in verdicts.items() if not verdict.good}
    tell_bad(console, bad)
    tell_moved(console, mutants, original)
    console.print(f"{len(verdicts) - len(bad)} of {len(verdicts)} caught ({monotonic() - start:.0f} s)")
    return 1 if bad else 0


def tell_unclean(console: Console, clean: dict[Tests, Verdict]) -> int:
    for tests, verdict in clean.items():
        if verdict.said != "survived":
            console.print(verdict.output[-4000:] or verdict.by, markup=False, highlight=False)
            console.print(f"The tests fail without any mutant: {' '.join(tests)}", style="red", markup=False)
    console.print("First make them pass: make test", style="red")
    return 1


def tell_bad(console: Console, bad: dict[Mutant, Verdict]) -> None:
    for mutant, verdict in bad.items():
        if verdict.said == "does not apply":
            tell_unapplied(console, mutant, verdict.output)
        elif verdict.said == "survived":
            console.print(f"{mutant.name}: no test notices that {mutant.sin}. Write one.", style="red", markup=False)
        else:
            console.print(f"{mutant.name} does not run:", verdict.output[-2000:], markup=False, highlight=False)


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help="only these mutants")
    parser.add_argument("--check", action="store_true", help="only see whether each one can be made; run no tests")
    options = parser.parse_args()
    console = Console()
    try:
        mutants = read_all()
    except BadEntry as error:
        console.print(str(error), style="red", markup=False)
        return 2
    if unknown := set(options.names) - {mutant.name for mutant in mutants}:
        console.print(f"No such mutant: {', '.join(sorted(unknown))}", style="red")
        return 2
    chosen = [mutant for mutant in mutants if not options.names or mutant.name in options.names]
    with TemporaryDirectory(prefix="mutants-") as folder:
        original = Path(folder) / "tree"
        shutil.copytree(ROOT, original, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "shared"))
        return (check if options.check else run)(console, chosen, original)


if __name__ == "__main__":
    sys.exit(main())
