"""What the engine is given at once, and how much may wait."""

from dataclasses import dataclass

from policies.base import Job, Lane


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens are uncached prompt tokens, except for `kv_tokens`; seats are sequences; None is no limit.

    vLLM tells neither its step budget nor its thresholds over its API, so these are configured.
    """

    long_prompt_tokens: int = 2048
    short_lane_tokens: int = 8192
    long_lane_jobs: int = 1
    max_num_seqs: int = 256
    kv_tokens: int | None = None  # of cache, prompts and answers
    flow_in_flight: int | None = None  # a flow's jobs in the engine
    flow_queued: int | None = None  # a flow's jobs that wait
    max_queued: int | None = None  # jobs that wait
    max_queued_s: float | None = None  # engine seconds of prefill that wait

    def in_flight(self, job: Job) -> int | None:
        """How many jobs of this one's flow may be in the engine."""
        return self.flow_in_flight if job.flow_in_flight is None else job.flow_in_flight

    def queued(self, job: Job) -> int | None:
        """How many jobs of this one's flow may wait."""
        return self.flow_queued if job.flow_queued is None else job.flow_queued

    def lane(self, tokens: int) -> Lane:
        return "short" if tokens <= self.long_prompt_tokens else "long"
