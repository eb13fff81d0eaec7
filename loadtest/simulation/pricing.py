"""Who prices requests at a simulated gateway: ours, or one that knows more or less.

learned   what the gateway does: it begins with the profile that it was given, and learns
true      the machine's own curve, at tokens that are counted: nothing is left to learn
cold      as learned, but no beginning of a prompt is expected in the engine's cache
tokens    a token is a token, with neither a constant nor a square
requests  a request is a request, and its answer is nothing

The price orders who waits, and is what users are charged. The lanes are by uncached tokens, whoever prices; but `cold`
takes all of a prompt to be uncached, so it has other lanes, too. What is cached the others expect as ours does: the
engine tells nobody before it has looked.

`tokens` and `requests` are told what a prompt of TYPICAL_TOKENS costs on this machine, which is a few pages that a
search found, and never learn otherwise. Any price without a constant and a square is right for one length alone: at
this one short prompts and documents are too cheap. `tokens` charges an output token what it costs.
"""

from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from loadtest.simulation.cost_fit import cost_profile
from loadtest.spark.profile import EngineProfile

PRICINGS = ("learned", "true", "cold", "tokens", "requests")
TYPICAL_TOKENS = 4096


class Fixed(CostModel):
    """Seconds by the profile that it began with, for good. How many tokens a text has it learns."""

    @property
    def profile(self) -> Profile:
        return self.prior


def check_pricing(pricing: str) -> None:
    """Raises ValueError for an unknown name."""
    if pricing not in PRICINGS:
        *others, last = PRICINGS
        raise ValueError(f"no pricing {pricing!r}: choose {', '.join(others)} or {last}")


def cost_model(pricing: str, start: Profile, machine: EngineProfile) -> CostModel:
    """`start` is what the gateway was told of this machine."""
    check_pricing(pricing)
    kind = CostModel if pricing in ("learned", "cold") else Fixed
    model = kind(
        _profile(pricing, start, machine),
        step_tokens=machine.max_num_batched_tokens,
        threshold=machine.long_prefill_token_threshold,
    )
    model.prefixes.enabled = pricing != "cold"
    model.prefixes.block = machine.block_size
    return model


def _profile(pricing: str, start: Profile, machine: EngineProfile) -> Profile:
    if pricing in ("learned", "cold"):
        return start
    true = cost_profile(machine)
    usual = true.prefill(TYPICAL_TOKENS)
    match pricing:
        case "tokens":
            return true.model_copy(update={"c_s": 0.0, "a_s_per_token": usual / TYPICAL_TOKENS, "b_s_per_token2": 0.0})
        case "requests":
            return Profile(c_s=usual, a_s_per_token=0.0, b_s_per_token2=0.0, decode_s_per_token=0.0)
    return true
