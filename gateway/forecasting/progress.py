"""One job's progress through the engine, as the driver sees it, with the time."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from gateway.pricing.curves import PrefillObservation
from gateway.scheduling.ticket import Slice
from policies.base import Job

Instant = Literal["start", "first_token", "end"]
INSTANTS: tuple[Instant, ...] = get_args(Instant)

Medians = dict[Instant, float]


@dataclass(slots=True, eq=False)
class JobProgress:
    """Instants are seconds on the driver's clock.

    price_s         of its prompt, by the curve as it was when it came
    slice           what of its prefill is done at once, if it comes in slices
    slices_done     of it, if it comes in slices
    dispatched_at   when it, or its slice, went to the engine; None while it waits
    number          which dispatch that was
    decoding        sequences that decoded then
    concurrent      the jobs that have been in prefill with it since
    first_token_at  when it came, or was taken to come
    observed        it was seen to come
    tokens          of the answer so far
    promise         the first forecast that was made for it: when, and in how many seconds from then
    """

    max_tokens: int | None = None
    price_s: float = 0.0
    slice: Slice | None = None
    slices_done: int = 0
    dispatched_at: float | None = None
    number: int = 0
    decoding: int = 0
    concurrent: "list[tuple[Job, JobProgress]]" = field(default_factory=list)
    first_token_at: float | None = None
    observed: bool = False
    tokens: int = 0
    promise: tuple[float, Medians] | None = None

    @property
    def queued(self) -> bool:
        """It has not begun."""
        return self.dispatched_at is None and not self.slices_done

    def observation(self, until: float | None = None) -> PrefillObservation | None:
        """Its prefill, or its slice's, if all that was prefilled at the same time came later and was done sooner: then
        the time was theirs and its own, else it cannot be told apart and is None.

        until  when its first token came, where somebody knows that better, or when the slice was done
        """
        if until is None and self.observed:
            until = self.first_token_at
        if self.dispatched_at is None or until is None:
            return None
        for _, other in self.concurrent:
            if other.dispatched_at is None or other.first_token_at is None or not other.observed or other.slices_done:
                return None
            if other.dispatched_at < self.dispatched_at or other.first_token_at > until:
                return None
        tokens = tuple(job.tokens for job, _ in self.concurrent)
        return PrefillObservation(until - self.dispatched_at, self.decoding, tokens)
