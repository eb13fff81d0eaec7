"""One exchange with a client, as telemetry sees it: numbers and names, never a word of prompt or answer."""

from dataclasses import dataclass, field

from gateway.outcome import Outcome
from gateway.pricing.cost_model import Counts, Price
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.usage import EngineTimes, Usage
from gateway.telemetry.timeline import Timeline
from policies.base import Job


@dataclass(frozen=True, slots=True)
class FinishedSlice:
    """A part of a prefill that was done by itself: the tokens from `start` to `end`, for which so many engine seconds
    were predicted; what of the tokens up to `end` the engine had, if it tells. Instants are the timeline's."""

    started: float
    ended: float
    start: int
    end: int
    cost: float
    cached: int | None


@dataclass(slots=True)
class RequestRecord:
    """Filled in as the request goes; read once, at its end.

    outcome  how it ended; `interrupted`, as long as nothing else is known
    background  it was served last
    prefill_source  where the first token's time is from: `observed` in the stream, `predicted`, or `answer`,
             which came sooner than predicted
    price    what it was predicted to be; `counts`, what it came to, and of these the prefill and the charge, in seconds
    usage, times  as the engine states them
    seen     its prefill, if that was a sample of the curve
    slices   that were done before the request itself was sent
    asked_again  the engine was away, or its connection broke, and it was asked once more
    engine_failed  it answered with an error of its own, be that in a stream that had begun with 200
    """

    id: str
    route: str
    timeline: Timeline
    scheme: str = "http"
    model: str | None = None
    prompts: int = 1
    stream: bool = False
    max_tokens: int | None = None
    price: Price | None = None
    job: Job | None = None
    background: bool = False
    status: int = 0
    outcome: Outcome = Outcome.INTERRUPTED
    usage: Usage | None = None
    times: EngineTimes | None = None
    counts: Counts | None = None
    true_prefill_s: float | None = None
    charged_s: float | None = None
    seen: PrefillObservation | None = None
    prefill_source: str = "observed"
    retried: bool = False
    engine_failed: bool = False
    slices: list[FinishedSlice] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether that is an error of the server, whatever status its client was told before."""
        return self.engine_failed or self.status >= 500 or self.outcome.status >= 500
