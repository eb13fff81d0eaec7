"""When a sequence got on in the simulated engine."""

from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Timing:
    """Seconds of one clock, 0 for what has not happened yet. They are those of the engine's timetable: what a
    client sees comes later, by what it takes to be delivered.

    tokens  that came so far, the last of them at `last`
    """

    queued: float = 0.0
    scheduled: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    @property
    def queue_s(self) -> float:
        return self.scheduled - self.queued

    @property
    def prefill_s(self) -> float:
        return self.first - self.scheduled

    @property
    def decode_s(self) -> float:
        return self.last - self.first

    def milliseconds(self) -> dict[str, float | None]:
        """As vLLM tells them with an answer. Its "time to first token" counts from when a sequence is scheduled."""
        inference_s = self.last - self.scheduled
        return {
            "time_to_first_token_ms": 1e3 * self.prefill_s,
            "generation_time_ms": 1e3 * self.decode_s,
            "queue_time_ms": 1e3 * self.queue_s,
            "mean_itl_ms": 1e3 * self.decode_s / (self.tokens - 1) if self.tokens > 1 else None,
            "tokens_per_second": self.tokens / inference_s if inference_s > 0 else None,
        }
