"""Each patch beside this file makes one mistake in the source. The tests must fail for every one of them.

    Sin: what it does wrong, in a line                  <- the head of a patch, which is not part of the diff
    Tests: what else must run to notice                 <- left out where FAST is enough

A patch is applied to a copy of the tree, and the tests run there until the first failure; a hang is a failure too.
`make mutants` runs all of them, `make mutants ARGS="no-lift cap-ignored"` these two.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# Those that say most in the least time come first.
FAST = (
    *("tests/gateway/test_admission.py", "tests/gateway/test_ledger.py", "tests/gateway/test_slices.py"),
    *("tests/gateway/test_line.py", "tests/gateway/test_cost.py", "tests/policies"),
    *("tests/gateway/test_waiting.py", "tests/gateway/test_histories.py"),
)
LIMIT_S = 150.0
AT_ONCE = 2

# The same examples every time, and none made smaller: that they fail is enough.
PYTEST = """
import sys, pytest

class Quick:
    def pytest_configure(self):
        from hypothesis import Phase, settings
        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
        settings.load_profile("mutants")

sys.exit(pytest.main(["-x", "-q", "--tb=short", "-p", "no:cacheprovider", *sys.argv[1:]], [Quick()]))
"""

WHAT_TO_DO = """\
{name} does not apply any more: the source has changed.
  Make its mistake in the source by hand, put what `git diff -U1` says of it below the head of the patch, and take it
  back by `git apply --reverse {name}`. If the mistake can no longer be made, delete the patch.
"""


@dataclass(frozen=True)
class Mutant:
    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    def head(self, key: str) -> str:
        """What the head of the patch says, empty where it says nothing."""
        head, _, _ = self.path.read_text().partition("\n--- ")
        found = [line.removeprefix(f"{key}: ") for line in head.splitlines() if line.startswith(f"{key}: ")]
        return found[0] if found else ""


@dataclass(frozen=True)
class Verdict:
    said: str  # caught | survived | does not apply | does not run
    seconds: float = 0.0
    by: str = ""  # the test that noticed
    output: str = ""

    @property
    def good(self) -> bool:
        return self.said == "caught"


def run_tests(tree: Path, tests: Sequence[str]) -> Verdict:
    """What the tests say of this tree: `survived` if nothing failed."""
    start = monotonic()
    command = [sys.executable, "-c", PYTEST, *tests]
    environ = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    try:
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return Verdict("caught", monotonic() - start, f"nobody ended within {LIMIT_S:g} s")
    output = done.stdout + done.stderr
    failed = [line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")]
    said = {0: "survived", 1: "caught"}.get(done.returncode, "does not run")
    return Verdict(said, monotonic() - start, failed[0] if failed else "", output)


def judge(mutant: Mutant, original: Path) -> Verdict:
    with TemporaryDirectory(prefix=f"{mutant.name}-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(original, tree)
        # Not as a part of any repository that the temporary folder may happen to be in.
        environ = os.environ | {"GIT_CEILING_DIRECTORIES": folder}
        applied = subprocess.run(
            ["git", "apply", str(mutant.path)], cwd=tree, env=environ, capture_output=True, text=True
        )
        if applied.returncode:
            return Verdict("does not apply", output=applied.stderr)
        tests = mutant.head("Tests")
        return run_tests(tree, tests.split()) if tests else run_tests(tree, ["--noconftest", *FAST])


def judge_all(mutants: Sequence[Mutant], original: Path, told: Callable[[Mutant], None]) -> dict[Mutant, Verdict]:
    verdicts = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(judge, mutant, original): mutant for mutant in mutants}
        for future in as_completed(running):
            verdicts[running[future]] = future.result()
            told(running[future])
    return {mutant: verdicts[mutant] for mutant in mutants}


def table(verdicts: dict[Mutant, Verdict]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("mutant", "what it does", "", "s", "noticed by"):
        table.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
    for mutant, verdict in verdicts.items():
        said = Text(verdict.said, "green" if verdict.good else "bold red")
        by = verdict.by.rpartition("/")[2].partition("[")[0]
        table.add_row(mutant.name, mutant.head("Sin"), said, f"{verdict.seconds:.0f}", Text(by))
    return table


def main(names: Sequence[str]) -> int:
    console = Console()
    mutants = [Mutant(path) for path in sorted(HERE.glob("*.patch")) if not names or path.stem in names]
    if unknown := set(names) - {mutant.name for mutant in mutants}:
        console.print(f"No such mutant: {', '.join(sorted(unknown))}", style="red")
        return 2
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with TemporaryDirectory(prefix="mutants-") as folder, Progress(*columns, console=console) as progress:
        original = Path(folder) / "tree"
        shutil.copytree(ROOT, original, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "shared"))
        first = progress.add_task("the tree as it is", total=1)
        clean = run_tests(original, ["--noconftest", *FAST])
        if clean.said != "survived":
            progress.stop()
            console.print(clean.output[-4000:], markup=False, highlight=False)
            console.print("The tests fail without any mutant. First make them pass: make test", style="red")
            return 1
        progress.advance(first)
        task = progress.add_task("mutants", total=len(mutants))
        verdicts = judge_all(mutants, original, lambda mutant: progress.advance(task))
    console.print(table(verdicts))
    bad = {mutant: verdict for mutant, verdict in verdicts.items() if not verdict.good}
    for mutant, verdict in bad.items():
        if verdict.said == "does not apply":
            console.print(WHAT_TO_DO.format(name=mutant.path.relative_to(ROOT)), verdict.output, style="red")
        elif verdict.said == "survived":
            console.print(f"{mutant.name}: no test notices that {mutant.head('Sin')}. Write one.", style="red")
        else:
            console.print(f"{mutant.name} does not run:", verdict.output[-2000:], markup=False, highlight=False)
    console.print(f"{len(verdicts) - len(bad)} of {len(verdicts)} caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
