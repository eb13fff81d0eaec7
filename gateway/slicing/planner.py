"""How a long prompt is cut into slices, and how long its engine is left to others between them.

vLLM prefills what it is given to the end. So a long prompt is given to it as growing prefixes, each a request of its
own whose beginning the prefix cache has, and between them others go. Three rules:

size    A slice takes about `max_stall` seconds, by the learned curve at its depth, for that is how long others may
        wait for it; it is not made so short that what any request costs is most of it. While nobody else is here the
        slices grow, each at most twice as long as the prompt has been alone: who comes then waits no longer than
        that, and a prompt alone has few of them.
cut     Slices end on whole blocks of the cache, and on whole engine steps where they are longer than one: what a step
        has too much costs another one. What is left is cut into equal slices, so that no small rest is left over.
pause   While others decode, they get so much of the engine's time between slices, in steps that are theirs alone, that
        a token takes them `tpot_target` seconds, or that the prompt has its `long_share` of the time. Prefill makes
        every step of theirs as long as a slice; so that is what they are slow by. The share is that beside
        REFERENCE_DECODES who decode, and each of them weighs alike: one alone delays a prompt by a tenth of that,
        twenty by twice as much. For what a pause brings grows with those who have it, and what it costs does not.
"""

from dataclasses import dataclass
from math import ceil, inf, sqrt

from gateway.pricing.cost_model import CostModel
from gateway.scheduling.ticket import Slice

# A slice may be this much longer than it should take, if that saves one.
SIZE_TOLERANCE = 1.1
# How much longer than it has been alone a prompt may take the engine at once.
ALONE_GROWTH = 2.0
# A pause is at most so many times the slice before it, whatever the target: long prompts must not starve either.
MAX_PAUSE_TO_SLICE = 9.0
# Who decode, beside whom a long prompt has its `long_share`: what a Spark's office has when documents come.
REFERENCE_DECODES = 10
# A slice takes at least so many times what any request costs, however short: a mixture's experts are read for each.
MIN_SLICE_TO_OVERHEAD = 5.0


@dataclass(frozen=True, slots=True)
class Slicing:
    """
    max_stall    seconds that others may wait for a slice
    long_share   of the engine's time that a long prompt has while REFERENCE_DECODES others decode, 0 to 1; 1 is no
                 pause
    tpot_target  seconds a token that those who decode should get; instead of the share
    step_tokens  most of one prompt in an engine step: its budget, or its long prefill threshold
    """

    max_stall: float = 0.5
    long_share: float = 1.0
    tpot_target: float | None = None
    step_tokens: int = 8192


class Slicer:
    """The rules, by what is known of the engine now."""

    def __init__(self, slicing: Slicing, cost_model: CostModel) -> None:
        self.slicing = slicing
        self._cost_model = cost_model

    @property
    def block(self) -> int:
        """Tokens of a block of the engine's cache."""
        return self._cost_model.prefixes.block

    def next_boundary(self, tokens: int, done: int, stall: float, sequences: int = 0) -> int:
        """Where the slice ends that begins at `done`, if it is to take about `stall` seconds while so many sequences
        decode. `tokens` if that is the last one."""
        profile = self._cost_model.profile
        stall = SIZE_TOLERANCE * max(stall, MIN_SLICE_TO_OVERHEAD * profile.c_s)
        left = profile.prefill(tokens, done)
        if left <= stall:
            return tokens
        # Each has the constant; the rest of the work is cut into as many equal slices as that takes.
        work = left - profile.c_s
        slices = ceil(work / (stall - profile.c_s))
        count = _depth(work / slices, done, profile.a_s_per_token, profile.b_s_per_token2) - done
        step = self._step(sequences)
        if count > step:
            count = count // step * step
        # From one block's end to another's, so that the next slice finds all of it.
        end = (done + count) // self.block * self.block
        if end <= done:
            end = done + self.block
        return tokens if tokens - end < self.block else int(end)

    def slice(self, tokens: int, done: int, end: int) -> Slice:
        """Of a prompt of so many tokens, those from `done` up to `end`."""
        profile = self._cost_model.profile
        rest = profile.prefill(tokens, end) if end < tokens else 0.0
        return Slice(end - done, profile.prefill(end, done), rest)

    def pause(self, seconds: float, sequences: int, tokens: int = 0) -> float:
        """After a slice of so many seconds and tokens, while so many sequences decode. Seconds."""
        if sequences < 1:
            return 0.0
        most = MAX_PAUSE_TO_SLICE * seconds
        target = self.slicing.tpot_target
        if target is None:
            share = self.slicing.long_share
            return min(most, seconds * (1 / share - 1) * sequences / REFERENCE_DECODES) if share > 0 else most
        step = self._cost_model.step.at(sequences)
        if target <= step:
            return most
        # In the slice's own steps they get a token each, in the pause one a decode step; together one a target.
        steps = ceil(tokens / self._step(sequences)) if tokens else 1
        return min(most, max(0.0, (seconds - steps * target) / (target / step - 1)))

    def _step(self, sequences: int) -> int:
        """Prompt tokens of an engine step in which so many sequences decode."""
        return max(self.block, self.slicing.step_tokens - sequences)


class SlicePlan:
    """One long prompt on its way.

    tokens  that it has
    found   of these, those that the engine had before the first slice, as far as is known
    done    so many are in its cache now
    end     where the slice ends that is prefilled next, or now
    slice   that slice
    """

    def __init__(self, slicer: Slicer, tokens: int, found: int = 0) -> None:
        self.tokens = tokens
        self.found = self.done = max(0, min(found, tokens - 1)) // slicer.block * slicer.block
        self._slicer = slicer
        self._alone_since = inf
        self._cut(slicer.slicing.max_stall, 0)

    @property
    def block(self) -> int:
        """Tokens of a block of the engine's cache, on which slices end."""
        return self._slicer.block

    @property
    def last(self) -> bool:
        """What is left goes in one: it is the client's own request that prefills it."""
        return self.end == self.tokens

    def begin(self, now: float) -> None:
        """The first slice is dispatched."""
        self._alone_since = now

    def advance(self, now: float, *, contended: bool, sequences: int = 0) -> Slice:
        """The slice is done; the next one.

        contended  somebody else is here, or has been since the slice was dispatched
        sequences  that decode
        """
        self.done = self.end
        if contended:
            self._alone_since = now
        alone = max(0.0, now - self._alone_since)
        self._cut(max(self._slicer.slicing.max_stall, ALONE_GROWTH * alone), sequences)
        return self.slice

    def pause(self, seconds: float, sequences: int) -> float:
        """After the slice, which took so many seconds, while so many sequences decode. Seconds."""
        return self._slicer.pause(seconds, sequences, self.end - self.done)

    def whole(self) -> Slice:
        """No more slices: the rest goes in one."""
        self.end = self.tokens
        self.slice = self._slicer.slice(self.tokens, self.done, self.tokens)
        return self.slice

    def _cut(self, stall: float, sequences: int) -> None:
        self.end = self._slicer.next_boundary(self.tokens, self.done, stall, sequences)
        self.slice = self._slicer.slice(self.tokens, self.done, self.end)


def _depth(seconds: float, done: int, a: float, b: float) -> int:
    """The n at which a·(n - done) + b·(n² - done²) comes to so many seconds. Not both of a and b are 0."""
    constant = a * done + b * done**2 + seconds
    # The root in the form that loses nothing where b is next to nothing.
    return int(2 * constant / (a + sqrt(a * a + 4 * b * constant)))
