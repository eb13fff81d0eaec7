"""Bounds on real time that hold on a busy machine, too."""

from collections.abc import Callable
from pathlib import Path


def smallest(measure: Callable[[], float], enough: float, attempts: int = 6) -> float:
    """The smallest of several measurements; it stops at the first below `enough`.

    Other work on the machine only ever adds to a time. So an upper bound is broken only if every attempt breaks it.
    """
    least = measure()
    for _ in range(attempts - 1):
        if least < enough:
            break
        least = min(least, measure())
    return least


def withheld() -> float:
    """For how many seconds in all this thread was ready to run while other work had the processors (Linux; else 0)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
