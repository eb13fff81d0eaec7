"""What a request is predicted to cost, and what it came to: tokens into engine seconds."""

from collections.abc import Iterable

from gateway.completion import Prompt
from gateway.estimator import Estimator
from gateway.profile import Profile
from gateway.sse import Usage
from policies.base import Job

# How often a stream's growth is told to admission, in chunks, which are about a token each.
PROGRESS_CHUNKS = 64


class CostModel:
    def __init__(self, profile: Profile, estimator: Estimator) -> None:
        self.profile = profile
        self.estimator = estimator

    def predict(self, prompts: Iterable[Prompt]) -> tuple[int, float]:
        """Prompt tokens, and the seconds to prefill them. Several prompts are prefilled one by one, so their
        costs add up; `n` answers share their prompt's prefill."""
        tokens = [self.estimator.tokens(prompt) for prompt in prompts]
        return sum(tokens), sum(map(self.profile.prefill, tokens))

    def true_cost(self, usage: Usage, prompts: int = 1) -> float:
        """The curve at true token counts: what a finished job is charged. Never wall time, which the work of
        others inflates."""
        tokens = max(usage.prompt_tokens, 1) / prompts
        cached = min(max(usage.cached_tokens, 0) / prompts, tokens)
        return prompts * self.profile.prefill(tokens, cached) + self.profile.decode(max(usage.output_tokens, 0))

    def growth(self, job: Job, chunks: int) -> tuple[float, int]:
        """What a stream has come to after so many chunks: engine seconds, and cache until the next PROGRESS_CHUNKS."""
        return job.cost + self.profile.decode(chunks), max(job.kv_tokens, job.tokens + chunks + PROGRESS_CHUNKS)

    def partial_cost(self, predicted: float, *, elapsed: float, began: bool, chunks: int) -> float:
        """What a job is charged that ended without counts: its client left, or the engine broke off.

        predicted  prefill, in seconds
        elapsed    seconds since it was let go: the most that can have been prefilled, if no token came
        began      whether one came
        chunks     of the answer that came: about a token each
        """
        return predicted + self.profile.decode(chunks) if began else min(predicted, elapsed)

    def learn(self, prompts: Iterable[Prompt], usage: Usage) -> None:
        self.estimator.learn(tuple(prompts), usage.prompt_tokens)
