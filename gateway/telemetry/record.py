"""One request as telemetry sees it: numbers and names, never a word of prompt or answer."""

from dataclasses import dataclass

from gateway.lifecycle.lifecycle import TimingSource
from gateway.lifecycle.settlement import FinishedSlice
from gateway.outcome import Outcome
from gateway.pricing.cost_model import Counts, Price
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.usage import Usage
from gateway.telemetry.timeline import Timeline
from policies.base import Job

__all__ = ["RequestRecord", "Timeline"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """Filled in once, at the request's end.

    outcome        how it ended; `interrupted`, if nothing else is known
    background     it was served last
    price          what it was predicted to be; `counts`, what it came to, and of these the prefill and the charge, in
                   seconds
    usage          as the engine states it
    observation    its prefill, if that was a sample of the curve
    timing_source  where the first token's time is from: `observed` in the stream, `predicted`, or `answer`, which came
                   sooner than predicted
    slices         that were done before the request itself was sent
    retried        the engine was away, or its connection broke, and it was asked once more
    engine_failed  it answered with an error of its own, be that in a stream that had begun with 200
    """

    id: str
    route: str
    timeline: Timeline
    scheme: str = "http"
    model: str | None = None
    prompts: int = 1
    stream: bool = False
    price: Price | None = None
    job: Job | None = None
    background: bool = False
    status: int = 0
    outcome: Outcome = Outcome.INTERRUPTED
    usage: Usage | None = None
    counts: Counts | None = None
    true_prefill_s: float | None = None
    charged_s: float | None = None
    observation: PrefillObservation | None = None
    timing_source: TimingSource = "observed"
    retried: bool = False
    engine_failed: bool = False
    slices: tuple[FinishedSlice, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether that is an error of the server, whatever status its client was told before."""
        return self.engine_failed or self.status >= 500 or self.outcome.status >= 500
