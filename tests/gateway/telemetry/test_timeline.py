"""The phases of a request's life, including requests that ended early."""

import pytest

from gateway.telemetry.timeline import Timeline


def spans(timeline: Timeline) -> dict[str, float | None]:
    return {name: getattr(timeline, f"{name}_s") for name in ("queue", "prefill", "decode", "ttft", "e2e")}


@pytest.mark.parametrize(
    ("timeline", "expected"),
    [
        (Timeline(10), {"queue": None, "prefill": None, "decode": None, "ttft": None, "e2e": None}),
        (Timeline(10, ended=11), {"queue": None, "prefill": None, "decode": None, "ttft": None, "e2e": 1}),
        (Timeline(10, 11, ended=13), {"queue": 2, "prefill": None, "decode": None, "ttft": None, "e2e": 3}),
        (Timeline(10, 11, 14, ended=15), {"queue": 3, "prefill": 1, "decode": None, "ttft": None, "e2e": 5}),
        (Timeline(10, 11, 14, 15, ended=20), {"queue": 3, "prefill": 1, "decode": 5, "ttft": 5, "e2e": 10}),
        (Timeline(0, 0, 0, 0, ended=5), {"queue": 0, "prefill": 0, "decode": 5, "ttft": 0, "e2e": 5}),
        (Timeline(10, 11, 14, 15), {"queue": 3, "prefill": 1, "decode": None, "ttft": 5, "e2e": None}),
    ],
    ids=["arrived", "refused", "left the queue", "left in prefill", "completed", "at zero", "streaming"],
)
def test_each_outcome_has_its_phases(timeline: Timeline, expected: dict[str, float | None]) -> None:
    assert spans(timeline) == expected


def test_the_phases_of_a_completed_request_add_up() -> None:
    timeline = Timeline(10.0, 10.5, 13.0, 15.5, 21.0)
    parts = [timeline.queue_s, timeline.prefill_s, timeline.decode_s]
    assert sum(part for part in parts if part is not None) == 21.0 - 10.5
