"""When what happened to one request: the stamps that spans, log line and metrics are made of.

Seconds on one monotonic clock, set by the shell as things happen; spans are drawn from them afterwards, so no
timestamp depends on when code got to run. `None` is a phase that was never reached.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeline:
    """arrived <= asked <= counted <= queued <= dispatched <= first_token <= ended"""

    arrived: float
    queued: float | None = None
    dispatched: float | None = None
    first_token: float | None = None
    ended: float | None = None
    asked: float | None = None
    counted: float | None = None

    @property
    def queue_s(self) -> float | None:
        return _between(self.queued, _first(self.dispatched, self.ended))

    @property
    def prefill_s(self) -> float | None:
        return _between(self.dispatched, _first(self.first_token, self.ended))

    @property
    def decode_s(self) -> float | None:
        return _between(self.first_token, self.ended)

    @property
    def ttft_s(self) -> float | None:
        return _between(self.arrived, self.first_token)

    @property
    def e2e_s(self) -> float | None:
        return _between(self.arrived, self.ended)


def _first(stamp: float | None, otherwise: float | None) -> float | None:
    return otherwise if stamp is None else stamp


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
