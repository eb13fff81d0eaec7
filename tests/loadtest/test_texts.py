"""Prompts made of nothing: how long they are, what is the same, and what the simulated engine reads in them."""

import pytest

from loadtest.texts import read_heading


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[fairlane-load a1/17 text=random answer=312] words", ("random", 312)),
        ("[fairlane-load /0 text=mixed answer=1]", ("mixed", 1)),
        (" [fairlane-load a1/17 text=random answer=312]", None),
        ("[fairlane-load a1/17 text=verse answer=312]", None),
        ("[fairlane-load a1/17 text=random answer=]", None),
        ("[fairlane-load a 1/17 text=random answer=3]", None),
        ("hello", None),
        ("", None),
    ],
)
def test_a_heading_is_read(text: str, says: tuple[str, int] | None) -> None:
    assert read_heading(text) == says
