"""Reads measurements.json: what real DGX Sparks measured.

Measurements: github.com/djangodevreng/dgx-spark-benchmarks, © Django de Vreng, CC-BY-4.0.
"""

from functools import cache
from importlib.resources import files

import msgspec

from loadtest.results.measurements import Measured


class _Machine(msgspec.Struct, frozen=True):
    path: str
    tests: dict[str, Measured]


class _File(msgspec.Struct, frozen=True):
    source: str
    license: str
    machines: dict[str, _Machine]


@cache
def measurements() -> dict[str, dict[str, Measured]]:
    """By the name of an engine profile, then by the letter of a workload."""
    found = msgspec.json.decode((files("loadtest.storage") / "measurements.json").read_bytes(), type=_File)
    return {name: machine.tests for name, machine in found.machines.items()}
