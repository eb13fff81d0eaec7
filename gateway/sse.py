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
    def cached(self) -> int | None:
        """Prompt tokens that it had in its cache; None where it does not tell (--enable-prompt-tokens-details)."""
        details = self.prompt_tokens_details
        return None if details is None else details.cached_tokens


class EngineTimes(msgspec.Struct, frozen=True):
    """vLLM's `metrics` (--enable-per-request-metrics): how long a request waited, and was answered.

    https://docs.vllm.ai/en/latest/features/per_request_metrics.html
    """

    queue_time_ms: float | None = None
    generation_time_ms: float | None = None

    @property
    def queue_s(self) -> float | None:
        return None if self.queue_time_ms is None else self.queue_time_ms / 1e3

    @property
    def generation_s(self) -> float | None:
        return None if self.generation_time_ms is None else self.generation_time_ms / 1e3


class _Choice(msgspec.Struct):
    index: int | None = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    metrics: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_usage = msgspec.json.Decoder(Usage | None).decode
_decode_times = msgspec.json.Decoder(EngineTimes | None).decode
_BLANK_LINE = re.compile(rb"(\r\n\r\n|\n\n)")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_account(body: bytes) -> tuple[Usage | None, EngineTimes | None]:
    """Usage and times of an answer that is one JSON object, if it has any that can be read."""
    try:
        event = _decode_event(body)
    except _UNREADABLE:
        return None, None
    return _usage(event), _times(event)


def _usage(event: _Event) -> Usage | None:
    try:
        return _decode_usage(event.usage) if event.usage else None
    except _UNREADABLE:
        return None


def _times(event: _Event) -> EngineTimes | None:
    try:
        return _decode_times(event.metrics) if event.metrics else None
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
                self.times = _times(parsed) or self.times
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
