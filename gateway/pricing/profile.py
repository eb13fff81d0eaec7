"""What work costs, in engine seconds: the curve that admission, fairness and forecasts stand on.

Prefill is linear in the tokens for the experts and quadratic for the attention. On a DGX Spark the quadratic
part is over half of a 25 000-token prompt, so a price by tokens alone is off by a fifth to a third.
"""

import tomllib
from bisect import bisect_right
from importlib.resources import files
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError


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
        """As a table of that name, in a file that `load` reads."""
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


def shipped() -> list[str]:
    """Their names."""
    return list(_shipped())


def load(name: str) -> Profile:
    """A profile by its name among those shipped, or from the TOML file of that path, which holds one table.

    Raises ValueError, with what can be done about it.
    """
    tables = _shipped()
    if name in tables:
        return _profile(name, tables[name])
    if not name.endswith(".toml"):
        raise ValueError(f"no profile {name!r}: choose {' or '.join(tables)}, or give the path of a .toml file")
    try:
        tables = tomllib.loads(Path(name).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the profile {name}: {error}") from error
    if len(tables) != 1 or not all(isinstance(table, dict) for table in tables.values()):
        held = ", ".join(tables) or "nothing"
        raise ValueError(f"{name} must hold one table ([some-name] and its keys); it holds {held}")
    return _profile(name, *tables.values())


def _shipped() -> dict[str, Any]:
    return tomllib.loads((files("gateway.pricing") / "profiles.toml").read_text())


def _profile(name: str, table: Any) -> Profile:
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"the profile {name} is wrong: {faults}") from error
