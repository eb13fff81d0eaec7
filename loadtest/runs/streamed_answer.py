"""What a server answers to one request, as it comes in, written into the request's record.

A token is a chunk that has something to say. A first chunk that only opens the answer (its role, no content) is the
first token, and the chunk after it is the same one: vLLM sends the two together, and `vllm bench serve` takes its
time to first token from there. Other servers are read too, as far as it is plain what they mean.

Every event is parsed: into types, that takes a microsecond more than to search it for bytes.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtest.results.records import Outcome, Record

_BY_STATUS = {429: Outcome.REJECTED, 503: Outcome.UNAVAILABLE}
_MAX_DETAIL = 120

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Said(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: Any = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: Any = None
    object: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    metrics: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_USAGE = msgspec.json.Decoder(_Usage | None)


@dataclass(slots=True)
class StreamedAnswer:
    """Told the head, then each piece of the body with the time, then the end.

    speed      of the server's clock
    keep_text  the answer will be part of a later prompt
    """

    record: Record
    speed: float = 1.0
    keep_text: bool = False
    status: int = 0
    _streams: bool = False
    _tail: bytes = b""
    _text: list[str] = field(default_factory=list)
    _opening: bool = False  # it has been opened, and nothing said yet
    _events: int = 0
    _finished: bool = False
    _error: str | None = None

    @property
    def text(self) -> str:
        return "".join(self._text)

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Header names are lower case."""
        self.status = status
        self._streams = status == 200 and not headers.get(b"content-type", b"").startswith(b"application/json")
        self._waited(headers.get(b"x-fairlane-queue-ms"))

    def feed(self, piece: bytes, now: float) -> None:
        data = self._tail + piece
        if not self._streams:
            self._tail = data
            return
        *lines, self._tail = data.split(b"\n")
        for line in lines:
            self._line(line, now)

    def end(self, now: float, *, whole: bool) -> None:
        """The connection is over; whether the body was whole. The record gets its outcome."""
        record, body = self.record, self._tail
        if self._streams:
            self._line(body, now)
            record.outcome, record.detail = self._stream_outcome(whole)
        elif self.status == 200:
            record.outcome, record.detail = self._one_piece(body, now, whole)
        elif self.status == 0:
            record.outcome, record.detail = Outcome.DISCONNECTED, "no answer"
        else:
            record.outcome, record.detail = _BY_STATUS.get(self.status, Outcome.HTTP_ERROR), _complaint(body)
            if record.outcome is Outcome.HTTP_ERROR:
                record.detail = f"{self.status} {record.detail}".rstrip()

    def _stream_outcome(self, whole: bool) -> tuple[Outcome, str]:
        if self._error is not None:
            return Outcome.STREAM_ERROR, self._error
        if self._finished and self.record.tokens:
            return Outcome.COMPLETED, ""
        if self._finished or (whole and not self._events):
            return Outcome.STREAM_ERROR, "no token in it"
        return Outcome.DISCONNECTED, "unfinished"

    def _one_piece(self, body: bytes, now: float, whole: bool) -> tuple[Outcome, str]:
        """An answer that was not streamed."""
        try:
            event = _decode(body)
        except _UNREADABLE:
            return (Outcome.STREAM_ERROR, "unreadable") if whole else (Outcome.DISCONNECTED, "unfinished")
        self._take(event, body, now)
        self._finished = True
        return self._stream_outcome(whole)

    def _line(self, line: bytes, now: float) -> None:
        if not line.startswith(b"data:"):
            return
        self._events += 1
        data = line[5:].strip()
        if data == b"[DONE]":
            self._finished = True
            return
        try:
            event = _decode(data)
        except _UNREADABLE:
            return
        self._take(event, data, now)

    def _take(self, event: _Event, data: bytes, now: float) -> None:
        if event.error or event.object == "error":
            self._error = _complaint(data)
        elif event.choices:
            self._choice(event.choices[0], now)
        if event.usage and (usage := _read_usage(event.usage)):
            self.record.prompt_tokens, self.record.output_tokens = usage.prompt_tokens, usage.completion_tokens
            if usage.prompt_tokens_details:
                self.record.cached_tokens = usage.prompt_tokens_details.cached_tokens
        if isinstance(event.metrics, dict):
            self._waited(event.metrics.get("queue_time_ms"))

    def _choice(self, choice: _Choice, now: float) -> None:
        said = choice.delta or choice.message or _Said()
        self._finished = self._finished or bool(choice.finish_reason)
        if self.keep_text and isinstance(said.content, str):
            self._text.append(said.content)
        if self._opening:
            self._opening = False
        elif not self.record.tokens:
            self.record.tokens.append(now)
            self._opening = not any((said.content, said.reasoning, said.reasoning_content, said.tool_calls))
        elif not choice.finish_reason or said != _Said():
            self.record.tokens.append(now)

    def _waited(self, milliseconds: Any) -> None:
        """One more of those that it waited for."""
        try:
            seconds = float(milliseconds) / 1e3
        except (TypeError, ValueError):
            return
        self.record.queue = (self.record.queue or 0.0) + seconds * self.speed


def _read_usage(usage: msgspec.Raw) -> _Usage | None:
    """None of counts that cannot be read: they do not take the rest of the event with them."""
    try:
        found: _Usage | None = _USAGE.decode(usage)
        return found
    except _UNREADABLE:
        return None


def _complaint(body: bytes) -> str:
    """The code of an error's body, or its message where it has none in words; OpenAI's form or another."""
    try:
        said = msgspec.json.decode(body)
    except _UNREADABLE:
        return _cut(body[: 4 * _MAX_DETAIL].decode(errors="replace"))
    if isinstance(said, dict):
        said = said.get("error") or said
    if isinstance(said, dict):
        code = said.get("code")
        said = code if isinstance(code, str) and code else said.get("message") or said.get("type") or said.get("detail")
    return _cut(str(said or ""))


def _cut(text: str) -> str:
    """On one line, and no longer than a table's cell bears."""
    return " ".join(text.split())[:_MAX_DETAIL]
