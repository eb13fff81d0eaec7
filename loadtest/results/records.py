"""What was measured of one request."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from loadtest.workloads.plan import Request


class Outcome(StrEnum):
    """How a request ended. All but the first count against the server; an interrupted one against nobody."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # 429
    UNAVAILABLE = "unavailable"  # 503
    HTTP_ERROR = "http_error"  # any other status but 200
    STREAM_ERROR = "stream_error"  # an error event, or an end without an answer
    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"  # the server broke off
    UNREACHABLE = "unreachable"  # no connection
    INTERRUPTED = "interrupted"  # the run ended first


@dataclass(slots=True)
class Record:
    """Seconds from the start of the run, on the clock of the machine under test.

    scheduled      when it was due, by its plan
    sent           when it left the client: later, where the client's own cap held it, or the client lagged
    lag            by how much the client itself was late: of `sent`, from when it might have gone
    tokens         when each chunk of the answer came; at vLLM a token each
    prompt_tokens, output_tokens, cached_tokens   as the server counted them; None where it did not tell
    queue          seconds from `sent` to the begin of its prefill, where the server told: gateway and engine
    detail         of a failure: status, code or error
    """

    request: Request
    number: int = 0
    scheduled: float = -1.0
    sent: float | None = None
    lag: float = 0.0
    tokens: list[float] = field(default_factory=list)
    ended: float | None = None
    outcome: Outcome = Outcome.INTERRUPTED
    detail: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    queue: float | None = None

    def __post_init__(self) -> None:
        if self.scheduled < 0:
            self.scheduled = self.request.at

    @property
    def completed(self) -> bool:
        return self.outcome is Outcome.COMPLETED

    @property
    def failed(self) -> bool:
        return self.outcome not in (Outcome.COMPLETED, Outcome.INTERRUPTED)

    @property
    def first_token(self) -> float:
        return self.tokens[0]

    @property
    def ttft(self) -> float:
        """From arrival."""
        return self.tokens[0] - self.scheduled

    @property
    def ttft_send(self) -> float:
        return self.tokens[0] - (self.scheduled if self.sent is None else self.sent)

    @property
    def e2e(self) -> float:
        """From arrival."""
        return self.tokens[-1] - self.scheduled

    @property
    def e2e_send(self) -> float:
        return self.tokens[-1] - (self.scheduled if self.sent is None else self.sent)

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None for an answer of one."""
        tokens = self.output_tokens or len(self.tokens)
        if tokens < 2:
            return None
        return (self.tokens[-1] - self.tokens[0]) / (tokens - 1)

    @property
    def itls(self) -> list[float]:
        return [after - before for before, after in pairwise(self.tokens)]


def percentile(values: Iterable[float], q: float) -> float:
    """The q-th percentile (0 to 100) with linear interpolation, as numpy gives it; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    position = (len(ordered) - 1) * q / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    if position == below or ordered[above] == ordered[below]:  # no arithmetic with infinities
        return ordered[below]
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
