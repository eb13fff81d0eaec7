"""What a request is predicted to cost, and what it came to: tokens into engine seconds. It learns from both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from gateway.pricing.curves import PrefillCurve, PrefillObservation, PrefillSample, StepCurve, refined
from gateway.pricing.estimators import Accuracy
from gateway.pricing.prefix_index import Match, PrefixIndex
from gateway.pricing.profile import Profile
from gateway.pricing.prompt import Prompt, PromptSize
from gateway.pricing.token_estimator import TokenEstimator
from gateway.pricing.usage import Usage

# Admission is told of a stream's growth every so many chunks, which are about a token each.
PROGRESS_CHUNKS = 64

# No model gives longer answers: such a count is broken.
MAX_OUTPUT_TOKENS = 1 << 18


# What is predicted of a request and compared with what came: tokens, those not cached, and seconds of prefill.
Predicted = Literal["tokens", "uncached", "prefill"]
PREDICTED: tuple[Predicted, ...] = get_args(Predicted)


class Counts(NamedTuple):
    """What a request came to, in tokens: of its prompts, of these found in the engine's cache, and of its answers."""

    prompt: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class Price:
    """What a request is predicted to be, all its prompts together.

    tokens   of its prompts
    cached   of them, those that the engine is expected to have
    seconds  of prefill
    matches  of each prompt, its tokens and its known prefix
    counted  the tokens were counted, not estimated
    """

    tokens: int
    cached: int
    seconds: float
    matches: tuple[tuple[int, Match], ...] = ()
    counted: bool = False

    @property
    def uncached(self) -> int:
        """What is left to prefill: at least one token."""
        return max(1, self.tokens - self.cached)


class CostModel:
    def __init__(
        self, prior: Profile, estimator: TokenEstimator | None = None, *, step_tokens: int = 8192, threshold: int = 0
    ) -> None:
        """`prior` is what is believed before there are samples. `step_tokens` and `threshold` are vLLM's
        --max-num-batched-tokens and --long-prefill-token-threshold."""
        self.estimator = estimator or TokenEstimator()
        self.prefixes = PrefixIndex()
        self.accuracy: dict[Predicted, Accuracy] = {what: Accuracy() for what in PREDICTED}
        self.prior = self._profile = prior
        self.step = StepCurve(prior)
        self.prefill = PrefillCurve(prior, self.step, step_tokens, threshold)
        self._observations = 0, 0  # that `_profile` takes into account

    def reconfigure(self, profile: Profile, step_tokens: int, threshold: int) -> None:
        """Another profile is a new prior: what was learned of seconds is forgotten. Steps are of these sizes from now
        on; what was learned of those before is kept."""
        self.prefill.set_steps(step_tokens, threshold)
        if profile != self.prior:
            self.prior = profile
            self.reset_curves()

    def reset_curves(self) -> None:
        """Forget what was learned of seconds."""
        self._profile = self.prior
        self.step.reset(self.prior)
        self.prefill.reset(self.prior)
        self._observations = 0, 0

    def reset(self) -> None:
        """Another engine: forget all that was learned of the last one."""
        self.estimator.reset()
        self.prefixes.reset()
        self.reset_curves()

    @property
    def profile(self) -> Profile:
        """As it is known by now."""
        observations = self.prefill.regression.observations, self.step.regression.observations
        if observations != self._observations:
            self._profile, self._observations = refined(self.prior, self.prefill, self.step), observations
        return self._profile

    def price(self, prompts: Sequence[Prompt], counted: int | None = None) -> Price:
        """Several prompts are prefilled one by one, so their costs add up; `n` answers share their prompt's prefill.

        counted  tokens of all of them, where somebody has counted
        """
        matches = list(map(self.prefixes.match, prompts))
        guesses = [self._tokens(prompt, match) for prompt, match in zip(prompts, matches, strict=True)]
        scale = 1.0 if counted is None else counted / max(1.0, sum(guesses))
        tokens = [max(1, round(scale * guess)) for guess in guesses]
        cached = [max(0, min(match.cached, each - 1)) for match, each in zip(matches, tokens, strict=True)]
        seconds = sum(map(self.profile.prefill, tokens, cached))
        return Price(sum(tokens), sum(cached), seconds, tuple(zip(tokens, matches, strict=True)), counted is not None)

    def insert_prefixes(self, prompts: Sequence[Prompt], price: Price) -> None:
        """The prompts are prefilled: the engine has them in its cache by now."""
        for prompt, (tokens, match) in zip(prompts, price.matches, strict=True):
            self.prefixes.insert(prompt, tokens, match)

    def counts(self, prompts: Sequence[Prompt], price: Price, usage: Usage) -> Counts:
        """As the engine states them, where that can be true; as predicted, where it cannot, or is not stated."""
        tokens = usage.prompt_tokens if self._plausible(prompts, usage.prompt_tokens) else price.tokens
        cached = usage.cached if _states_cached(usage, tokens) else min(price.cached, tokens)
        return Counts(tokens, cached or 0, min(max(0, usage.output_tokens), MAX_OUTPUT_TOKENS))

    def true_prefill(self, counts: Counts, prompts: int = 1) -> float:
        """The curve at true token counts, in seconds."""
        return prompts * self.profile.prefill(counts.prompt / prompts, counts.cached / prompts)

    def true_cost(self, counts: Counts, prompts: int = 1) -> float:
        """What a finished job is charged, its answer included. Never wall time, which the work of others inflates."""
        return self.true_prefill(counts, prompts) + self.profile.decode(counts.output)

    def growth(self, price: Price, chunks: int) -> tuple[float, int]:
        """What a stream has come to after so many chunks: engine seconds, and cache until the next PROGRESS_CHUNKS."""
        return price.seconds + self.profile.decode(chunks), price.tokens + chunks + PROGRESS_CHUNKS

    def partial_cost(self, predicted: float, *, elapsed: float, began: bool, chunks: int) -> float:
        """What a job is charged that ended without counts: its client left, or the engine broke off.

        predicted  prefill, in seconds
        elapsed    seconds since it was dispatched: the most that can have been prefilled, if no token came
        began      whether one came
        chunks     of the answer that came: about a token each
        """
        return predicted + self.profile.decode(chunks) if began else min(predicted, elapsed)

    def learn(
        self,
        prompts: Sequence[Prompt],
        price: Price,
        usage: Usage,
        observed: PrefillObservation | None = None,
        queue_s: float | None = None,
    ) -> bool:
        """From an answer that came to its end; whether the curve has learned from it, too.

        observed  its prefill, if no other prefill shared it
        queue_s   of it, in the engine's own queue; None where the engine does not tell
        """
        tokens = usage.prompt_tokens
        if not self._plausible(prompts, tokens):
            return False
        self.accuracy["tokens"].observe(price.tokens, tokens)
        self.estimator.learn(_size(prompts), tokens)
        if len(prompts) != 1:
            return False
        cached = usage.cached if _states_cached(usage, tokens) else None
        if cached is not None:
            self.accuracy["uncached"].observe(price.uncached, max(1, tokens - cached))
        counts = self.counts(prompts, price, usage)
        self.prefixes.settle(prompts[0], price.matches[0][1], tokens, counts.output, cached)
        if observed is None or (cached is None and price.cached):
            return False
        if not self.learn_slice(tokens, cached or 0, observed, queue_s):
            return False
        if not observed.beside and not observed.others:
            self.accuracy["prefill"].observe(price.seconds, observed.seconds - (queue_s or 0.0))
        return True

    def learn_slice(
        self, tokens: int, cached: int | None, observed: PrefillObservation | None, queue_s: float | None
    ) -> bool:
        """From one prefill of a prompt in slices, the last one included; whether the curve has learned from it.

        tokens    up to the slice's end
        cached    of them, those that the engine had: above all the slices before
        observed  if no other prefill shared its time
        queue_s   of that, in the engine's own queue; None where the engine does not tell
        """
        if observed is None or cached is None:
            return False
        return self.prefill.observe(
            PrefillSample(tokens, cached, observed.seconds, queue_s, observed.beside, observed.others)
        )

    def learn_tokens(self, prompts: Sequence[Prompt], tokens: int) -> None:
        """From a count that somebody made before the engine did."""
        if self._plausible(prompts, tokens):
            self.estimator.learn(_size(prompts), tokens)

    def _tokens(self, prompt: Prompt, match: Match) -> float:
        """What is known has been counted; only the rest is guessed."""
        return match.tokens + self.estimator.tokens(prompt.size.minus(match.size))

    def _plausible(self, prompts: Sequence[Prompt], tokens: int) -> bool:
        return self.estimator.plausible(_size(prompts), tokens)


def _size(prompts: Sequence[Prompt]) -> PromptSize:
    total = prompts[0].size
    for prompt in prompts[1:]:
        total = total.plus(prompt.size)
    return total


def _states_cached(usage: Usage, tokens: int) -> bool:
    return usage.cached is not None and 0 <= usage.cached <= tokens
