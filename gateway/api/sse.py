"""A stream of server-sent events as it goes by: when the first token came, and what it came to.

Events pass byte for byte. They are cut at blank lines only, so that one of them can be taken out, and what is
held back is at most one incomplete event. What an event says, its API knows.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.api.base import AnswerEvent
from gateway.pricing.usage import EngineTimes, Usage

# An event that has not ended by then is passed on as it is: memory stays bounded, whatever the engine sends.
MAX_EVENT = 1 << 20

_BLANK_LINE = re.compile(rb"(\r\n\r\n|\n\n)")


@dataclass(slots=True)
class EventStream:
    """Told each chunk that the engine sends; answers what the client is to get.

    read        the data of an event
    prompts     how many prompts the request has; the first token has come when each has had one
    n           answers to each: choice i belongs to prompt i // n
    drop_usage  take out the chunk that carries only usage: the gateway asked for it, the client did not
    """

    read: Callable[[bytes], AnswerEvent]
    prompts: int = 1
    n: int = 1
    drop_usage: bool = False
    usage: Usage | None = field(default=None, init=False)
    times: EngineTimes | None = field(default=None, init=False)
    failed: bool = field(default=False, init=False)
    chunks: int = field(default=0, init=False)
    _begun: set[int] = field(default_factory=set, init=False)
    _tail: bytes = field(default=b"", init=False)

    @property
    def first_token(self) -> bool:
        return len(self._begun) >= self.prompts

    def feed(self, chunk: bytes) -> bytes:
        data = self._tail + chunk if self._tail else chunk
        end = _end_of_last_event(data)
        if end == 0 and len(data) > MAX_EVENT:
            end = len(data)
        self._tail = data[end:]
        whole = data if end == len(data) else data[:end]
        self.chunks += 1
        # One search a chunk; only the first chunks and the one with usage are looked into.
        if b'"usage"' in whole or b'"error"' in whole or not self.first_token:
            return self._look_into(whole)
        return whole

    def end(self) -> bytes:
        """What was held back, when the engine has closed the stream."""
        tail, self._tail = self._tail, b""
        return self._look_into(tail)

    def _look_into(self, whole: bytes) -> bytes:
        kept = []
        for event in _split(whole):
            data = _data(event)
            if data is None or data == b"[DONE]":
                kept.append(event)
                continue
            said = self.read(data)
            self.failed = self.failed or said.failed
            self._begun.update(choice // self.n for choice in said.begun)
            if said.usage:
                self.usage = said.usage
                self.times = said.times or self.times
                if self.drop_usage and said.usage_only:
                    continue
            kept.append(event)
        return b"".join(kept)


def _end_of_last_event(data: bytes) -> int:
    if data.endswith(b"\n\n"):
        return len(data)
    lf, crlf = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


def _split(data: bytes) -> list[bytes]:
    """The events, each with its blank line; the last one may lack it."""
    pieces = _BLANK_LINE.split(data)  # event, blank line, event, blank line, ..., rest
    return [b"".join(pieces[i : i + 2]) for i in range(0, len(pieces), 2)]


def _data(event: bytes) -> bytes | None:
    """The event's data, of which OpenAI's streams write one line; None for a comment."""
    for line in event.splitlines():
        if line.startswith(b"data:"):
            return line[5:].strip()
    return None
