"""How far a simulated machine is off the real one, test by test."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from loadtest.fitting.fit import HELD_OUT, PARTLY, errors_of
from loadtest.fitting.measurements import measurements
from loadtest.results.records import percentile
from loadtest.spark.profile import load_profile

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


def markdown() -> str:
    """Every shipped machine, as docs/loadtest.md has it."""
    tables = {
        name: accuracies({test: errors_of(test, load_profile(name), found) for test, found in tests.items()})
        for name, tests in measurements().items()
    }
    lines = [["test", "", *tables], ["---", "---", *["---:"] * len(tables)]]
    for test in sorted({test for table in tables.values() for test in table}):
        said = "held out" if test in HELD_OUT else "fitted in part" if test in PARTLY else "fitted"
        lines.append([test, said, *(str(table.get(test, "-")) for table in tables.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
