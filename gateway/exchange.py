"""One exchange with a client, as telemetry sees it: numbers and names, never a word of prompt or answer."""

from dataclasses import dataclass

from gateway.cost import Counts, Price
from gateway.curve import Seen
from gateway.outcome import Outcome
from gateway.timeline import Timeline
from gateway.usage import EngineTimes, Usage
from policies.base import Job


@dataclass(slots=True)
class Exchange:
    """Filled in as the request goes; read once, at its end.

    outcome  how it ended; `interrupted`, as long as nothing else is known
    prefill_source  where the first token's time is from: `observed` in the stream, `predicted`, or `answer`,
             which came sooner than predicted
    price    what it was predicted to be; `counts`, what it came to, and of these the prefill and the charge, in seconds
    usage, times  as the engine states them
    seen     its prefill, if that was a sample of the curve
    """

    id: str
    route: str
    timeline: Timeline
    model: str | None = None
    prompts: int = 1
    stream: bool = False
    max_tokens: int | None = None
    price: Price | None = None
    job: Job | None = None
    status: int = 0
    outcome: Outcome = Outcome.INTERRUPTED
    usage: Usage | None = None
    times: EngineTimes | None = None
    counts: Counts | None = None
    true_prefill_s: float | None = None
    charged_s: float | None = None
    seen: Seen | None = None
    prefill_source: str = "observed"
