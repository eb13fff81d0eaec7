"""Admission's events and decisions, a line of JSON each, as they happen.

The first line has the policy and the limits; each further one an event, its job, and who was let go by it. From
that alone the same decisions can be taken again, by the same code and no clock (`fairlane replay`), or other ones
by another policy. Jobs are numbered; flows are hashed.

    {"policy": "fair", "limits": {...}}
    {"event": "arrive", "job": 0, "flow": "6f0c…", "lane": "short", "tokens": 50, "cost": 0.2, "arrival": 1.5,
     "seats": 1, "dispatched": [0]}
    {"event": "first_token", "job": 0, "dispatched": []}
    {"event": "finish", "job": 0, "cost": 0.9, "dispatched": []}
    {"event": "leave", "job": 1, "dispatched": []}
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import Any

from gateway.admission import Limits
from gateway.callers import hashed
from policies.base import Job


class DecisionLog:
    """An observer of the waiting room. `write` takes one line, its newline included."""

    def __init__(self, write: Callable[[str], object], policy: str, limits: Limits) -> None:
        self._write = write
        self._numbers: dict[Job, int] = {}
        self._count = count()
        self._line({"policy": policy, "limits": asdict(limits)})

    def __call__(self, event: str, job: Job, cost: float | None, dispatched: list[Job]) -> None:
        if event == "arrive":
            self._numbers[job] = next(self._count)
        line: dict[str, Any] = {"event": event, "job": self._numbers[job]}
        if event == "arrive":
            line |= asdict(job) | {"flow": hashed(job.flow)}
            del line["id"]
        if cost is not None:
            line["cost"] = cost
        line["dispatched"] = [self._numbers[granted] for granted in dispatched]
        if event in ("finish", "leave"):
            del self._numbers[job]
        self._line(line)

    def _line(self, line: dict[str, Any]) -> None:
        self._write(json.dumps(line) + "\n")
