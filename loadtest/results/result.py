"""One run, as it is kept and compared."""

from dataclasses import dataclass

from loadtest.results.summary import Row, Summary


@dataclass(frozen=True)
class Result:
    """One run; `name` is what it is called beside others."""

    name: str
    summary: Summary
    rows: tuple[Row, ...]
