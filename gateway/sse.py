"""A stream of server-sent events as it goes by: when the first token came, and what it came to.

Events pass byte for byte. They are cut at blank lines only, so that one of them can be taken out, and what is
held back is at most one incomplete event. Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from dataclasses import dataclass, field

import msgspec

# An event that has not ended by then is passed on as it is: memory stays bounded, whatever the engine sends.
MAX_EVENT = 1 << 20


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """True token counts, as the engine states them."""

    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def output_tokens(self) -> int:
        return self.completion_tokens or 0

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details and details.cached_tokens) or 0


class _Choice(msgspec.Struct):
    index: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


def read_usage(body: bytes) -> Usage | None:
    """The usage of an answer that is one JSON object, if it has one that can be read."""
    try:
        return _decode_event(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
        return tail

    def _look_into(self, whole: bytes) -> bytes:
        kept = []
        for event in _split(whole):
            data = _data(event)
            if data is None or data == b"[DONE]":
                kept.append(event)
                continue
            try:
                parsed = _decode_event(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                kept.append(event)
                continue
            if data.startswith(b'{"error"'):
                self.failed = True
            elif parsed.choices:
                self._begun.update(choice.index // self.n for choice in parsed.choices)
            if parsed.usage:
                self.usage = parsed.usage
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
    separator = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n"
    *events, rest = data.split(separator)
    return [event + separator for event in events] + ([rest] if rest else [])


def _data(event: bytes) -> bytes | None:
    """The event's data, of which OpenAI's streams write one line; None for a comment."""
    for line in event.splitlines():
        if line.startswith(b"data:"):
            return line[5:].strip()
    return None
