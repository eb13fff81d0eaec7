"""A workload of a suite: what a real Spark measured, and what each of our runs came to beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.results.measurements import HELD_OUT, PARTLY, Figures, Measured, figures
from loadtest.results.summary import Summary
from loadtest.workloads.workload import Workload


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
class SuiteTest:
    """One workload. `held_out`: the simulated Spark was fitted without it."""

    workload: Workload
    summaries: list[Summary]
    lines: list[Line]

    @classmethod
    def of(cls, workload: Workload, summaries: list[Summary], measured: Measured | None) -> "SuiteTest":
        return cls(workload, summaries, list(_lines(measured, summaries)))

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


def _lines(found: Measured | None, runs: Sequence[Summary]) -> Iterator[Line]:
    ours = [figures(run) for run in runs]
    theirs: Figures = found.figures() if found else {}
    for figure in ours[0]:
        yield Line(figure, theirs.get(figure), [each.get(figure) for each in ours])
