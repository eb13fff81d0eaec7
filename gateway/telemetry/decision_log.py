"""Admission's events and decisions, a line of JSON each, as they happen.

The first line has the log's version, the policy and the limits; each further one an event, its job, who was dispatched
by it, and what the budgets have given out since. From that alone the same decisions can be taken again, by the same
code and no clock (`fairlane replay`), or other ones by another policy. Jobs are numbered; flows are hashed.

    {"version": 2, "policy": "fair", "limits": {...}}
    {"n": 1, "event": "arrived", "job": 0, "flow": "6f0c…", "lane": "short", "tokens": 50, "cost": 0.2, "arrival": 1.5,
     "seats": 1, ..., "dispatched": [0], "held": {"seats": 1, "kv": 0, "short": 50, "long": 0}}
    {"n": 2, "event": "first_token", "job": 0, "observed": true, "dispatched": [], "held": {...}}
    {"n": 3, "event": "finished", "job": 0, "cost_s": 0.9, "output_tokens": 12, "dispatched": [], "held": {...}}
    {"n": 4, "event": "left", "job": 1, "dispatched": [], "held": {...}}
    {"n": 5, "event": "limits_changed", "limits": {...}, "dispatched": [], "held": {...}}

An event's name is its class's (`gateway.scheduling.events`), and its fields are that class's fields. Version 1, which
`fairlane replay` still reads, had other names for them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from math import isinf
from typing import Any

from gateway.identity.callers import hashed
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Arrived, Event, Finished, Left, event_name
from policies.base import Job

VERSION = 2


class DecisionLog:
    """An observer of the waiting room. `write` takes one line, its newline included."""

    def __init__(self, write: Callable[[str], object], policy: str, admission: Admission) -> None:
        self._write = write
        self._admission = admission
        self._numbers: dict[Job, int] = {}
        self._count = count()
        self._events = count(1)
        self._line({"version": VERSION, "policy": policy, "limits": asdict(admission.limits)})

    def __call__(self, event: Event, dispatched: list[Job]) -> None:
        line: dict[str, Any] = {"n": next(self._events), "event": event_name(type(event))}
        job: Job | None = getattr(event, "job", None)
        fields = asdict(event)
        fields.pop("job", None)
        if job is not None:
            if isinstance(event, Arrived):
                self._numbers[job] = next(self._count)
                line |= _described(job)
            line["job"] = self._numbers[job]
        line |= {name: value for name, value in fields.items() if value is not None}
        line["dispatched"] = [self._numbers[granted] for granted in dispatched]
        line["held"] = self._admission.held()
        if job is not None and isinstance(event, Finished | Left):
            del self._numbers[job]
        self._line(line)

    def _line(self, line: dict[str, Any]) -> None:
        self._write(json.dumps(line) + "\n")


def _described(job: Job) -> dict[str, Any]:
    """All that decides, and nothing that names anybody."""
    fields = asdict(job) | {"flow": hashed(job.flow), "session": job.session and hashed(job.session)}
    fields["deadline"] = None if isinf(job.deadline) else job.deadline  # JSON has no infinity
    del fields["id"]
    return fields
