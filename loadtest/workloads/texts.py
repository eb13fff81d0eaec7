"""Prompts of a given length, out of nothing: readable filler, or its words in random order.

A user's message begins with a heading, which is plain text to any model and which the simulated Spark reads:

    [fairlane-load NONCE/17 text=random answer=312]

That is request 17 of the run NONCE, its text is of the kind "random", and its answer wants 312 tokens: there the
simulated model would end it. Equal names give equal text within a run, so that a prefix cache finds what is shared;
another nonce gives other text from its first words on, so that it finds nothing of an earlier run.
"""

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import get_args

from loadtest.workloads.plan import Request, TextKind

# What the simulated Spark counts, and about what a server has that tells nobody.
BYTES_PER_TOKEN = 3.2

_HEADING = re.compile(r"\[fairlane-load [^\s\]]*/\d+ text=(\w+) answer=(\d+)\]")
_KINDS: tuple[TextKind, ...] = get_args(TextKind)

_WHO = (
    "a clerk|the night watchman|her neighbour|an old sailor|the second engineer|my landlord|nobody|the chemist|"
    "two brothers|the editor|a tall stranger|our cook|the postmaster|his sister|the whole village|a careful reader"
)
_DID = (
    "carried|forgot|described|weighed|sold|found|opened|counted|repaired|hid|praised|borrowed|copied|measured|lost|"
    "answered for|wrote about|looked after"
)
_WHAT = (
    "the ledger|a broken lamp|three letters|the map of the harbour|an iron key|the morning paper|a bag of seed|"
    "the last page|some copper wire|a photograph|the garden wall|his winter coat|an empty crate|the kitchen clock|"
    "a list of names|the longest bridge"
)
_WHERE = (
    "before lunch|in the rain|near the station|without a word|for the third time|under the stairs|on Tuesday|"
    "at the far end of the street|as agreed|by candlelight|after the harvest|behind the mill|with great care|"
    "in the summer of that year"
)

_POOL = 1 << 18  # bytes, of which texts are cut: where a cut begins is drawn, so that two are hardly ever alike


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one run.

    bytes_per_token  of this filler, at the server's tokenizer
    overhead         tokens of a user's message beyond its bytes: the chat template's, and what its heading takes more
    nonce            tells this run's texts from any other's; no space and no "]" in it
    """

    bytes_per_token: float = BYTES_PER_TOKEN
    overhead: float = 0.0
    nonce: str = ""

    def __post_init__(self) -> None:
        if re.search(r"[\s\]]", self.nonce):
            raise ValueError(f"a nonce has no space and no bracket in it: {self.nonce!r}")

    def prompt(self, number: int, request: Request) -> str:
        """The user's message of a request. It is no shorter than its heading."""
        size = self._size(request.prompt_tokens - self.overhead)
        return self.message(number, request.text, request.output_tokens, size)

    def message(self, number: int, kind: TextKind, answer_tokens: int, size: int) -> str:
        """A user's message of so many bytes."""
        heading = f"[fairlane-load {self.nonce}/{number} text={kind} answer={answer_tokens}] "
        return heading + self._cut(f"prompt {number}", kind == "random", size - len(heading))

    def system(self, name: str, tokens: int) -> str:
        """Instructions shared by all who name them."""
        opening, size = f"{self.nonce} {name}: ".lstrip(), self._size(tokens)
        return (opening + self._cut(f"system {name}", False, size - len(opening)))[:size]

    def _size(self, tokens: float) -> int:
        return max(0, int(tokens * self.bytes_per_token))  # down, for who counts in bytes counts a begun token whole

    def _cut(self, name: str, shuffled: bool, size: int) -> str:
        """A stretch of the pool that begins with a word; round its end to its begin, where it is longer."""
        if size <= 0:
            return ""
        pool = _pool(shuffled)
        begin = pool.index(" ", Random(f"{self.nonce} {name}").randrange(_POOL // 2)) + 1
        end = begin + size
        return pool[begin:end] if end <= len(pool) else (pool[begin:] + pool * (size // len(pool) + 1))[:size]


@cache
def _pool(shuffled: bool) -> str:
    random = Random(1)
    phrases = [each.split("|") for each in (_WHO, _DID, _WHAT, _WHERE)]
    sentences: list[str] = []
    size = 0
    while size < _POOL:
        sentence = " ".join(map(random.choice, phrases))
        sentences.append(sentence[0].upper() + sentence[1:] + ". ")
        size += len(sentences[-1])
    if not shuffled:
        return "".join(sentences)
    words = "".join(sentences).split()
    random.shuffle(words)
    return " ".join(words) + " "


def read_heading(text: str) -> tuple[TextKind, int] | None:
    """Of a user's message, the kind of its text and how many tokens its answer wants; None if it has no heading."""
    if (found := _HEADING.match(text)) is None:
        return None
    kind = next((kind for kind in _KINDS if kind == found[1]), None)
    return None if kind is None else (kind, int(found[2]))
