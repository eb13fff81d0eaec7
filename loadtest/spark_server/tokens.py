"""Text as the simulated model counts it: so many bytes are a token.

Each message is cut on its own, so that no token lies across two of them. A conversation's next prompt then begins
with the very tokens of the one before and of its answer, as it does behind a chat template. A token's id is its
bytes read as a number, with a 1 in front; so ids need no vocabulary, and a prompt of ids says the text that it is
of. Other ids, of another server's vocabulary, are tokens without a text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, islice, pairwise
from math import ceil
from typing import Protocol

# An id of six bytes and the 1 in front is still a number that any JSON reader reads exactly.
MAX_BYTES_PER_TOKEN = 6

_CUT_AT_ONCE = 1 << 15

_FILLER = b"the spark reads every expert once and says the same few words to all who wait in its line and "
_FILLER_TWICE = _FILLER + _FILLER


class Tokens(Protocol):
    """A text and its cut into tokens."""

    @property
    def data(self) -> bytes: ...

    @property
    def count(self) -> int: ...

    @property
    def spans(self) -> Sequence[bytes]:
        """The tokens, one by one."""
        ...

    @property
    def ids(self) -> Sequence[int]: ...

    def ends(self, every: int, before: int = 0) -> list[int]:
        """Where each `every`-th token ends, in bytes, counting from `before` tokens in front of these."""
        ...


@dataclass(frozen=True)
class Text:
    """Messages, of which each is cut on its own."""

    messages: Sequence[bytes]
    bytes_per_token: float

    def __post_init__(self) -> None:
        # Below 1, a token of an answer might have no byte of its own to say.
        if not 1 <= self.bytes_per_token <= MAX_BYTES_PER_TOKEN:
            raise ValueError(f"bytes_per_token must be from 1 to {MAX_BYTES_PER_TOKEN}: {self.bytes_per_token}")

    @cached_property
    def data(self) -> bytes:
        return b"".join(self.messages)

    @cached_property
    def count(self) -> int:
        return sum(map(self._count, self.messages))

    @cached_property
    def spans(self) -> list[bytes]:
        found: list[bytes] = []
        for message in self.messages:
            count = self._count(message)
            slices = _slices(self.bytes_per_token, max(_CUT_AT_ONCE, 1 << count.bit_length()))
            found += map(message.__getitem__, islice(slices, count))
        return found

    @property
    def ids(self) -> list[int]:
        return list(map(token_id, self.spans))

    def ends(self, every: int, before: int = 0) -> list[int]:
        found: list[int] = []
        start = 0
        for message in self.messages:
            after = before + self._count(message)
            found += [
                start + min(len(message), int((number - before) * self.bytes_per_token))
                for number in range((before // every + 1) * every, after + 1, every)
            ]
            before = after
            start += len(message)
        return found

    def _count(self, message: bytes) -> int:
        return ceil(len(message) / self.bytes_per_token)


@dataclass(frozen=True)
class Ids:
    """Token ids, as they came."""

    ids: Sequence[int]

    @cached_property
    def data(self) -> bytes:
        return b"".join(self.spans)

    @property
    def count(self) -> int:
        return len(self.ids)

    @cached_property
    def spans(self) -> list[bytes]:
        return list(map(token_bytes, self.ids))

    def ends(self, every: int, before: int = 0) -> list[int]:
        return list(accumulate(map(len, self.spans)))[every - before % every - 1 :: every]


def prepare(bytes_per_token: float) -> None:
    """Cut once what takes longest, so that no stream has to wait for it; raises ValueError if it cannot be cut."""
    assert Text([b"x"], bytes_per_token).spans


@lru_cache
def _slices(bytes_per_token: float, count: int) -> list[slice]:
    """Where the first so many tokens of any message are in it: cut once, in a few sizes."""
    return [slice(int(number * bytes_per_token), int((number + 1) * bytes_per_token)) for number in range(count)]


@lru_cache(maxsize=1 << 16)
def token_id(span: bytes) -> int:
    return int.from_bytes(b"\x01" + span, "big")


@lru_cache(maxsize=1 << 16)
def token_bytes(token: int) -> bytes:
    """What no text has, if the id is none of ours: 0xff is not in UTF-8."""
    written = token.to_bytes((token.bit_length() + 7) // 8, "big")
    return written[1:] if written[:1] == b"\x01" else b"\xff" + written


def answer_token(number: int, bytes_per_token: float) -> bytes:
    """What every answer's token of that number says."""
    start = int(number * bytes_per_token)
    at = start % len(_FILLER)
    return _FILLER_TWICE[at : at + int((number + 1) * bytes_per_token) - start]


def answer(count: int, bytes_per_token: float) -> Text:
    """The first so many tokens of every answer."""
    size = int(count * bytes_per_token)
    return Text([(_FILLER * (size // len(_FILLER) + 1))[:size]], bytes_per_token)


def block_keys(prompt: Tokens, said: Tokens, block_size: int, salt: str = "") -> tuple[int, ...]:
    """An identity of the text up to the end of each whole block of a prompt and its answer, alike in this process."""
    ends = prompt.ends(block_size) + [len(prompt.data) + end for end in said.ends(block_size, prompt.count)]
    data = prompt.data + said.data
    key = hash(salt)
    return tuple([key := hash((key, data[start:end])) for start, end in pairwise([0, *ends])])


def decode(spans: Iterable[bytes]) -> str:
    """The text of some tokens, without those that have none; U+FFFD for a character that is cut in two."""
    return b"".join([span for span in spans if span[:1] != b"\xff"]).decode(errors="replace")
