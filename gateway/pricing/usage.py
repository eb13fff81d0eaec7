"""What a request came to, as the engine states it: true token counts, and its times."""

import msgspec


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """True token counts, in the words of OpenAI's chat; other APIs' are translated into these."""

    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def output_tokens(self) -> int:
        return self.completion_tokens or 0

    @property
    def cached(self) -> int | None:
        """Prompt tokens that it had in its cache; None where it does not tell (--enable-prompt-tokens-details)."""
        details = self.prompt_tokens_details
        return None if details is None else details.cached_tokens


class EngineTimes(msgspec.Struct, frozen=True):
    """vLLM's `metrics` (--enable-per-request-metrics): how long a request waited, and was answered.

    https://docs.vllm.ai/en/latest/features/per_request_metrics.html
    """

    queue_time_ms: float | None = None
    generation_time_ms: float | None = None

    @property
    def queue_s(self) -> float | None:
        return None if self.queue_time_ms is None else self.queue_time_ms / 1e3

    @property
    def generation_s(self) -> float | None:
        return None if self.generation_time_ms is None else self.generation_time_ms / 1e3
