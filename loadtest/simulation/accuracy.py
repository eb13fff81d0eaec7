"""How far a simulated machine is off the real one, test by test."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from loadtest.results.measurements import HELD_OUT, PARTLY, Measured
from loadtest.results.records import percentile
from loadtest.simulation.fit import errors_of
from loadtest.spark.profile import EngineProfile

Errors = Mapping[str, float]  # by figure: simulated over measured, less one


@dataclass(frozen=True)
class Accuracy:
    """Of some figures: their median and 90th percentile error, as shares."""

    figures: int
    median: float
    p90: float

    @classmethod
    def of(cls, errors: Iterable[float]) -> "Accuracy":
        found = [abs(error) for error in errors]
        return cls(len(found), median(found), percentile(found, 90))

    def __str__(self) -> str:
        return f"{100 * self.median:.1f} / {100 * self.p90:.1f} %"


def accuracies(errors: Mapping[str, Errors]) -> dict[str, Accuracy]:
    """By test."""
    return {test: Accuracy.of(found.values()) for test, found in sorted(errors.items())}


def markdown(machines: Iterable[tuple[EngineProfile, Mapping[str, Measured]]]) -> str:
    """Each machine and what was measured on it, as docs/loadtest.md has it."""
    tables = {
        machine.name: accuracies({test: errors_of(test, machine, found) for test, found in tests.items()})
        for machine, tests in machines
    }
    lines = [["test", "", *tables], ["---", "---", *["---:"] * len(tables)]]
    for test in sorted({test for table in tables.values() for test in table}):
        said = "held out" if test in HELD_OUT else "fitted in part" if test in PARTLY else "fitted"
        lines.append([test, said, *(str(table.get(test, "-")) for table in tables.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
