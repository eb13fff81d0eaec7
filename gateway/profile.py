"""What work costs, in engine seconds: the curve that admission, fairness and forecasts stand on.

Prefill is linear in the tokens for the experts and quadratic for the attention. On a DGX Spark the quadratic
part is over half of a 25 000-token prompt, so a price by tokens alone is off by a fifth to a third.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeFloat, ValidationError


class Profile(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """c + a n + b n^2 seconds of prefill for n uncached tokens; marginal seconds for an output token."""

    c_s: NonNegativeFloat
    a_s_per_token: NonNegativeFloat
    b_s_per_token2: NonNegativeFloat
    decode_s_per_token: NonNegativeFloat

    def prefill(self, tokens: float, cached: float = 0) -> float:
        """Seconds to prefill the tokens from `cached` up to `tokens` on an idle engine."""
        linear = self.a_s_per_token * (tokens - cached)
        return self.c_s + linear + self.b_s_per_token2 * (tokens**2 - cached**2)

    def decode(self, tokens: int) -> float:
        """Seconds that `tokens` output tokens add to the steps of a busy engine."""
        return self.decode_s_per_token * tokens

    def scaled(self, factor: float) -> "Profile":
        """The same machine, `factor` times as slow."""
        return Profile(**{name: value * factor for name, value in self})


def load(name: str) -> Profile:
    """A profile by its name among those shipped, or from the TOML file of that path, which holds one table.

    Raises ValueError, with what can be done about it.
    """
    shipped = tomllib.loads((files("gateway") / "profiles.toml").read_text())
    if name in shipped:
        return _profile(name, shipped[name])
    if not name.endswith(".toml"):
        raise ValueError(f"no profile {name!r}: choose {' or '.join(shipped)}, or give the path of a .toml file")
    try:
        tables = tomllib.loads(Path(name).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the profile {name}: {error}") from error
    if len(tables) != 1 or not all(isinstance(table, dict) for table in tables.values()):
        held = ", ".join(tables) or "nothing"
        raise ValueError(f"{name} must hold one table ([some-name] and its keys); it holds {held}")
    return _profile(name, *tables.values())


def _profile(name: str, table: Any) -> Profile:
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"the profile {name} is wrong: {faults}") from error
