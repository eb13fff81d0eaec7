"""One run of a load, on either clock."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from loadtest.results.records import Record
from loadtest.results.result import Result
from loadtest.results.summary import Slo, Summary, row
from loadtest.workloads.plan import Plan
from loadtest.workloads.workload import Options, Workload


@dataclass(frozen=True)
class Load:
    """What is sent, and what a good answer to it is."""

    workload: Workload
    options: Options
    plan: Plan
    slo: Slo


@dataclass(frozen=True)
class Run:
    summary: Summary
    records: list[Record]

    @property
    def result(self) -> Result:
        return Result(self.summary.policy, self.summary, tuple(map(row, self.records)))

    def with_provenance(self, provenance: Mapping[str, str]) -> "Run":
        """The same run; what its summary already says of where it comes from is listed last."""
        merged = {**provenance, **self.summary.provenance}
        return replace(self, summary=msgspec.structs.replace(self.summary, provenance=merged))
