"""Whether slices pay: each must find in the engine's cache what those before it have done, or all is done again.

An engine that has no prefix cache says so. One that has may still not hit, with some hybrid models, with connectors, or
where its cache is too small for what is in it. What the engine says was cached shows it, or else how long the slice
took. After two misses in a row a model's prompts are not cut for a while; then one is tried again.
"""

from dataclasses import dataclass
from math import sqrt

# Of what was prefilled by the slices before, so much must be found: some engines keep the last block to themselves.
MIN_FOUND = 0.9
# Misses in a row after which a model's prompts are no longer cut, and for how many seconds.
MAX_MISSES = 2
OFF_S = 600.0
# A slice that was done from scratch must be predicted to take so many times what it takes from where it began, before
# its time says anything.
MIN_CONTRAST = 2.0


@dataclass(slots=True)
class _State:
    misses: int = 0
    off_until: float | None = None


class SliceCircuitBreaker:
    """By model, as clients name them: an adapter has blocks of its own. Told only of those that the engine knows."""

    def __init__(self) -> None:
        self._models: dict[str, _State] = {}

    def allows(self, model: str, now: float) -> bool:
        state = self._models.get(model)
        return state is None or state.off_until is None or now >= state.off_until

    def off(self, now: float) -> list[str]:
        """The models whose prompts are not cut now."""
        return [model for model in self._models if not self.allows(model, now)]

    def observe(self, model: str, *, hit: bool, now: float) -> bool:
        """Told of each slice but the first, of the request behind them, and of a slice that the engine refuses, as of a
        miss; whether that switches its model off."""
        state = self._models.setdefault(model, _State())
        if hit:
            state.misses, state.off_until = 0, None
            return False
        state.misses += 1
        off = state.misses >= MAX_MISSES
        if off:
            # The next one is a trial: one miss more, and it is off again.
            state.misses, state.off_until = MAX_MISSES - 1, now + OFF_S
        return off

    def reset(self) -> None:
        """Another engine."""
        self._models.clear()


def cache_hit(done: int, cached: int, block: int) -> bool:
    """Of `done` tokens that the slices before have prefilled, as the engine says, so many were cached."""
    return cached >= MIN_FOUND * done - block


def cache_hit_by_time(seconds: float, expected: float, from_scratch: float) -> bool | None:
    """The same by what it took, and what it should take with the cache and without it; None if that does not tell."""
    if from_scratch < MIN_CONTRAST * expected:
        return None
    return seconds < sqrt(expected * from_scratch)
