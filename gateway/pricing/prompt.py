"""A prompt as the cost model sees it: how much text of which kind, and a chain of names for its beginnings. Never
the text itself.

A chain names the beginnings of a prompt: at the end of each message, and every so many bytes inside of one. A name is
a hash of all that comes before it, so two prompts that have one in common begin alike up to there. vLLM's prefix cache
is keyed by blocks of tokens in the same manner; tokens are not known here before somebody has counted them.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from string import ascii_letters, whitespace
from typing import NamedTuple

# Bytes between two names at a prompt's begin; every FEW of them the distance grows, so that 64 MiB have hundreds.
STRIDE = 512
FEW = 128
GROWTH = 4

_NAME = 12  # bytes of a hash: two prompts in a lifetime will not share one by chance

_WORDS = (ascii_letters + whitespace).encode()
_WIDE = bytes(range(128, 256))


class Size(NamedTuple):
    """Bytes of UTF-8 text, by how many of them a token has; and what else counts.

    words     ASCII letters and spaces: prose
    marks     other ASCII, digits and punctuation: code, JSON, tables
    wide      of characters beyond ASCII
    messages  each with what the chat template puts around it
    tokens    that are known: token ids, and what stands for media
    """

    words: int = 0
    marks: int = 0
    wide: int = 0
    messages: int = 0
    tokens: int = 0

    @property
    def text_bytes(self) -> int:
        return self.words + self.marks + self.wide

    def plus(self, other: "Size") -> "Size":
        return Size(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Size") -> "Size":
        return Size(*(a - b for a, b in zip(self, other, strict=True)))


class PrefixHash(NamedTuple):
    """A beginning of a prompt: its name, its size, and whether a message of the assistant comes next."""

    name: bytes
    size: Size
    answered: bool = False


EMPTY = Size()


@dataclass(frozen=True, slots=True)
class Prompt:
    """`chain` has the shortest beginning first and the whole prompt last; it is empty where nothing is known."""

    size: Size = EMPTY
    chain: tuple[PrefixHash, ...] = ()


def text_size(data: bytes) -> Size:
    rest = data.translate(None, _WORDS)
    marks = len(rest.translate(None, _WIDE))
    return Size(len(data) - len(rest), marks, len(rest) - marks)


class PromptReader:
    """Told a prompt piece by piece, in the order in which a template renders it.

    seed  all that makes equal texts different prompts to the engine: the model, its `cache_salt`, template arguments
    """

    def __init__(self, seed: Iterable[bytes] = ()) -> None:
        self._hash = blake2b(digest_size=_NAME)
        for each in seed:
            self._hash.update(len(each).to_bytes(8, "big") + each)
        self._size = Size()
        self._chain: list[PrefixHash] = []
        self._read = 0
        self._stride = STRIDE
        self._next = STRIDE

    def text(self, data: bytes) -> None:
        for piece in self._pieces(data):
            self._size = self._size.plus(text_size(piece))

    def ids(self, ids: list[int]) -> None:
        """Raises OverflowError for one that no vocabulary has."""
        numbers = array("q", ids)
        for piece in self._pieces(numbers.tobytes()):
            self._size = self._size._replace(tokens=self._size.tokens + len(piece) // numbers.itemsize)

    def media(self, data: bytes, tokens: int) -> None:
        """What is no text: it is part of the name, and counts as so many tokens."""
        self._hash.update(data)
        self._size = self._size._replace(tokens=self._size.tokens + tokens)

    def role(self, role: str) -> None:
        """A message begins."""
        if role == "assistant" and self._chain:
            self._chain[-1] = self._chain[-1]._replace(answered=True)
        self._hash.update(b"\x00" + role.encode("utf-8", "surrogatepass") + b"\x00")
        self._size = self._size._replace(messages=self._size.messages + 1)

    def link(self) -> None:
        """What was told ends here, as a message does."""
        self._chain.append(PrefixHash(self._hash.copy().digest(), self._size))

    def prompt(self) -> Prompt:
        if not self._chain or self._chain[-1].size != self._size:
            self.link()
        return Prompt(self._size, tuple(self._chain))

    def _pieces(self, data: bytes) -> Iterable[bytes]:
        """Cut where a name is due, which depends on nothing but how far it is from the prompt's begin."""
        at = 0
        while at < len(data):
            end = min(len(data), at + self._next - self._read)
            piece = data[at:end]
            self._hash.update(piece)
            self._read += end - at
            at = end
            yield piece
            if self._read == self._next:
                self.link()
                if self._read >= self._stride * FEW:
                    self._stride *= GROWTH
                self._next += self._stride
