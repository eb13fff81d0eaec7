"""What the scheduler must know of a request, read from its body in one pass.

Only what is needed is typed, and only as strictly as needed: everything else is the engine's to judge, and the
body goes on to it byte for byte. API: https://platform.openai.com/docs/api-reference, and vLLM's OpenAI server.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated, Any, Literal

import msgspec

from gateway.errors import BadRequest
from gateway.prompt import Prompt, PromptReader

Route = Literal["/v1/chat/completions", "/v1/completions"]

# What a part that is no text (an image, a sound) costs in prompt tokens, whatever its size: Gemma's encoder makes 256
# of an image. Its base64 is never counted.
MEDIA_TOKENS = 256

# Characters of a last message that tell what kind of request it is.
OPENING = 200

# So many characters at either end of a first message tell conversations apart; a pasted novel need not be hashed whole.
_SESSION_CHARS = 4096

# A session's name can be seen in the decision log. Without the key, which ends with the process, nobody can guess texts
# and compare.
_SESSION_KEY = os.urandom(16)

# A count that an engine can be asked for. vLLM itself refuses n above 16384.
_Count = Annotated[int, msgspec.Meta(ge=1, le=16384)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Options(msgspec.Struct, kw_only=True):
    model: str | None = None
    n: _Count | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None
    cache_salt: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    role: Any = None
    # Parts stay untyped: what is not text has many shapes, and none of them is ours to refuse.
    content: str | list[str | dict[str, Any]] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Chat(_Options, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    tools: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()


class _Text(_Options, kw_only=True):
    # One text, several, one list of token ids, or several; msgspec allows one type of list only.
    prompt: str | list[str | int | list[int]]


# Not strict: what vLLM's pydantic takes for a number or a flag ("16", 16.0, 1) is taken here too.
_DECODERS: dict[Route, msgspec.json.Decoder[Any]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_Chat, strict=False),
    "/v1/completions": msgspec.json.Decoder(_Text, strict=False),
}


@dataclass(frozen=True, slots=True)
class Completion:
    """A request, as much of it as the gateway reads.

    body  what goes to the engine: the client's own bytes, but for `include_usage`
    drop_usage  the client did not ask for the usage chunk, so it must be taken out again
    session  names the conversation, from its first message: the same at each turn; "" if it has none
    opening  how the last message begins; like `body` it is the client's own, and goes nowhere but to the rules
    """

    route: Route
    body: bytes
    model: str | None
    prompts: tuple[Prompt, ...]
    n: int
    stream: bool
    drop_usage: bool
    max_tokens: int | None
    user: str | None
    session: str = ""
    opening: str = field(default="", repr=False)

    @property
    def seats(self) -> int:
        return self.n * len(self.prompts)


def parse(route: Route, body: bytes) -> Completion:
    """Raises BadRequest for what is no JSON, lacks its prompt, or has the wrong type where we must read it."""
    try:
        request = _DECODERS[route].decode(body)
        drop_usage = bool(request.stream) and not (request.stream_options and request.stream_options.include_usage)
        forwarded = _ask_for_usage(body) if drop_usage else body
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise BadRequest(message, param=path.strip("`.") or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from error

    return Completion(
        route=route,
        body=forwarded,
        model=request.model,
        prompts=_chat_prompt(request) if isinstance(request, _Chat) else _text_prompts(request),
        n=request.n or 1,
        stream=bool(request.stream),
        drop_usage=drop_usage,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        user=request.user,
        session=_session(request),
        opening=_opening(request),
    )


def _session(request: _Chat | _Text) -> str:
    """A hash of the first thing that the user said, or of the first message if the user has said nothing. A system
    prompt tells nothing: all conversations with one program share it."""
    if isinstance(request, _Text):
        return ""
    said = next((message for message in request.messages if message.role == "user"), request.messages[0])
    text = "".join(_texts(said))
    if not text:
        return ""
    ends = f"{len(text)} {text[:_SESSION_CHARS]} {text[-_SESSION_CHARS:]}".encode("utf-8", "surrogatepass")
    return blake2b(ends, digest_size=8, key=_SESSION_KEY).hexdigest()


def _opening(request: _Chat | _Text) -> str:
    if isinstance(request, _Chat):
        text = next(_texts(request.messages[-1]), "")
    else:
        text = request.prompt if isinstance(request.prompt, str) else ""
    return text[:OPENING].lstrip()


def _texts(message: _Message) -> Iterator[str]:
    if isinstance(message.content, str):
        yield message.content
        return
    for part in message.content or ():
        text = part if isinstance(part, str) else part.get("text")
        if isinstance(text, str):
            yield text


def _chat_prompt(chat: _Chat) -> tuple[Prompt, ...]:
    """In the order in which templates render it: tools come first."""
    reader = PromptReader((*_seed(chat), bytes(chat.chat_template_kwargs)))
    if chat.tools:
        reader.text(bytes(chat.tools))
        reader.link()
    for message in chat.messages:
        reader.role(message.role if isinstance(message.role, str) else "")
        for text in (message.reasoning, message.reasoning_content):
            reader.text(_utf8(text or ""))
        if isinstance(message.content, str):
            reader.text(_utf8(message.content))
        for part in message.content if isinstance(message.content, list) else ():
            text = part if isinstance(part, str) else part.get("text", part.get("refusal"))
            if isinstance(text, str):
                reader.text(_utf8(text))
            else:
                reader.media(msgspec.json.encode(part), MEDIA_TOKENS)
        reader.text(bytes(message.tool_calls))
        reader.link()
    return (reader.prompt(),)


def _text_prompts(request: _Text) -> tuple[Prompt, ...]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return (_prompt(request, prompt),)
    if not prompt:
        raise BadRequest("Expected at least one prompt", param="prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) < len(prompt):
        raise BadRequest("Expected texts or token ids, not both", param="prompt")
    if ids:
        return (_prompt(request, ids),)
    return tuple(_prompt(request, item) for item in prompt if not isinstance(item, int))


def _prompt(request: _Text, prompt: str | list[int]) -> Prompt:
    reader = PromptReader(_seed(request))
    if isinstance(prompt, str):
        reader.text(_utf8(prompt))
    else:
        try:
            reader.ids(prompt)
        except OverflowError as error:
            raise BadRequest("Expected token ids that a vocabulary has", param="prompt") from error
    return reader.prompt()


def _seed(request: _Options) -> tuple[bytes, ...]:
    """What keeps equal texts apart in the engine's cache: the model, for it may name an adapter, and the salt."""
    return _utf8(request.model or ""), bytes(request.cache_salt)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _ask_for_usage(body: bytes) -> bytes:
    """Set `stream_options.include_usage` and leave every other byte as the client wrote it, if that is possible.

    It is not where the client sent `stream_options` of its own: a second one would make a duplicate key.
    Known loss: vLLM tells `system_fingerprint` in the usage chunk when there is one, else in the last chunk of
    each choice. So a client that did not ask for usage gets no fingerprint.
    """
    if b'"stream_options"' not in body:
        end = body.rindex(b"}")
        return body[:end] + b',"stream_options":{"include_usage":true}' + body[end:]
    request = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    options = msgspec.json.decode(request.get("stream_options", b"null")) or {}
    # Without `include_usage` vLLM ignores this one; with it every chunk would carry usage.
    options.pop("continuous_usage_stats", None)
    request["stream_options"] = msgspec.Raw(msgspec.json.encode(options | {"include_usage": True}))
    return msgspec.json.encode(request)
