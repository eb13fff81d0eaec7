"""A preset run through: a folder for each workload and front, and a page with a real Spark's figures beside ours."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from pathlib import Path
from statistics import median

from loadtest.fitting.fit import HELD_OUT, PARTLY
from loadtest.fitting.measurements import Figures, Measured, figures, measured
from loadtest.results.records import percentile
from loadtest.results.summary import Summary
from loadtest.runs.run import Load
from loadtest.storage.results_folder import SUMMARY, load
from loadtest.workloads.workload import Workload

# What the article says, in which test, and the figures that it stands on.
HEADLINES = (
    ("23 to 24 tokens a second for one user alone", "A", ("4096 c1", "25000 c1"), "decode_tps_per_request"),
    ("35 s until ten prompts of 25k have their first tokens", "A", ("25000 c10",), "ttft_ms"),
    ("under half a second for ten short prompts", "G", ("256 c10",), "ttft_ms"),
    ("1.5 requests a second offered, about 0.26 done", "J", ("rps",), ""),
    ("a 99th percentile of about 6 s to the first token", "J", ("ttft_send_ms p99",), ""),
    ("0 of 300 requests failed", "J", ("failed",), ""),
)


def has(folder: Path, wanted: Load, name: str) -> bool:
    """Whether that very run is there already. ValueError if the folder has another one."""
    if not (folder / SUMMARY).is_file():
        return False
    found = load(folder)[0].summary
    same = (found.workload, found.seed, found.policy) == (wanted.workload.name, wanted.options.seed, name)
    if not same or found.offered + found.interrupted != len(wanted.plan.requests):
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


@dataclass(frozen=True)
class Line:
    """One figure: on a real Spark, and in each of our runs; `error` is the first run's."""

    figure: str
    measured: float | None
    ours: list[float | None]

    @property
    def error(self) -> float | None:
        ours = self.ours[0]
        return ours / self.measured - 1 if self.measured and ours is not None else None


@dataclass(frozen=True)
class Test:
    """One workload. `held_out`: the simulated Spark was fitted without it."""

    workload: Workload
    summaries: list[Summary]
    lines: list[Line]

    @property
    def held_out(self) -> bool:
        return self.workload.letter in HELD_OUT

    @property
    def fitted_in_part(self) -> bool:
        return self.workload.letter in PARTLY

    @property
    def errors(self) -> list[float]:
        return [abs(line.error) for line in self.lines if line.error is not None]

    @property
    def median_error(self) -> float:
        return median(self.errors)


@dataclass(frozen=True)
class Headline:
    claim: str
    measured: str
    ours: list[str]


def page(out: Path, workloads: Iterable[Workload], names: Sequence[str]) -> str:
    """The page of all runs that are in the folder, by workload and front; `names` in that order."""
    from jinja2 import Environment

    tests = []
    for workload in workloads:
        runs = [load(out / workload.name / name)[0].summary for name in names]
        found = measured(runs[0].profile, workload)
        tests.append(Test(workload, runs, list(_lines(found, runs))))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = shown
    template = environment.from_string((files("loadtest.runs") / "suite.html.j2").read_text())
    return template.render(
        tests=tests,
        names=names,
        headlines=list(_headlines(tests)),
        sentence=_sentence(tests),
        first=tests[0].summaries[0],
    )


def _lines(found: Measured | None, runs: Sequence[Summary]) -> Iterator[Line]:
    ours = [figures(run) for run in runs]
    theirs: Figures = found.figures() if found else {}
    for figure in ours[0]:
        yield Line(figure, theirs.get(figure), [each.get(figure) for each in ours])


def _headlines(tests: Sequence[Test]) -> Iterator[Headline]:
    by_letter = {test.workload.letter: test for test in tests}
    for claim, letter, points, figure in HEADLINES:
        if letter not in by_letter:
            continue
        lines = {line.figure: line for line in by_letter[letter].lines}
        chosen = [lines[f"{point} {figure}".strip()] for point in points]
        theirs = [line.measured for line in chosen]
        yield Headline(
            claim,
            " to ".join(shown(value, chosen[0].figure) for value in theirs),
            [
                " to ".join(shown(line.ours[run], line.figure) for line in chosen)
                for run in range(len(by_letter[letter].summaries))
            ],
        )


def shown(value: float | None, figure: str) -> str:
    """A figure as a person reads it, by the unit that its name has."""
    if value is None:
        return "-"
    if "_ms" in figure:
        return f"{value / 1e3:.2f} s" if value >= 1000 else f"{value:.0f} ms"
    if figure in ("failed", "completed"):
        return f"{value:.0f}"
    if "duration" in figure:
        return f"{value:.0f} s"
    if "prefill_tps" in figure:
        return f"{value:.0f}/s"
    return f"{value:.3f}/s" if figure == "rps" else f"{value:.1f}/s"


def _sentence(tests: Sequence[Test]) -> str:
    """How far the simulated Spark is from the real one, fitted and held out apart."""
    simulated = tests[0].summaries[0].clock == "virtual"
    who = "The simulated Spark" if simulated else "This server"
    parts = []
    for words, held_out in (("in the tests that it was fitted to", False), ("in those that it was not", True)):
        found = [error for test in tests if test.held_out is held_out for error in test.errors]
        if found:
            spread = f"{100 * median(found):.1f} % (median; 90th percentile {100 * percentile(found, 90):.0f} %)"
            parts.append(f"{spread} {words}" if simulated else spread)
    if not parts:
        return "Nothing was measured on a real Spark that these runs could be held against."
    return f"{who} is off a real one by {' and by '.join(parts)}."
