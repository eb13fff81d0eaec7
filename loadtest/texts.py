"""Prompts of a given length, out of nothing: readable filler, or words at random.

A user's message begins with a heading, which is plain text to any model and which the simulated Spark reads:

    [fairlane-load NONCE/17 text=random answer=312]

That is request 17 of the run NONCE, its text is of the kind "random", and its answer wants 312 tokens: there the
simulated model would end it. Equal names give equal text within a run, so that a prefix cache finds what is shared;
another nonce gives other text from its first words on, so that it finds nothing of an earlier run.
"""

import re
from typing import get_args

from loadtest.request import TextKind

# What the shipped profiles were measured with comes to about that, and so does English in most vocabularies.
BYTES_PER_TOKEN = 3.2

_HEADING = re.compile(r"\[fairlane-load [^\s\]]*/\d+ text=(\w+) answer=(\d+)\]")
_KINDS: tuple[TextKind, ...] = get_args(TextKind)


def read_heading(text: str) -> tuple[TextKind, int] | None:
    """Of a user's message, the kind of its text and how many tokens its answer wants; None if it has no heading."""
    if (found := _HEADING.match(text)) is None:
        return None
    kind = next((kind for kind in _KINDS if kind == found[1]), None)
    return None if kind is None else (kind, int(found[2]))
