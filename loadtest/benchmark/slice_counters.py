"""What a gateway's own metrics say of its slices."""

import re
from dataclasses import dataclass
from typing import Self

_SAMPLE = re.compile(
    r"^fairlane_(slices_total|slice_tokens_total|slice_cached_tokens_total|slicing_off)(?:\{[^}\n]*\})? (\S+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class SliceCounters:
    """count   that were sent
    tokens  that they left in the engine's cache; `cached` of them were found there again
    off     slicing has been switched off, for the cache did not have them
    """

    count: float = 0.0
    tokens: float = 0.0
    cached: float = 0.0
    off: bool = False

    @classmethod
    def read(cls, metrics: str) -> Self | None:
        """None of a gateway that does not tell."""
        sums: dict[str, float] = {}
        for name, value in _SAMPLE.findall(metrics):
            sums[name] = sums.get(name, 0.0) + float(value)
        if "slices_total" not in sums:
            return None
        return cls(
            sums["slices_total"],
            sums.get("slice_tokens_total", 0.0),
            sums.get("slice_cached_tokens_total", 0.0),
            sums.get("slicing_off", 0.0) > 0,
        )

    def since(self, before: "SliceCounters") -> "SliceCounters":
        return SliceCounters(
            self.count - before.count, self.tokens - before.tokens, self.cached - before.cached, self.off
        )

    def __add__(self, other: "SliceCounters") -> "SliceCounters":
        return SliceCounters(
            self.count + other.count, self.tokens + other.tokens, self.cached + other.cached, self.off or other.off
        )

    @property
    def cached_share(self) -> float | None:
        return self.cached / self.tokens if self.tokens > 0 else None
