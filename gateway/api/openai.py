"""What both of OpenAI's older APIs write alike, and vLLM's own after them: options, choices, usage.

API: https://platform.openai.com/docs/api-reference
"""

from typing import Annotated

import msgspec

from gateway.api.base import DECODE_ERRORS, NO_EVENT, AnswerEvent, decode_optional
from gateway.errors import BadRequest
from gateway.pricing.usage import EngineTimes, Usage

# A count that an engine can be asked for. vLLM itself refuses n above 16384.
Count = Annotated[int, msgspec.Meta(ge=1, le=16384)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Options(msgspec.Struct, kw_only=True):
    model: str | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None
    truncate_prompt_tokens: msgspec.Raw = msgspec.Raw()
    cache_salt: msgspec.Raw = msgspec.Raw()

    @property
    def lacks_usage(self) -> bool:
        """It is streamed, and did not ask to be told what it came to."""
        return bool(self.stream) and not (self.stream_options and self.stream_options.include_usage)

    @property
    def truncatable(self) -> bool:
        return bytes(self.truncate_prompt_tokens) not in (b"", b"null")


class _Choice(msgspec.Struct):
    index: int | None = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    metrics: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)
_USAGE = msgspec.json.Decoder(Usage | None)
_TIMES = msgspec.json.Decoder(EngineTimes | None)


def read(data: bytes) -> AnswerEvent:
    """A choice has begun with its first chunk, the one with the role: vLLM writes it when it has the first token."""
    try:
        event = _EVENT.decode(data)
    except DECODE_ERRORS:
        return NO_EVENT
    failed = bool(event.error)
    begun = [] if failed else [choice.index or 0 for choice in event.choices or ()]
    return AnswerEvent(
        begun, decode_optional(_USAGE, event.usage), decode_optional(_TIMES, event.metrics), failed, not event.choices
    )


def ask_for_usage(body: bytes) -> bytes:
    """Set `stream_options.include_usage` and leave every other byte as the client wrote it, if that is possible.

    It is not where the client sent `stream_options` of its own: a second one would make a duplicate key.
    Known loss: vLLM tells `system_fingerprint` in the usage chunk when there is one, else in the last chunk of
    each choice. So a client that did not ask for usage gets no fingerprint.
    """
    if b'"stream_options"' not in body:
        end = body.rindex(b"}")
        return body[:end] + b',"stream_options":{"include_usage":true}' + body[end:]
    try:
        request = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        options = msgspec.json.decode(request.get("stream_options", b"null")) or {}
    except DECODE_ERRORS as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from error
    # Without `include_usage` vLLM ignores this one; with it every chunk would carry usage.
    options.pop("continuous_usage_stats", None)
    request["stream_options"] = msgspec.Raw(msgspec.json.encode(options | {"include_usage": True}))
    return msgspec.json.encode(request)
