"""Admission's events and decisions, a line of JSON each, as they happen.

The first line has the policy and the limits; each further one an event, its job, who was let go by it, and what the
budgets have given out since. From that alone the same decisions can be taken again, by the same code and no clock
(`fairlane replay`), or other ones by another policy. Jobs are numbered; flows are hashed.

    {"policy": "fair", "limits": {...}}
    {"n": 1, "event": "arrive", "job": 0, "flow": "6f0c…", "lane": "short", "tokens": 50, "cost": 0.2, "arrival": 1.5,
     "seats": 1, ..., "dispatched": [0], "held": {"seats": 1, "kv": 0, "short": 50, "long": 0}}
    {"n": 2, "event": "first_token", "job": 0, "dispatched": [], "held": {...}}
    {"n": 3, "event": "finish", "job": 0, "cost": 0.9, "dispatched": [], "held": {...}}
    {"n": 4, "event": "leave", "job": 1, "dispatched": [], "held": {...}}
    {"n": 5, "event": "relimit", "limits": {...}, "dispatched": [], "held": {...}}
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from math import isinf
from typing import Any

from gateway.identity.callers import hashed
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event
from policies.base import Job


class DecisionLog:
    """An observer of the waiting room. `write` takes one line, its newline included."""

    def __init__(self, write: Callable[[str], object], policy: str, admission: Admission) -> None:
        self._write = write
        self._admission = admission
        self._numbers: dict[Job, int] = {}
        self._count = count()
        self._events = count(1)
        self._line({"policy": policy, "limits": asdict(admission.limits)})

    def __call__(self, event: Event, dispatched: list[Job]) -> None:
        line: dict[str, Any] = {"n": next(self._events), "event": event.kind}
        job = event.job
        if job is not None:
            if event.kind == "arrive":
                self._numbers[job] = next(self._count)
                line |= asdict(job) | {"flow": hashed(job.flow), "session": job.session and hashed(job.session)}
                line["deadline"] = None if isinf(job.deadline) else job.deadline  # JSON has no infinity
                del line["id"]
            line["job"] = self._numbers[job]
        arguments = asdict(event)
        del arguments["kind"], arguments["job"]
        line |= {name: value for name, value in arguments.items() if value is not None}
        line["dispatched"] = [self._numbers[granted] for granted in dispatched]
        line["held"] = self._admission.held()
        if job is not None and event.kind in ("finish", "leave"):
            del self._numbers[job]
        self._line(line)

    def _line(self, line: dict[str, Any]) -> None:
        self._write(json.dumps(line) + "\n")
