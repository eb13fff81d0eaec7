"""Who waits and who runs, as people may see it: places and times, never a word of what they wait for."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from html import escape
from math import isfinite
from typing import Any

from gateway.forecasting.forecaster import Forecaster
from gateway.forecasting.outlook import Outlook
from gateway.forecasting.progress import JobProgress
from gateway.identity.callers import hashed
from policies.base import Job

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One request. Seconds are from now; `None` is what has been already, or cannot be told.

    position     among those that wait, by when they will be dispatched; None for one that runs
    first_token  median and 90th percentile, as are the others
    behind       seconds of its wait, by the flow that it waits for
    """

    id: str
    flow: str
    lane: str
    prompt_tokens: int
    phase: str
    position: int | None
    waited_s: float
    start_s: tuple[float, float] | None
    first_token_s: tuple[float, float] | None
    end_s: tuple[float, float] | None
    behind: dict[str, float]


def entries(forecaster: Forecaster, now: float) -> list[QueueEntry]:
    """Everybody, those who run first, then who waits in the order in which they are expected to go."""
    outlook, progress = forecaster.outlook(now), forecaster.speed.progress
    jobs = [job for job in progress if job in outlook]
    jobs.sort(key=lambda job: (outlook.start(job, now).median, job.arrival))
    found: list[QueueEntry] = []
    position = 0
    for job in jobs:
        position += progress[job].queued
        found.append(_entry(job, progress[job], outlook, now, position))
    return found


def _entry(job: Job, progress: JobProgress, outlook: Outlook, now: float, position: int) -> QueueEntry:
    queued, prefilled = progress.queued, progress.first_token_at is not None
    until = now if progress.dispatched_at is None else progress.dispatched_at
    return QueueEntry(
        id=job.id,
        flow=job.flow,
        lane=job.lane,
        prompt_tokens=job.tokens,
        phase="waiting" if queued else "decode" if prefilled else "prefill",
        position=position if queued else None,
        waited_s=round(until - job.arrival, 3),
        start_s=_pair(outlook.start(job, now)) if queued else None,
        first_token_s=None if prefilled else _pair(outlook.first_token(job, now)),
        end_s=_pair(outlook.end(job, now)),
        behind=_rounded(outlook.wait_attribution(job)) if queued else {},
    )


def view(found: list[QueueEntry], flow: str | None) -> Row:
    """What a caller is told: all of it to an admin (`flow` is None), else their own; others are counted, not named."""
    own = [entry for entry in found if flow is None or entry.flow == flow]
    waiting = sum(entry.position is not None for entry in found)
    return {
        "waiting": waiting,
        "running": len(found) - waiting,
        "requests": [asdict(entry) | _names(entry, flow) for entry in own],
    }


def page(answer: Row) -> str:
    """The same as a plain page that comes again by itself."""
    head = ("", "user", "lane", "prompt", "phase", "waited", "first token in", "at most (9 of 10)", "done in", "behind")
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(row))}</tr>" for row in answer["requests"]
    )
    nobody = "" if answer["requests"] else "<p>None of your requests is here now.</p>"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=refresh content=2><title>Fairlane: the queue</title><style>"
        "body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem;color:#222;background:#fff}"
        "table{border-collapse:collapse}td,th{padding:.25rem .8rem .25rem 0;text-align:left;white-space:nowrap}"
        "th{font-weight:600;border-bottom:1px solid #bbb}div{overflow-x:auto}"
        "@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}}</style>"
        f"<h1>{answer['waiting']} waiting, {answer['running']} running</h1>{nobody}"
        f"<div><table>{_tr('th', head)}{rows}</table></div></html>"
    )


def _tr(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _names(entry: QueueEntry, flow: str | None) -> Row:
    if flow is None:
        return {}
    behind = {"you" if name == flow else hashed(name): seconds for name, seconds in entry.behind.items()}
    return {"flow": "you", "behind": behind}


def _cells(row: Row) -> list[str]:
    first, end = row["first_token_s"], row["end_s"]
    behind = sorted(row["behind"].items(), key=lambda item: -item[1])[:3]
    return [
        "" if row["position"] is None else f"#{row['position']}",
        row["flow"],
        row["lane"],
        f"{row['prompt_tokens']} tokens",
        row["phase"],
        f"{row['waited_s']:.1f} s",
        f"{first[0]:.1f} s" if first else "",
        f"{first[1]:.1f} s" if first else "",
        f"{end[0]:.0f} s" if end else "",
        ", ".join(f"{name} {seconds:.1f} s" for name, seconds in behind),
    ]


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {flow: round(each, 3) for flow, each in seconds.items()}


def _pair(eta: tuple[float, float]) -> tuple[float, float] | None:
    median, p90 = eta
    return (round(median, 3), round(p90, 3)) if isfinite(median) and isfinite(p90) else None
