"""Formatting of numbers, units, ratios and intervals."""

from math import inf, nan

import pytest

from loadtest.charts.units import number, shown, span, spoken, times
from loadtest.results.figures import Unit


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 3, "0"),
        (1.2345, 3, "1.23"),
        (1.2345, 2, "1.2"),
        (9.96, 2, "10"),
        (0.996, 2, "1.0"),
        (99.6, 2, "100"),
        (123.4, 3, "123"),
        (1234.5, 3, "1,230"),
        (0.01234, 3, "0.012"),
        (0.0004, 3, "<0.001"),
        (-2.5, 2, "-2.5"),
    ],
)
def test_numbers_have_their_significant_digits(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.3, "s", "1.30 s"),
        (599.0, "s", "599 s"),
        (600.0, "s", "10.0 min"),
        (7200.0, "s", "2.00 h"),
        (150.4, "ms", "150 ms"),
        (0.5, "/s", "0.500 /s"),
        (0.035, "%", "3.50 %"),
        (0.9, "", "0.900"),
        (inf, "s", "never"),
        (None, "s", "–"),
        (nan, "s", "–"),
    ],
)
def test_figures_have_their_unit(value: float | None, unit: Unit, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.26, "1.3 s"), (24.4, "24 s"), (119.0, "120 s"), (150.0, "2.5 minutes"), (7200.0, "2.0 hours")],
)
def test_seconds_are_rounded_in_words(value: float, text: str) -> None:
    assert spoken(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.0, "1.00×"), (0.999, "1.00×"), (0.0871, "0.087×"), (9.994, "9.99×"), (23.27, "23.3×"), (inf, "∞"), (None, "–")],
)
def test_ratios_are_written_as_factors(ratio: float | None, text: str) -> None:
    assert times(ratio) == text


def test_an_interval_of_equal_bounds_is_one_value() -> None:
    assert span((0.5, inf)) == "0.50–∞"
    assert span((1.0, 1.0)) == "1.00"
