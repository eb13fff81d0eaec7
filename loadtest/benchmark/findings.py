"""All of a measurement, as --json prints it and summary.json keeps it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from loadtest.benchmark.advice import Advice
from loadtest.benchmark.figures import Measured, ratios
from loadtest.benchmark.shape import Shape


@dataclass(frozen=True)
class Findings:
    """`unloaded` is what a short prompt takes when nobody else is here: ttft_s, e2e_s."""

    engine: str
    shape: Shape
    unloaded: dict[str, float]
    measured: Sequence[Measured]
    advice: Advice | None

    def summary(self, provenance: dict[str, str]) -> dict[str, Any]:
        direct = self.measured[0].figures if self.measured else None
        advice = self.advice
        return {
            "engine": self.engine,
            "load": asdict(self.shape),
            "unloaded": self.unloaded,
            "variants": {
                each.variant.name: {
                    "settings": each.variant.settings,
                    "figures": msgspec.to_builtins(each.figures),
                    "to_direct": ratios(each.figures, direct) if direct else {},
                    "short_ttft_p95_to_unloaded": each.figures.short_ttft_p95_s / self.unloaded["ttft_s"],
                }
                for each in self.measured
            },
            "advice": advice and {"variant": advice.variant, "settings": advice.settings, "words": advice.words},
            "provenance": provenance,
        }
