"""The engine's two curves, learned from what it did: seconds of prefill, and seconds of a decode step.

prefill   c + a·(n - cached) + b·(n² - cached²)    for the tokens from `cached` up to n
step      t₀·prior(s) + t₁ + t₂·s                  while s sequences decode and nobody prefills
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from gateway.pricing.profile import Profile
from gateway.pricing.regression import Regression, Row

# Beyond these no engine is: a clock jumped, or a count is wrong.
PLAUSIBLE_S = (1e-4, 3600.0)

# Prior of what a sequence that decodes adds to a step that also prefills, as a share of what it adds to a step of
# decoding alone. The experts are read for the prompt in any case.
DECODE_SHARE_IN_PREFILL = 0.2
# Steps for which a prompt waits that comes while others decode: the running one, and with async scheduling the next.
WAITED_STEPS = 1.5
# What a further step costs a prompt, as a share of c, which has the first step and the way to the engine and back.
FURTHER_STEP_SHARE = 0.75
# Of an observed prefill, the largest share that may have been waiting; what is left of a longer wait is too noisy.
MAX_WAITED_SHARE = 0.7

# The points of the learned step curve, in sequences, as the shipped profiles have them; and the two of them whose
# slope is the price of an output token.
CURVE_SEQUENCES = (1, 2, 5, 10, 25, 50, 100, 200)
MARGINAL_BETWEEN = 10, 16

# The step curve without a profile. In a mixture of experts the first sequences read experts that others need, too.
_STEP_S, _STEP_POWER = 0.04, 0.4


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """One prefill, and what went on beside it.

    tokens, cached  of the prompt; how many of them the engine had
    seconds         from when it was let go to its first token
    queue_s         of these, in the engine's own line; None where the engine does not tell
    beside          sequences that decoded when it was let go
    others          tokens of those that were prefilled within the same time, each
    """

    tokens: int
    cached: int
    seconds: float
    queue_s: float | None
    beside: int
    others: tuple[int, ...] = ()


class PrefillObservation(NamedTuple):
    """A prefill by the gateway's own clock, if it can tell whose work that time was.

    seconds  from when it was let go to its first token
    beside   sequences that decoded when it was let go
    others   tokens of those that were let go and prefilled within the same time, each
    """

    seconds: float
    beside: int
    others: tuple[int, ...] = ()


class PrefillCurve:
    """What decodes beside a prefill, and what is prefilled within the same time, is corrected for."""

    def __init__(self, prior: Profile, step: "StepCurve", step_tokens: int = 8192, threshold: int = 0) -> None:
        self._step = step
        self.set_steps(step_tokens, threshold)
        self.reset(prior)

    def reset(self, prior: Profile) -> None:
        """Forget what was observed, and begin with this profile."""
        beside = DECODE_SHARE_IN_PREFILL * prior.decode_s_per_token
        self.regression = Regression((prior.c_s, prior.a_s_per_token, prior.b_s_per_token2, beside))

    def set_steps(self, step_tokens: int, threshold: int) -> None:
        """vLLM's --max-num-batched-tokens, and its --long-prefill-token-threshold, which is off at 0."""
        self._step_tokens = step_tokens
        self._threshold = min(threshold or step_tokens, step_tokens)

    def observe(self, prefill: PrefillSample) -> bool:
        """Whether it was a sample."""
        uncached = prefill.tokens - prefill.cached
        waited = prefill.queue_s
        if waited is None:
            waited = WAITED_STEPS * self._step.at(prefill.beside) if prefill.beside else 0.0
        seconds = prefill.seconds - waited
        if prefill.cached < 0 or uncached < 1 or not PLAUSIBLE_S[0] <= seconds <= PLAUSIBLE_S[1]:
            return False
        if not 0 <= waited <= MAX_WAITED_SHARE * prefill.seconds:
            return False
        # vLLM cuts a long prompt into smaller steps only if it is not by itself.
        shared = bool(prefill.beside or prefill.others)
        alone = ceil(uncached / self._step_tokens)
        steps = ceil(uncached / self._threshold) if shared else alone
        linear = uncached + sum(prefill.others)
        quadratic = prefill.tokens**2 - prefill.cached**2 + sum(tokens**2 for tokens in prefill.others)
        return self.regression.observe(
            (1.0 + FURTHER_STEP_SHARE * (steps - alone), linear, quadratic, prefill.beside * steps), seconds
        )

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """c, a, b."""
        c, a, b, *_ = self.regression.theta
        return c, a, b


class StepCurve:
    """The prior's own shape, scaled, and what it lacks of a constant and of a slope. Beyond the most sequences that
    were observed together it goes on in the prior's shape: what a few of them add says nothing of hundreds."""

    def __init__(self, prior: Profile | None = None) -> None:
        self.reset(prior)

    def reset(self, prior: Profile | None) -> None:
        """Forget what was observed, and begin with this profile, or with a mixture of experts on a DGX Spark."""
        self._prior = prior
        self.regression = Regression((1.0, 0.0, 0.0))

    def at(self, sequences: float) -> float:
        observed = self.regression.largest(2)
        if not 0 < observed < sequences:
            return self.regression.at(self._row(sequences))
        return self.regression.at(self._row(observed)) * self._shape(sequences) / self._shape(observed)

    def observe(self, sequences: float, seconds: float) -> None:
        if sequences >= 1 and PLAUSIBLE_S[0] <= seconds <= PLAUSIBLE_S[1]:
            self.regression.observe(self._row(sequences), seconds)

    def _row(self, sequences: float) -> Row:
        many = max(1.0, sequences)
        return self._shape(many), 1.0, many

    def _shape(self, sequences: float) -> float:
        return (self._prior and self._prior.step(sequences)) or _STEP_S * sequences**_STEP_POWER


def refined(prior: Profile, prefill: PrefillCurve, step: StepCurve) -> Profile:
    """The prior, with what the samples know better."""
    better: dict[str, object] = {}
    if prefill.regression.samples:
        better |= dict(zip(("c_s", "a_s_per_token", "b_s_per_token2"), prefill.coefficients, strict=True))
    if step.regression.samples:
        few, many = MARGINAL_BETWEEN
        better["decode_step_s"] = {sequences: step.at(sequences) for sequences in CURVE_SEQUENCES}
        better["decode_s_per_token"] = max(0.0, (step.at(many) - step.at(few)) / (many - few))
    return prior.model_copy(update=better) if better else prior
