"""All of a measurement, as --json prints it and summary.json keeps it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from loadtest.preempt.advice import Advice
from loadtest.preempt.figures import Measured, ratios
from loadtest.preempt.shape import Shape


def summary(
    engine: str,
    shape: Shape,
    unloaded: dict[str, float],
    measured: Sequence[Measured],
    advice: Advice | None,
    provenance: dict[str, str],
) -> dict[str, Any]:
    """`unloaded` is what a short prompt takes when nobody else is here: ttft_s, e2e_s."""
    direct = measured[0].figures if measured else None
    return {
        "engine": engine,
        "load": asdict(shape),
        "unloaded": unloaded,
        "variants": {
            each.variant.name: {
                "settings": each.variant.settings,
                "figures": msgspec.to_builtins(each.figures),
                "to_direct": ratios(each.figures, direct) if direct else {},
                "short_ttft_p95_to_unloaded": each.figures.short_ttft_p95_s / unloaded["ttft_s"],
            }
            for each in measured
        },
        "advice": advice and {"variant": advice.variant, "settings": advice.settings, "words": advice.words},
        "provenance": provenance,
    }
