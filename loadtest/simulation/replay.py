"""Decisions taken again: a gateway's decision log through the same admission and policy, without its clock."""

from collections.abc import Iterable
from math import inf
from typing import Any

import msgspec

from gateway.scheduling.admission import Admission
from gateway.scheduling.events import EVENTS, Arrived, Event, PolicyChanged, event_name
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Slice
from policies import find
from policies.base import Job

NEWEST = 2
BY_NAME = {event_name(event): event for event in EVENTS}

# Version 1: its names of events, and of their fields.
_EVENTS_1 = {
    "arrive": "arrived",
    "progress": "progressed",
    "finish": "finished",
    "leave": "left",
    "relimit": "limits_changed",
    "use": "policy_changed",
    "correct": "corrected",
}
_SLICE_1 = {"cost": "cost_s", "rest": "rest_s"}
_CORRECTION_1 = {"foreign_seats": "external_seats", "foreign_kv_tokens": "external_kv_tokens"}

Fields = dict[str, Any]


class Divergence(Exception):
    """What is decided now is not what the log says, or an event cannot be."""


class _Head(msgspec.Struct):
    policy: str
    limits: Limits
    version: int = 1


class _Line(msgspec.Struct):
    n: int
    event: str
    dispatched: list[int]
    held: dict[str, int]
    job: int | None = None


_LINE = msgspec.json.Decoder(_Line)
_FIELDS = msgspec.json.Decoder(Fields)


def replay(lines: Iterable[str], policy: str | None = None) -> int:
    """Take a log's decisions again, by its own policy or by another; the number of events.

    Raises Divergence at the first line that differs, ValueError for what is no decision log.
    """
    log = enumerate(lines, start=1)
    try:
        head = msgspec.json.decode(next(log)[1], type=_Head)
    except (StopIteration, msgspec.DecodeError) as error:
        raise ValueError(f"this is no decision log: {error}") from error
    if head.version > NEWEST:
        raise ValueError(f"the log has version {head.version}; this Fairlane reads versions up to {NEWEST}")
    player = _Player(Admission(find(policy or head.policy)(), head.limits), head.version)
    number = 1
    for number, text in log:
        line, event = player.read(number, text)
        if not (policy is not None and isinstance(event, PolicyChanged)):
            player.play(number, line, event)
    return number - 1


class _Player:
    def __init__(self, admission: Admission, version: int) -> None:
        self._admission = admission
        self._version = version
        self._jobs: dict[int, Job] = {}

    def read(self, number: int, text: str) -> tuple[_Line, Event]:
        line, fields = _LINE.decode(text), _FIELDS.decode(text)
        if line.n != number - 1:
            raise Divergence(f"line {number}: event {line.n}, where {number - 1} should be")
        if self._version == 1:
            line.event, fields = _from_version_1(line.event, fields)
        try:
            return line, self._event(line, fields)
        except KeyError as error:
            raise _impossible(number, line) from error

    def play(self, number: int, line: _Line, event: Event) -> None:
        try:
            dispatched = [int(job.id) for job in self._admission.apply(event)]
        except KeyError as error:
            raise _impossible(number, line) from error
        if dispatched != line.dispatched:
            raise Divergence(f"line {number}: the log dispatches {line.dispatched}, now it is {dispatched}")
        if self._admission.held() != line.held:
            raise Divergence(f"line {number}: the log holds {line.held}, now it is {self._admission.held()}")

    def _event(self, line: _Line, fields: Fields) -> Event:
        """KeyError for an event, or a job, that there is not."""
        kind = BY_NAME[line.event]
        given = {name: fields[name] for name in kind.__dataclass_fields__ if name in fields}
        for name, wanted in (("slice", Slice), ("limits", Limits)):
            if name in given:
                given[name] = msgspec.convert(given[name], wanted)
        if line.job is not None:
            if kind is Arrived:
                self._jobs[line.job] = _job(fields)
            given["job"] = self._jobs[line.job]
        try:
            return kind(**given)
        except TypeError as error:
            raise ValueError(f"this is no decision log: event {line.n}: {error}") from error


def _job(fields: Fields) -> Job:
    given = {name: fields[name] for name in Job.__dataclass_fields__ if name in fields}
    deadline = given.get("deadline")
    return Job(**given | {"id": str(fields["job"]), "deadline": inf if deadline is None else deadline})


def _impossible(number: int, line: _Line) -> Divergence:
    return Divergence(f"line {number}: {line.event} of job {line.job}, which is not in that phase")


def _from_version_1(name: str, fields: Fields) -> tuple[str, Fields]:
    fields = dict(fields)
    event = _EVENTS_1.get(name, name)
    if "part" in fields:
        fields["slice"] = {_SLICE_1.get(key, key): value for key, value in fields.pop("part").items()}
    if "correction" in fields:
        fields |= {_CORRECTION_1.get(key, key): value for key, value in fields.pop("correction").items()}
    if event != "arrived" and "cost" in fields:
        fields["cost_s"] = fields["cost"]
    if fields.pop("guessed", None):
        fields["observed"] = False
    return event, fields
