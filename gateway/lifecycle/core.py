"""One core, two clocks: everything that decides, as the gateway and the simulator hold it."""

from dataclasses import dataclass, field
from typing import Self

from gateway.forecasting.speed import EngineSpeed
from gateway.pricing.cost_model import CostModel, Price
from gateway.scheduling.admission import Admission
from gateway.scheduling.limits import Limits
from gateway.slicing.circuit_breaker import SliceCircuitBreaker
from gateway.slicing.planner import SlicePlan, Slicer, Slicing
from policies.base import Lane, Policy

# Tokens are counted from this share of the long lane's begin, and of the longest prompt, on.
COUNTED_FROM = 0.75

# Of the cache, what prompts and answers may fill before a prompt might lose its own beginning between two slices.
MAX_CACHE_USE = 0.9

# How much of the cache an answer reserves before it is known: a quantile of the answers so far.
ANSWER_QUANTILE = 0.9


@dataclass
class Core:
    """
    slicer         cuts long prompts; None where they go whole
    max_model_len  the longest prompt and answer that the engine takes, once it has said so
    """

    cost_model: CostModel
    admission: Admission
    speed: EngineSpeed
    slicer: Slicer | None = None
    circuit_breaker: SliceCircuitBreaker = field(default_factory=SliceCircuitBreaker)
    max_model_len: int | None = None

    @classmethod
    def create(
        cls,
        cost_model: CostModel,
        policy: Policy,
        limits: Limits,
        slicing: Slicing | None = None,
        *,
        shares_steps: bool = False,
    ) -> Self:
        """`shares_steps`: the engine cuts long prompts itself (its long prefill threshold)."""
        speed = EngineSpeed(
            # The profile is asked for each time: it gets better.
            lambda tokens: cost_model.profile.decode(tokens),
            cost_model.step,
            shares_steps=shares_steps,
            prefill_cost=lambda tokens: cost_model.profile.prefill(tokens),
        )
        core = cls(cost_model, Admission(policy, limits), speed)
        core.set_slicing(slicing)
        return core

    def set_slicing(self, slicing: Slicing | None) -> None:
        """From now on; a prompt that is being sliced goes on as it began."""
        self.slicer = Slicer(slicing, self.cost_model) if slicing else None

    def lane(self, price: Price) -> Lane:
        return self.admission.limits.lane(price.uncached)

    def kv_tokens(self, price: Price, seats: int, max_tokens: int | None) -> int:
        """Tokens of cache that a request is expected to fill: its prompts, and its answers as long as most are."""
        return price.tokens + seats * self.speed.answers.expect(0, max_tokens, ANSWER_QUANTILE)

    def nearly_long(self, price: Price) -> bool:
        return price.uncached >= COUNTED_FROM * self.admission.limits.long_prompt_tokens

    def needs_count(self, price: Price) -> bool:
        """Whether something depends on its exact tokens: its lane, how long it holds one, or whether it fits at all."""
        limit = self.max_model_len
        return self.nearly_long(price) or (limit is not None and price.tokens >= COUNTED_FROM * limit)

    def may_slice(self, model: str, now: float) -> bool:
        return self.slicer is not None and self._finds(model, now)

    def slice_pays(self, model: str, now: float) -> bool:
        """Whether one more slice may be expected to help, and the cache has room for what those before it have done."""
        capacity = self.cost_model.prefixes.capacity
        room = capacity is None or self.admission.ledger.kv_in_use() <= MAX_CACHE_USE * capacity
        return room and self._finds(model, now)

    def plan(self, price: Price, tokens: int) -> SlicePlan | None:
        """How a prompt of so many tokens is cut, if it is long enough to be."""
        if self.slicer is None or self.lane(price) == "short":
            return None
        plan = SlicePlan(self.slicer, tokens, price.cached)
        return None if plan.last else plan

    def _finds(self, model: str, now: float) -> bool:
        """Whether a slice may be expected to find in the engine's cache what was done before it."""
        return self.cost_model.prefixes.enabled and self.circuit_breaker.allows(model, now)
