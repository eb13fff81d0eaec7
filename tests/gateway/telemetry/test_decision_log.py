"""The decision log: what each event looks like in it, and that the same decisions can be taken again from it."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from gateway.identity.callers import hashed
from gateway.scheduling import events
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import EVENTS, Event, event_name
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Slice
from gateway.telemetry.decision_log import VERSION, DecisionLog
from loadtest.simulation.replay import Divergence, replay
from policies import find
from policies.base import Job

Line = dict[str, Any]

LIMITS = Limits(long_prompt_tokens=100, max_num_seqs=4, kv_tokens=1000, flow_in_flight=3)
LATER_LIMITS = Limits(long_prompt_tokens=100, max_num_seqs=2, kv_tokens=800)
FIRST, SECOND, THIRD = Slice(256, 0.25, rest_s=0.75), Slice(200, 0.25, rest_s=0.5), Slice(144, 0.5)

SLICED = Job("user:ada", "long", 600, 1.0, 1.5, seats=1, id="secret-1", kv_tokens=620, session="chat:7", weight=2.0)
SHORT = Job("user:ben", "short", 50, 0.2, 2.0, seats=2, id="secret-2", kv_tokens=60, deadline=9.0, head_start=1.0)
QUEUED = Job("user:ada", "short", 70, 0.3, 2.5, seats=4, id="secret-3", flow_in_flight=2, flow_queued=5)
LAST = Job("user:cem", "short", 10, 0.1, 3.0, id="secret-4")

# What is written of a job that is nothing special.
PLAIN: Line = {
    "lane": "short",
    "seats": 1,
    "kv_tokens": 0,
    "session": "",
    "weight": 1.0,
    "head_start": 0.0,
    "deadline": None,
    "flow_in_flight": None,
    "flow_queued": None,
}

# Each kind of event, with every field that it can have, and the fields that are written of it.
HISTORY: list[tuple[Event, Line]] = [
    (
        events.Arrived(SLICED, FIRST, max_tokens=20),
        {
            "job": 0,
            "flow": hashed("user:ada"),
            "lane": "long",
            "tokens": 600,
            "cost": 1.0,
            "arrival": 1.5,
            "seats": 1,
            "kv_tokens": 620,
            "session": hashed("chat:7"),
            "weight": 2.0,
            "head_start": 0.0,
            "deadline": None,
            "flow_in_flight": None,
            "flow_queued": None,
            "slice": {"tokens": 256, "cost_s": 0.25, "rest_s": 0.75},
            "max_tokens": 20,
        },
    ),
    (
        events.Arrived(SHORT),
        PLAIN
        | {"job": 1, "flow": hashed("user:ben"), "tokens": 50, "cost": 0.2, "arrival": 2.0}
        | {"seats": 2, "kv_tokens": 60, "head_start": 1.0, "deadline": 9.0},
    ),
    (events.Scheduled(SLICED), {"job": 0}),
    (events.Requeued(SLICED, SECOND), {"job": 0, "slice": {"tokens": 200, "cost_s": 0.25, "rest_s": 0.5}}),
    (
        events.Arrived(QUEUED),
        PLAIN
        | {"job": 2, "flow": hashed("user:ada"), "tokens": 70, "cost": 0.3, "arrival": 2.5}
        | {"seats": 4, "flow_in_flight": 2, "flow_queued": 5},
    ),
    (events.EarlierSliceDone(SLICED), {"job": 0}),
    (events.FirstToken(SHORT), {"job": 1, "observed": True}),
    (
        events.SliceDone(SLICED, THIRD, observed=False),
        {"job": 0, "slice": {"tokens": 144, "cost_s": 0.5, "rest_s": 0.0}, "observed": False},
    ),
    (events.Progressed(SHORT, 0.4, 130), {"job": 1, "cost_s": 0.4, "kv_tokens": 130}),
    (
        events.Corrected(kv_scale=0.75, external_seats=1, external_kv_tokens=30),
        {"kv_scale": 0.75, "external_seats": 1, "external_kv_tokens": 30},
    ),
    (events.Left(QUEUED), {"job": 2}),
    (events.LimitsChanged(LATER_LIMITS), {"limits": asdict(LATER_LIMITS)}),
    (events.PolicyChanged("shortest"), {"policy": "shortest"}),
    (events.Finished(SHORT, 0.9, output_tokens=12), {"job": 1, "cost_s": 0.9, "output_tokens": 12}),
    (events.FirstToken(SLICED, observed=False), {"job": 0, "observed": False}),
    (
        events.Arrived(LAST),
        PLAIN | {"job": 3, "flow": hashed("user:cem"), "tokens": 10, "cost": 0.1, "arrival": 3.0},
    ),
    (events.Finished(SLICED, 1.25), {"job": 0, "cost_s": 1.25}),
    (events.Finished(LAST, 0.0), {"job": 3, "cost_s": 0.0}),
]


class Told:
    """An admission that was told all of the history, its log, and what it answered."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.dispatched: list[list[Job]] = []
        self.held: list[dict[str, int]] = []
        admission = Admission(find("fair")(), LIMITS)
        log = DecisionLog(self.lines.append, "fair", admission)
        for event, _ in HISTORY:
            self.dispatched.append(admission.apply(event))
            self.held.append(admission.held())
            log(event, self.dispatched[-1])

    @property
    def events(self) -> list[Line]:
        return [json.loads(line) for line in self.lines[1:]]


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


def written(head: str, lines: list[Line]) -> list[str]:
    return [head, *map(json.dumps, lines)]


def test_the_first_line_has_the_version_the_policy_and_the_limits(told: Told) -> None:
    assert VERSION == 2
    assert json.loads(told.lines[0]) == {"version": 2, "policy": "fair", "limits": asdict(LIMITS)}


def test_the_history_has_every_kind_of_event() -> None:
    assert {type(event) for event, _ in HISTORY} == set(EVENTS)


@pytest.mark.parametrize("at", range(len(HISTORY)), ids=lambda at: f"{at}-{event_name(type(HISTORY[at][0]))}")
def test_each_event_is_written_with_its_fields_and_what_was_decided(told: Told, at: int) -> None:
    (event, fields), numbers = HISTORY[at], {job: n for n, job in enumerate((SLICED, SHORT, QUEUED, LAST))}
    decided = {"dispatched": [numbers[job] for job in told.dispatched[at]], "held": told.held[at]}
    assert told.events[at] == {"n": at + 1, "event": event_name(type(event))} | fields | decided


def test_an_event_has_the_name_of_its_class() -> None:
    assert {event_name(event) for event in EVENTS} == {
        "arrived",
        "scheduled",
        "requeued",
        "slice_done",
        "earlier_slice_done",
        "first_token",
        "progressed",
        "finished",
        "left",
        "limits_changed",
        "policy_changed",
        "corrected",
    }


def test_a_line_is_one_line_and_names_nobody(told: Told) -> None:
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in told.lines)
    for name in ("ada", "ben", "cem", "chat:7", "secret"):
        assert f'"{name}' not in "".join(told.lines)
        assert f"user:{name}" not in "".join(told.lines)


def test_the_same_decisions_are_taken_again(told: Told) -> None:
    assert replay(told.lines) == len(HISTORY)
    # And they were decisions: somebody waited, and was dispatched by what happened to another.
    assert sum(map(len, told.dispatched)) == 5
    assert [] in told.dispatched[:5]


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (1, {"tokens": 51}),
        (1, {"seats": 3}),
        (1, {"kv_tokens": 61}),
        (3, {"slice": {"tokens": 201, "cost_s": 0.25, "rest_s": 0.5}}),
        (7, {"slice": {"tokens": 145, "cost_s": 0.5, "rest_s": 0.0}}),
        (8, {"kv_tokens": 131}),
    ],
)
def test_every_field_that_affects_a_decision_is_read_from_the_log(told: Told, at: int, changes: Line) -> None:
    lines = told.events
    assert changes.keys() <= lines[at].keys()
    lines[at] |= changes
    with pytest.raises(Divergence):
        replay(written(told.lines[0], lines))


def test_a_gap_in_the_numbers_of_events_shows(told: Told) -> None:
    head, *lines = told.lines
    with pytest.raises(Divergence, match="line 11: event 11, where 10 should be"):
        replay([head, *lines[:9], *lines[10:]])


def test_an_impossible_event_is_a_divergence(told: Told) -> None:
    lines = told.events
    lines[2] = lines[2] | {"event": "requeued", "slice": {"tokens": 1, "cost_s": 0.1}}
    with pytest.raises(Divergence, match="line 4: requeued of job 0, which is not in that phase"):
        replay(written(told.lines[0], lines))


# Other versions.


@pytest.mark.parametrize("version", [3, 4, 100])
def test_a_newer_log_is_refused_with_both_versions(told: Told, version: int) -> None:
    head = json.dumps(json.loads(told.lines[0]) | {"version": version})
    with pytest.raises(ValueError, match=f"the log has version {version}; this Fairlane reads versions up to 2"):
        replay([head, *told.lines[1:]])


def test_a_newer_log_is_refused_before_its_events_are_read(told: Told) -> None:
    head = json.dumps(json.loads(told.lines[0]) | {"version": 3})
    with pytest.raises(ValueError, match="version 3"):
        replay([head, "what only version 3 can say"])


# Version 1 had no version. Its names, of what has another one now.
OLD_EVENTS = {
    "arrived": "arrive",
    "progressed": "progress",
    "finished": "finish",
    "left": "leave",
    "limits_changed": "relimit",
    "policy_changed": "use",
    "corrected": "correct",
}
NEW_KINDS = {"scheduled", "requeued", "earlier_slice_done"}
OLD_SLICE = {"tokens": "tokens", "cost_s": "cost", "rest_s": "rest"}


def in_version_1(line: Line) -> Line:
    line = line | {"event": OLD_EVENTS.get(line["event"], line["event"])}
    if "slice" in line:
        line["part"] = {OLD_SLICE[name]: value for name, value in line.pop("slice").items()}
    if "cost_s" in line:
        line["cost"] = line.pop("cost_s")
    if line.pop("observed", True) is False:
        line["guessed"] = True
    if line["event"] == "correct":
        line["correction"] = {
            "kv_scale": line.pop("kv_scale"),
            "foreign_seats": line.pop("external_seats"),
            "foreign_kv_tokens": line.pop("external_kv_tokens"),
        }
    return line


def log_in_version_1(history: list[Event], limits: Limits) -> list[str]:
    lines: list[str] = []
    admission = Admission(find("fair")(), limits)
    log = DecisionLog(lines.append, "fair", admission)
    for event in history:
        log(event, admission.apply(event))
    head, *told = map(json.loads, lines)
    del head["version"]
    return written(json.dumps(head), list(map(in_version_1, told)))


def test_a_log_of_version_1_replays() -> None:
    """Every kind of event that it had. Whole logs of then are in tests/golden."""
    other = Job("b", "short", 30, 0.5, 2.0, seats=2, kv_tokens=40)
    history: list[Event] = [
        events.Arrived(SLICED, FIRST),
        events.Arrived(SHORT, max_tokens=5),
        events.SliceDone(SLICED, THIRD, observed=False),
        events.FirstToken(SHORT, observed=False),
        events.Corrected(kv_scale=0.5, external_seats=2, external_kv_tokens=100),
        events.Arrived(other),
        events.Arrived(QUEUED),
        events.Progressed(SHORT, 3.0, 300),
        events.PolicyChanged("fifo"),
        events.Left(QUEUED),
        events.LimitsChanged(Limits(max_num_seqs=9)),
        events.FirstToken(SLICED),
        events.Finished(SHORT, 3.5, output_tokens=9),
        events.Finished(SLICED, 1.5),
        events.Finished(other, 0.5),
    ]
    assert {type(event) for event in history} == {event for event in EVENTS if event_name(event) not in NEW_KINDS}
    old = log_in_version_1(history, LIMITS)
    newer = ("version", "slice", "cost_s", "rest_s", "observed", "external_seats", "external_kv_tokens")
    assert not any(f'"{name}"' in line for line in old for name in newer)
    assert replay(old) == len(history)


def test_the_corrections_of_a_log_of_version_1_are_read() -> None:
    """Each decides who is dispatched; told otherwise, the log diverges."""
    first, second, third = (
        Job(flow, "short", 10, 0.1, arrival, kv_tokens=kv_tokens)
        for arrival, (flow, kv_tokens) in enumerate([("a", 50), ("b", 20), ("c", 100)])
    )
    history: list[Event] = [
        events.Arrived(first),
        events.Corrected(external_seats=2),
        events.Arrived(second),
        events.Corrected(external_kv_tokens=40),
        events.Corrected(),
        events.Arrived(third),
        events.Corrected(kv_scale=0.5),
    ]
    head, *lines = log_in_version_1(history, Limits(max_num_seqs=3, kv_tokens=100))
    old = [json.loads(line) for line in lines]
    assert [line["dispatched"] for line in old] == [[0], [], [], [], [1], [], [2]]
    assert replay([head, *lines]) == len(history)
    for at, name, value in ((1, "foreign_seats", 0), (3, "foreign_kv_tokens", 0), (6, "kv_scale", 1.0)):
        altered = old[at] | {"correction": old[at]["correction"] | {name: value}}
        with pytest.raises(Divergence):
            replay(written(head, [*old[:at], altered, *old[at + 1 :]]))
