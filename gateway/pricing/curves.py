"""The engine's two curves, learned from what it did: seconds of prefill, and seconds of a decode step.

prefill   c + a·(n - cached) + b·(n² - cached²)    for the tokens from `cached` up to n
step      t₀·start(s) + t₁ + t₂·s                  while s sequences decode and nobody prefills
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from gateway.pricing.profile import Profile
from gateway.pricing.regression import Regression, Row

# What no engine does: a clock that jumped, or a count that is wrong.
PLAUSIBLE_S = (1e-4, 3600.0)

# Of a decode step: what one more sequence in it adds while a prompt is prefilled, before anybody has seen it. The
# experts are read for the prompt in any case.
BESIDE = 0.2
# Steps for which a prompt waits that comes while others decode: the running one, and with async scheduling the next.
WAITED_STEPS = 1.5
# What one step more costs a prompt, as a part of c, which has the first step and the way to the engine and back.
FURTHER_STEP = 0.75
# Of what was seen; where more of it was waiting, what is left says little.
MOST_WAITED = 0.7

# Where the learned step curve is written down, in sequences, as the shipped profiles have it; and between which points
# an output token is priced.
SEQUENCES = (1, 2, 5, 10, 25, 50, 100, 200)
MARGINAL = (10, 16)

# Of steps that nobody has measured. In a mixture of experts the first sequences touch experts that others touch again.
_STEP_S, _STEP_POWER = 0.04, 0.4


@dataclass(frozen=True, slots=True)
class Prefill:
    """What was seen of one prefill.

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
    """What the gateway's own clock saw of a prefill, if it can tell whose work that time was.

    seconds  from when it was let go to its first token
    beside   sequences that decoded when it was let go
    others   tokens of those that were let go and prefilled within the same time, each
    """

    seconds: float
    beside: int
    others: tuple[int, ...] = ()


class PrefillCurve:
    """What decodes beside a prefill, and what is prefilled within the same time, is corrected for."""

    def __init__(self, start: Profile, step: "StepCurve", step_tokens: int = 8192, threshold: int = 0) -> None:
        """vLLM's --max-num-batched-tokens, and its --long-prefill-token-threshold, which is off at 0."""
        self._step = step
        self._step_tokens = step_tokens
        self._threshold = min(threshold or step_tokens, step_tokens)
        self.use(start)

    def use(self, start: Profile) -> None:
        """Start anew from this profile."""
        beside = BESIDE * start.decode_s_per_token
        self.regression = Regression((start.c_s, start.a_s_per_token, start.b_s_per_token2, beside))

    def saw(self, prefill: Prefill) -> bool:
        """Whether it was a sample."""
        uncached = prefill.tokens - prefill.cached
        waited = prefill.queue_s
        if waited is None:
            waited = WAITED_STEPS * self._step.at(prefill.beside) if prefill.beside else 0.0
        seconds = prefill.seconds - waited
        if prefill.cached < 0 or uncached < 1 or not PLAUSIBLE_S[0] <= seconds <= PLAUSIBLE_S[1]:
            return False
        if not 0 <= waited <= MOST_WAITED * prefill.seconds:
            return False
        # vLLM cuts a long prompt into smaller steps only if it is not by itself.
        shared = bool(prefill.beside or prefill.others)
        alone = ceil(uncached / self._step_tokens)
        steps = ceil(uncached / self._threshold) if shared else alone
        linear = uncached + sum(prefill.others)
        quadratic = prefill.tokens**2 - prefill.cached**2 + sum(tokens**2 for tokens in prefill.others)
        return self.regression.saw(
            (1.0 + FURTHER_STEP * (steps - alone), linear, quadratic, prefill.beside * steps), seconds
        )

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """c, a, b."""
        c, a, b, *_ = self.regression.theta
        return c, a, b


class StepCurve:
    """The start's own shape, scaled, and what it lacks of a constant and of a slope. Beyond the most sequences that
    were seen together it goes on in the start's shape: what a few of them add says nothing of hundreds."""

    def __init__(self, start: Profile | None = None) -> None:
        self.use(start)

    def use(self, start: Profile | None) -> None:
        """Start anew from this profile; without one, from what a mixture of experts does on a DGX Spark."""
        self._start = start
        self.regression = Regression((1.0, 0.0, 0.0))

    def at(self, sequences: float) -> float:
        seen = self.regression.most(2)
        if not 0 < seen < sequences:
            return self.regression.at(self._row(sequences))
        return self.regression.at(self._row(seen)) * self._shape(sequences) / self._shape(seen)

    def saw(self, sequences: float, seconds: float) -> None:
        if sequences >= 1 and PLAUSIBLE_S[0] <= seconds <= PLAUSIBLE_S[1]:
            self.regression.saw(self._row(sequences), seconds)

    def _row(self, sequences: float) -> Row:
        many = max(1.0, sequences)
        return self._shape(many), 1.0, many

    def _shape(self, sequences: float) -> float:
        return (self._start and self._start.step(sequences)) or _STEP_S * sequences**_STEP_POWER


def learned(start: Profile, prefill: PrefillCurve, step: StepCurve) -> Profile:
    """The start, and whatever of it the samples know better."""
    better: dict[str, object] = {}
    if prefill.regression.samples:
        better |= dict(zip(("c_s", "a_s_per_token", "b_s_per_token2"), prefill.coefficients, strict=True))
    if step.regression.samples:
        few, many = MARGINAL
        better["decode_step_s"] = {sequences: step.at(sequences) for sequences in SEQUENCES}
        better["decode_s_per_token"] = max(0.0, (step.at(many) - step.at(few)) / (many - few))
    return start.model_copy(update=better) if better else start
