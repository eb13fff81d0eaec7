"""One exchange with a client, as telemetry sees it: numbers and names, never a word of prompt or answer."""

from dataclasses import dataclass

from gateway.sse import Usage
from gateway.timeline import Timeline
from policies.base import Job


@dataclass(slots=True)
class Exchange:
    """Filled in as the request goes; read once, at its end.

    outcome  `completed`, `engine_error` (the engine's own error was passed on), a GatewayError's code, or
             `interrupted`, as long as none of these is known
    prefill_source  where the first token's time is from: `observed` in the stream, `predicted`, or `answer`,
             which came sooner than predicted
    """

    id: str
    route: str
    timeline: Timeline
    model: str | None = None
    prompts: int = 1
    stream: bool = False
    max_tokens: int | None = None
    job: Job | None = None
    status: int = 0
    outcome: str = "interrupted"
    usage: Usage | None = None
    prefill_source: str = "observed"
