"""What the gateway must know of an API: how to read a request, and the events of an answer as they pass through."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from gateway.api.errors import OPENAI, ErrorFormat
from gateway.errors import BadRequest
from gateway.pricing.prompt import Prompt
from gateway.pricing.usage import EngineTimes, Usage

ApiName = Literal["chat", "completions", "responses", "messages", "pooling", "audio"]

T = TypeVar("T")

# What decoding raises for bytes that are not what they should be, whoever wrote them.
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request, as much of it as the gateway reads.

    body         what goes to the engine: the client's own bytes, but for `include_usage`
    n            sequences to each prompt
    max_tokens   of each answer
    drop_usage   the client did not ask for the usage chunk, so it must be taken out again
    truncatable  the engine truncates a prompt that is too long, or takes it in pieces
    session      names the conversation, from its first message: the same at each turn; "" if it has none
    opening      how the last message begins; like `body` it is the client's own, and goes nowhere but to the rules
    """

    api: ApiName
    body: bytes
    model: str | None
    prompts: tuple[Prompt, ...]
    n: int = 1
    stream: bool = False
    drop_usage: bool = False
    max_tokens: int | None = None
    user: str | None = None
    truncatable: bool = False
    session: str = ""
    opening: str = field(default="", repr=False)

    @property
    def seats(self) -> int:
        return self.n * len(self.prompts)

    @property
    def json(self) -> bool:
        """Whether the body is an object in JSON; else it is a form."""
        return self.api != "audio"


class AnswerEvent(NamedTuple):
    """What the gateway reads of one event of a stream, or of an answer in one piece.

    begun       the choices that have a token by now
    failed      it is an error
    usage_only  nothing else is in it
    """

    begun: Collection[int] = ()
    usage: Usage | None = None
    times: EngineTimes | None = None
    failed: bool = False
    usage_only: bool = False


NO_EVENT = AnswerEvent()


class Parse(Protocol):
    def __call__(self, body: bytes, content_type: bytes = b"") -> InferenceRequest:
        """Raises BadRequest."""


@dataclass(frozen=True, slots=True)
class Api:
    """
    operation   its name in traces (gen_ai.operation.name)
    parse       a body into a request; only a form needs its content type
    read        the data of an event, or a whole answer; raises nothing
    errors      how it writes errors
    decodes     its answers are written token by token
    tokenized   the engine's /tokenize makes its prompts too, so that they can be counted
    """

    operation: str
    parse: Parse
    read: Callable[[bytes], AnswerEvent]
    errors: ErrorFormat = OPENAI
    decodes: bool = True
    tokenized: bool = False


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Raises BadRequest for what is no JSON, or has the wrong type where we must read it, and says where."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise BadRequest(message, param=path.strip("`.") or None) from error
    except DECODE_ERRORS as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from error


def decode_optional(decoder: msgspec.json.Decoder[T | None], raw: msgspec.Raw) -> T | None:
    """A field of an event; None if it is missing or cannot be read, which does not spoil the other fields."""
    try:
        return decoder.decode(raw) if raw else None
    except DECODE_ERRORS:
        return None


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
