"""The life of a job as admission sees it: which event leads from which phase to which.

As in h11's state machine, the rules are a table, and what is not in it cannot happen. The diagram in
docs/architecture.md is drawn from it (`diagram`).
"""

from gateway.scheduling.events import (
    Dispatched,
    EarlierSliceDone,
    Finished,
    FirstToken,
    Left,
    Progressed,
    Requeued,
    Scheduled,
    SliceDone,
)
from gateway.scheduling.ticket import Phase

TRANSITIONS: dict[Phase, dict[type, Phase]] = {
    Phase.QUEUED: {
        Dispatched: Phase.PREFILL,
        Left: Phase.ENDED,
    },
    Phase.PREFILL: {
        Scheduled: Phase.SCHEDULED,
        SliceDone: Phase.REQUEUED,
        EarlierSliceDone: Phase.PREFILL,
        FirstToken: Phase.DECODE,
        Progressed: Phase.PREFILL,
        Finished: Phase.ENDED,
    },
    Phase.SCHEDULED: {
        Requeued: Phase.REQUEUED,
        SliceDone: Phase.REQUEUED,
        EarlierSliceDone: Phase.SCHEDULED,
        FirstToken: Phase.DECODE,
        Progressed: Phase.SCHEDULED,
        Finished: Phase.ENDED,
    },
    Phase.REQUEUED: {
        Dispatched: Phase.PREFILL,
        EarlierSliceDone: Phase.REQUEUED,
        Progressed: Phase.REQUEUED,
        Finished: Phase.ENDED,
    },
    Phase.DECODE: {
        # The last slice may answer before the one ahead of it is seen to be done.
        EarlierSliceDone: Phase.DECODE,
        # Told again, it changes nothing.
        FirstToken: Phase.DECODE,
        Progressed: Phase.DECODE,
        Finished: Phase.ENDED,
    },
    Phase.ENDED: {},
}


def after(phase: Phase, event: type) -> Phase:
    """The phase that follows. Raises KeyError for an event that cannot happen in this one."""
    return TRANSITIONS[phase][event]


def diagram() -> str:
    """The table as a Mermaid state diagram (https://mermaid.js.org/syntax/stateDiagram.html)."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.QUEUED}: Arrived"]
    for phase, events in TRANSITIONS.items():
        for event, following in events.items():
            if following is not phase:
                end = "[*]" if following is Phase.ENDED else following
                lines.append(f"    {phase} --> {end}: {event.__name__}")
    return "\n".join(lines)
