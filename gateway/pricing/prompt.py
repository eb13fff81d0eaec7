"""A prompt as the cost model sees it: how much text of which kind, and hashes of its prefixes. Never the text itself.

A prefix ends where a message ends, and every so many bytes inside of one. Its hash covers all that comes before, so two
prompts that have a hash in common begin alike up to there. vLLM's prefix cache is keyed by blocks of tokens in the same
manner; tokens are not known here before somebody has counted them.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from string import ascii_letters, whitespace
from typing import NamedTuple

# Bytes from one prefix to the next inside of a message. The stride grows with the prompt, whenever so many of them have
# been read, so that 64 MiB have hundreds of prefixes.
STRIDE = 512
STRIDES_BEFORE_GROWTH = 128
STRIDE_GROWTH = 4

_DIGEST_BYTES = 12  # enough that no two prompts in a lifetime share a digest by chance

_WORDS = (ascii_letters + whitespace).encode()
_WIDE = bytes(range(128, 256))


class PromptSize(NamedTuple):
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

    def plus(self, other: "PromptSize") -> "PromptSize":
        return PromptSize(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "PromptSize") -> "PromptSize":
        return PromptSize(*(a - b for a, b in zip(self, other, strict=True)))


class PrefixHash(NamedTuple):
    """A prefix of a prompt: its hash, its size, and whether a message of the assistant comes next."""

    digest: bytes
    size: PromptSize
    answered: bool = False


EMPTY_SIZE = PromptSize()


@dataclass(frozen=True, slots=True)
class Prompt:
    """`prefixes` has the shortest first and the whole prompt last; it is empty where nothing is known."""

    size: PromptSize = EMPTY_SIZE
    prefixes: tuple[PrefixHash, ...] = ()


def text_size(data: bytes) -> PromptSize:
    rest = data.translate(None, _WORDS)
    marks = len(rest.translate(None, _WIDE))
    return PromptSize(len(data) - len(rest), marks, len(rest) - marks)


class PromptReader:
    """Told a prompt piece by piece, in the order in which a template renders it.

    seed  all that makes equal texts different prompts to the engine: the model, its `cache_salt`, template arguments
    """

    def __init__(self, seed: Iterable[bytes] = ()) -> None:
        self._hash = blake2b(digest_size=_DIGEST_BYTES)
        for each in seed:
            self._hash.update(len(each).to_bytes(8, "big") + each)
        self._size = PromptSize()
        self._prefixes: list[PrefixHash] = []
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
        """What is no text: it goes into the hash, and counts as so many tokens."""
        self._hash.update(data)
        self._size = self._size._replace(tokens=self._size.tokens + tokens)

    def role(self, role: str) -> None:
        """A message begins."""
        if role == "assistant" and self._prefixes:
            self._prefixes[-1] = self._prefixes[-1]._replace(answered=True)
        self._hash.update(b"\x00" + role.encode("utf-8", "surrogatepass") + b"\x00")
        self._size = self._size._replace(messages=self._size.messages + 1)

    def mark_prefix(self) -> None:
        """A prefix ends here, as a message does."""
        self._prefixes.append(PrefixHash(self._hash.copy().digest(), self._size))

    def prompt(self) -> Prompt:
        if not self._prefixes or self._prefixes[-1].size != self._size:
            self.mark_prefix()
        return Prompt(self._size, tuple(self._prefixes))

    def _pieces(self, data: bytes) -> Iterable[bytes]:
        """Cut where a prefix ends, which depends on nothing but how far it is from the beginning of the prompt."""
        at = 0
        while at < len(data):
            end = min(len(data), at + self._next - self._read)
            piece = data[at:end]
            self._hash.update(piece)
            self._read += end - at
            at = end
            yield piece
            if self._read == self._next:
                self.mark_prefix()
                if self._read >= self._stride * STRIDES_BEFORE_GROWTH:
                    self._stride *= STRIDE_GROWTH
                self._next += self._stride
