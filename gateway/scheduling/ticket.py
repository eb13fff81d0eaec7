"""What admission knows of one job: one record, from its arrival to its end."""

from dataclasses import dataclass
from enum import StrEnum

from policies.base import Job, Policy


class Phase(StrEnum):
    """Where a job is. `gateway.scheduling.transitions` says how it gets from one to another."""

    QUEUED = "queued"  # it waits, and the engine has had nothing of it
    PREFILL = "prefill"  # the engine has not scheduled all that it was sent: the job holds its lane
    SCHEDULED = "scheduled"  # the engine has scheduled all that it was sent: the lane is free, no token has come yet
    REQUEUED = "requeued"  # it has begun, and waits for its next slice
    DECODE = "decode"  # its first token has come, or is taken to have come
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Slice:
    """What is prefilled at once: a part of a prompt, or all of it.

    tokens  that it prefills
    cost_s  engine seconds that they take
    rest_s  engine seconds of the slices that come after it
    """

    tokens: int
    cost_s: float
    rest_s: float = 0.0


@dataclass(slots=True, eq=False)
class Ticket:
    """
    slice                what is prefilled now, or next
    earlier              slices sent before it that are still in the engine; their seats are held
    number               which dispatch the last one was, counted over all jobs from 1; 0 before there was one
    predicted_prefill_s  seconds from that dispatch to the first token, the work ahead of it in the engine included
    kv_tokens            of the engine's cache that are reserved for it; None before the first dispatch
    charged_by           the policy that dispatched it, which is told what it comes to; None before that
    remaining_s          engine seconds of prefill that are left, while it waits for its next slice
    may_pass_s           engine seconds of other jobs that may still pass it while it does; None before its first slice
    """

    job: Job
    slice: Slice
    phase: Phase = Phase.QUEUED
    earlier: int = 0
    number: int = 0
    predicted_prefill_s: float = 0.0
    kv_tokens: int | None = None
    charged_by: Policy | None = None
    remaining_s: float = 0.0
    may_pass_s: float | None = None

    @classmethod
    def of(cls, job: Job, first_slice: Slice | None = None) -> "Ticket":
        """Without a slice the prompt is prefilled at once."""
        return cls(job, first_slice or Slice(job.tokens, job.cost))

    @property
    def begun(self) -> bool:
        """The engine has had something of it."""
        return self.charged_by is not None

    def copy(self) -> "Ticket":
        return Ticket(
            self.job,
            self.slice,
            self.phase,
            self.earlier,
            self.number,
            self.predicted_prefill_s,
            self.kv_tokens,
            self.charged_by,
            self.remaining_s,
            self.may_pass_s,
        )
