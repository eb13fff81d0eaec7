"""Judges the slices of one prompt: did each find in the engine's cache what those before it had done?

What did is learned from. What did not says that slices do not pay at this engine, and is told to the circuit breaker.
"""

from typing import NamedTuple

from gateway.lifecycle.core import Core
from gateway.lifecycle.settlement import Answer
from gateway.pricing.curves import PrefillObservation
from gateway.slicing.circuit_breaker import cache_hit, cache_hit_by_time
from gateway.slicing.planner import SlicePlan


class CacheReuse(NamedTuple):
    """Tokens that the slices before had prefilled, and those of them that the engine found in its cache."""

    done: int
    found: int


class SliceResult(NamedTuple):
    """What to do after a slice, and what was learned from it.

    pause_s  seconds to leave the engine to those who decode
    tripped  why the circuit breaker has just switched slicing off for this model; empty if it has not
    reuse    None of a first slice, and where the engine does not tell
    """

    pause_s: float = 0.0
    tripped: str = ""
    reuse: CacheReuse | None = None


class SliceReview:
    """`missed`: the last slice that was judged had to do again what was done before it."""

    def __init__(self, core: Core, model: str, plan: SlicePlan) -> None:
        self.missed = False
        self._core = core
        self._model = model
        self._plan = plan

    def judge(
        self, tokens: int, answer: Answer, observation: PrefillObservation | None, now: float, *, first: bool
    ) -> SliceResult:
        """Of a slice that ended at `tokens`."""
        start = self._plan.done
        cached = answer.usage.cached if answer.usage else None
        found = True if first else self._found(tokens, cached, observation)
        self.missed = found is False
        if found:
            known = cached if cached is not None or first else start
            self._core.cost_model.learn_slice(tokens, known, observation, answer.queue_s)
        if first:
            return SliceResult()
        reuse = None if cached is None else CacheReuse(start, min(start, cached))
        return SliceResult(tripped="" if found is None else self._observe(found, cached, now), reuse=reuse)

    def refused(self, how: str, now: float) -> SliceResult:
        """The engine answered a slice with an error."""
        return self._tell_breaker(f"the engine refuses slices ({how})", now, hit=False)

    def _found(self, tokens: int, cached: int | None, observation: PrefillObservation | None) -> bool | None:
        """Whether it found what those before it had done; None where that cannot be told."""
        model, start = self._core.cost_model, self._plan.done
        if cached is not None:
            return cache_hit(start, cached, model.prefixes.block)
        model.prefixes.expect(start)
        if observation is None or observation.others:
            return None
        profile = model.profile
        return cache_hit_by_time(observation.seconds, profile.prefill(tokens, start), profile.prefill(tokens))

    def _observe(self, hit: bool, cached: int | None, now: float) -> str:
        few = "few" if cached is None else cached
        why = (
            f"slices do not find in the engine's cache what was done before them ({few} of {self._plan.done} tokens); "
            "is --enable-prefix-caching on, and the cache large enough?"
        )
        return self._tell_breaker(why, now, hit=hit).tripped

    def _tell_breaker(self, why: str, now: float, *, hit: bool) -> SliceResult:
        tripped = self._core.circuit_breaker.observe(self._model, hit=hit, now=now)
        return SliceResult(tripped=why if tripped else "")
