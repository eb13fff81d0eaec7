"""A stream of server-sent events as it goes by: when the first token came, and what it came to.

Events pass byte for byte. They are cut at blank lines only, so that one of them can be taken out, and what is
held back is at most one incomplete event. Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from dataclasses import dataclass, field

import msgspec

# An event that has not ended by then is passed on as it is: memory stays bounded, whatever the engine sends.
MAX_EVENT = 1 << 20


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """True token counts, as the engine states them."""

    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def output_tokens(self) -> int:
        return self.completion_tokens or 0

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details and details.cached_tokens) or 0


class _Choice(msgspec.Struct):
    index: int | None = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_usage = msgspec.json.Decoder(Usage | None).decode
_BLANK_LINE = re.compile(rb"(\r\n\r\n|\n\n)")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_usage(body: bytes) -> Usage | None:
    """The usage of an answer that is one JSON object, if it has one that can be read."""
    try:
        return _usage(_decode_event(body))
    except _UNREADABLE:
        return None


def _usage(event: _Event) -> Usage | None:
    try:
        return _decode_usage(event.usage) if event.usage else None
    except _UNREADABLE:
        return None


@dataclass(slots=True)
class EventStream:
    """Told each chunk that the engine sends; answers what the client is to get.

    prompts     how many prompts the request has; the first token has come when each has had one
    n           answers to each: choice i belongs to prompt i // n
    drop_usage  take out the chunk that carries only usage: the gateway asked for it, the client did not
    """

    prompts: int = 1
    n: int = 1
    drop_usage: bool = False
    usage: Usage | None = field(default=None, init=False)
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
            try:
                parsed = _decode_event(data)
            except _UNREADABLE:
                kept.append(event)
                continue
            if parsed.error:
                self.failed = True
            elif parsed.choices:
                self._begun.update((choice.index or 0) // self.n for choice in parsed.choices)
            if usage := _usage(parsed):
                self.usage = usage
                if self.drop_usage and not parsed.choices:
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
