"""A way to put the gateway before an engine, by a name that says its settings.

A name is made of words with a "+" between them: `gated`; `sliced`, with how long a slice may hold others up; `paced`,
with the share of the engine that long prompts have while others decode; `tpot`, with the target in its place. So
`sliced-0.25+paced-0.5` is slicing with max_stall = 0.25 and long_share = 0.5.
"""

import json
import re
from dataclasses import dataclass, field

DIRECT, GATED, SLICED = "direct", "gated", "sliced"
NAMES = (GATED, SLICED, "sliced-0.25", "sliced-1", "paced-0.5", "paced-0.3", "sliced-0.25+paced-0.5")

_KEYS = {SLICED: "max_stall", "paced": "long_share", "tpot": "tpot_target"}
_WORD = re.compile(r"(sliced|paced|tpot)(?:-(\d+(?:\.\d+)?))?")

Settings = dict[str, bool | float]


@dataclass(frozen=True)
class Variant:
    """settings  of the gateway; without a gateway there are none"""

    name: str
    settings: Settings = field(default_factory=dict)

    @property
    def direct(self) -> bool:
        return self.name == DIRECT

    @property
    def slices(self) -> bool:
        return self.settings.get("slicing") is True

    @property
    def assignments(self) -> list[str]:
        """As --set has them."""
        return [f"{key}={toml(value)}" for key, value in self.settings.items()]


def toml(value: object) -> str:
    """What is no table is written there as in JSON."""
    return json.dumps(value)


def variant(name: str) -> Variant:
    """Raises ValueError."""
    if name == DIRECT:
        return Variant(DIRECT)
    if name == GATED:
        return Variant(GATED, {"slicing": False})
    settings: Settings = {"slicing": True}
    for word in name.split("+"):
        found = _WORD.fullmatch(word)
        if found is None or (found[2] is None and found[1] != SLICED):
            raise ValueError(
                f"no variant {name!r}: there are {DIRECT}, {GATED}, {SLICED}, sliced-SECONDS, paced-SHARE and "
                "tpot-SECONDS, and with a + several of them, as in sliced-0.25+paced-0.5"
            )
        if found[2]:
            settings[_KEYS[found[1]]] = float(found[2])
    return Variant(name, settings)


def variants(only: list[str] | None) -> list[Variant]:
    """Those that are named, with commas or one by one, else the usual ones; direct is always the first, for all figures
    are told as ratios to it. Raises ValueError."""
    named = [name.strip() for each in only or [] for name in each.split(",") if name.strip()]
    return [variant(name) for name in dict.fromkeys((DIRECT, *(named or NAMES)))]
