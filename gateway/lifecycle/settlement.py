"""What a request came to."""

from dataclasses import dataclass
from typing import NamedTuple

from gateway.pricing.cost_model import Counts
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.usage import Usage


class Answer(NamedTuple):
    """What the engine says of an answer, of a slice's or of the request's own.

    usage          true token counts
    queue_s        seconds that it waited in the engine's own queue
    generation_s   seconds from its first token to its last; each of the three None where the engine does not tell
    """

    usage: Usage | None = None
    queue_s: float | None = None
    generation_s: float | None = None


@dataclass(frozen=True, slots=True)
class FinishedSlice:
    """A part of a prefill that was done by itself.

    started, ended  on the driver's clock
    start, end      tokens of the prompt: it began at the one and ended at the other
    cost_s          engine seconds that were predicted
    cached          of the tokens up to `end`, those that the engine had, if it tells
    first           nothing of the prompt was sent before it
    """

    started: float
    ended: float
    start: int
    end: int
    cost_s: float
    cached: int | None
    first: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """
    charge_s     engine seconds that the job is charged
    usage        as the engine states it, less what the request's own slices had put into the cache
    counts       its tokens; None where the engine told none
    prefill_s    the curve at its true token counts
    observation  its prefill, if that can be told from others' work
    """

    charge_s: float
    usage: Usage | None = None
    counts: Counts | None = None
    prefill_s: float | None = None
    observation: PrefillObservation | None = None
