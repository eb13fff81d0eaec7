"""Wait for a condition, with a deadline, instead of sleeping for a fixed time."""

import time
from collections.abc import Callable

# Seconds after which something has gone wrong. Nothing is this slow, even on a machine that is busy with other work.
DEADLINE = 20.0


def wait_until(condition: Callable[[], object], seconds: float = DEADLINE, what: str = "") -> float:
    """Wait for the condition and return how many seconds it took; fail after so many seconds."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(0.001)
    return time.perf_counter() - start
