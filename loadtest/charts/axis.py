"""An axis of a chart."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """From where to where, and what is written at which value."""

    span: tuple[float, float]
    ticks: Mapping[int, str] | Mapping[float, str]
