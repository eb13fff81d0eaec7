"""What work costs, in engine seconds: the curve that admission, fairness and forecasts stand on.

Prefill is linear in the tokens for the experts and quadratic for the attention. On a DGX Spark the quadratic
part is over half of a 25 000-token prompt, so a price by tokens alone is off by a fifth to a third.
"""

from bisect import bisect_right
from itertools import pairwise
from math import inf

from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt


class Profile(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """c + a n + b n^2 seconds of prefill for n uncached tokens; marginal seconds for an output token."""

    c_s: NonNegativeFloat
    a_s_per_token: NonNegativeFloat
    b_s_per_token2: NonNegativeFloat
    decode_s_per_token: NonNegativeFloat
    decode_step_s: dict[PositiveInt, PositiveFloat] = {}

    def prefill(self, tokens: float, cached: float = 0) -> float:
        """Seconds to prefill the tokens from `cached` up to `tokens` on an idle engine."""
        linear = self.a_s_per_token * (tokens - cached)
        return self.c_s + linear + self.b_s_per_token2 * (tokens**2 - cached**2)

    def decode(self, tokens: int) -> float:
        """Seconds that `tokens` output tokens add to the steps of a busy engine."""
        return self.decode_s_per_token * tokens

    def step(self, sequences: float) -> float | None:
        """Seconds of a step in which so many sequences decode and nothing else; None if none were measured.

        Linear between the points that were measured, and beyond the last two of them.
        """
        points = sorted(self.decode_step_s.items())
        if len(points) < 2:
            return points[0][1] if points else None
        at = min(max(1, bisect_right(points, (sequences, inf))), len(points) - 1)
        (below, fast), (above, slow) = points[at - 1], points[at]
        return max(min(fast, slow), fast + (slow - fast) * (sequences - below) / (above - below))

    def sequences(self, tpot: float) -> int:
        """How many may decode together so that a step takes at most `tpot` seconds; at least one.

        Linear between the points that were measured. ValueError if there are none.
        """
        if not self.decode_step_s:
            raise ValueError("the profile has no decode_step_s, which tpot_target needs")
        points = sorted(self.decode_step_s.items())
        fits = 1
        for (below, fast), (above, slow) in pairwise(points):
            if tpot >= slow:
                fits = above
            elif tpot >= fast:
                fits = below + int((tpot - fast) / (slow - fast) * (above - below))
        return fits

    def toml(self, name: str) -> str:
        """A TOML table of that name, as `gateway.storage.profile_file` reads it."""
        lines = [f"{key} = {value}" for key, value in self if key != "decode_step_s"]
        steps = ", ".join(f"{sequences} = {seconds}" for sequences, seconds in self.decode_step_s.items())
        return "\n".join([f"[{name}]", *lines, f"decode_step_s = {{ {steps} }}", ""])

    def scaled(self, factor: float) -> "Profile":
        """The same machine, `factor` times as slow."""
        return Profile(
            c_s=self.c_s * factor,
            a_s_per_token=self.a_s_per_token * factor,
            b_s_per_token2=self.b_s_per_token2 * factor,
            decode_s_per_token=self.decode_s_per_token * factor,
            decode_step_s={sequences: seconds * factor for sequences, seconds in self.decode_step_s.items()},
        )
