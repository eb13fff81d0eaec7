"""vLLM's requests, as far as the simulated server reads them: other fields are ignored."""

import re
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from loadtest.spark_server.body import bad, broken
from loadtest.spark_server.tokens import Ids, Text, Tokens
from loadtest.workloads.plan import TextKind
from loadtest.workloads.texts import read_heading

Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

_SALT_CHARACTERS = 128
_NOT_IN_SALT = re.compile(r"[@/\\\0]")

_HEADING = b"[fairlane-load "
_MAX_HEADING = 200  # bytes

FinishReason = Literal["stop", "length"]


class Part(msgspec.Struct):
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | msgspec.UnsetType | None = msgspec.UNSET
    continuous_usage_stats: bool | msgspec.UnsetType | None = msgspec.UNSET


class Completion(msgspec.Struct, kw_only=True):
    """What both kinds have in common.

    ENOUGH  tokens after which the model has said enough, if neither the prompt's heading nor the client says how many
    """

    ENOUGH: ClassVar[int | None] = None

    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Int64 = 0
    cache_salt: Any = None
    return_token_ids: bool | None = None
    echo: bool = False
    request_id: str | None = None

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def usage(self) -> Literal["", "final", "continuous"]:
        """In which chunks of a stream it wants the token counts."""
        if self.stream_options is None or not self.stream_options.include_usage:
            return ""
        return "continuous" if self.stream_options.continuous_usage_stats else "final"

    @property
    def asked(self) -> tuple[str, int | None]:
        """By which field it says how many tokens it wants at most, and how many."""
        return "max_tokens", self.max_tokens

    def check(self) -> None:
        """What vLLM checks before it looks at the prompt."""
        if self.cache_salt is not None:
            if not isinstance(self.cache_salt, str) or not self.cache_salt:
                message = "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)"
                raise bad(message, "cache_salt")
            if len(self.cache_salt) > _SALT_CHARACTERS or _NOT_IN_SALT.search(self.cache_salt):
                message = (
                    f"Parameter 'cache_salt' must be at most {_SALT_CHARACTERS} characters and must not contain "
                    "'@', '/', '\\\\', or NUL. (parameter=cache_salt)"
                )
                raise bad(message, "cache_salt")
        if self.stream_options not in (None, StreamOptions()) and not self.stream:
            message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
            raise bad(message, "stream_options")
        if self.echo:
            raise bad("The simulated server does not echo prompts.", "echo")

    def length(self, prompt: Tokens, wanted: int | None, max_model_len: int) -> tuple[int, FinishReason]:
        """How many tokens the answer gets, which wants so many by the prompt's heading; and why no more."""
        name, asked = self.asked
        if asked is not None and asked > max_model_len:
            message = (
                f"{name}={asked} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
                f"tokens. (parameter={name}, value={asked})"
            )
            raise bad(message, name)
        if prompt.count > max_model_len:
            counted = prompt.count if isinstance(prompt, Ids) else max_model_len + 1  # vLLM cuts no text any further
            most = "at least " if counted == max_model_len + 1 else ""
            message = (
                f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
                f"{most}{counted} input tokens, which exceeds this limit even without any output tokens. Please "
                f"reduce the length of the input prompt. (parameter=input_tokens, value={counted})"
            )
            raise bad(message, "input_tokens")
        room = max_model_len - prompt.count
        limit = room if asked is None else min(asked, room)
        if self.choices < 1:
            raise bad(f"n must be at least 1, got {self.n}.")
        if limit < 1:
            message = f"max_tokens must be at least 1, got {limit}. (parameter=max_tokens, value={limit})"
            raise bad(message, "max_tokens")
        if self.min_tokens < 0:
            raise bad(f"min_tokens must be greater than or equal to 0, got {self.min_tokens}.")
        if self.min_tokens > limit:
            raise bad(f"min_tokens must be less than or equal to max_tokens={limit}, got {self.min_tokens}.")
        if wanted is None and asked is None:
            wanted = self.ENOUGH
        if wanted is None or self.ignore_eos:
            return limit, "length"
        wanted = max(1, wanted, self.min_tokens)
        return (wanted, "stop") if wanted <= limit else (limit, "length")


class Chat(Completion, kw_only=True):
    ENOUGH = 256

    messages: list[Message]
    max_completion_tokens: int | None = None

    @property
    def asked(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().asked

    def prompts(self, bytes_per_token: float) -> list[Tokens]:
        return [_conversation(self.messages, bytes_per_token)]


class TextCompletion(Completion, kw_only=True):
    prompt: str | list[str | TokenId | list[TokenId]] | None = None

    @property
    def asked(self) -> tuple[str, int | None]:
        return "max_tokens", 16 if self.max_tokens is None else self.max_tokens

    def prompts(self, bytes_per_token: float) -> list[Tokens]:
        match self.prompt:
            case None | "":
                message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
                raise bad(message, "prompt")
            case []:
                raise bad("You must pass at least one prompt")
            case str():
                return [Text([encoded(self.prompt)], bytes_per_token)]
        # A flat list of token ids is one prompt.
        ids = [each for each in self.prompt if isinstance(each, int)]
        if ids and len(ids) < len(self.prompt):
            raise broken("Input should be token ids, or whole prompts", "body.prompt")
        if ids:
            return [Ids(ids)]
        whole = [each for each in self.prompt if not isinstance(each, int)]
        if not all(whole):
            raise bad("The decoder prompt cannot be empty")
        return [Text([encoded(each)], bytes_per_token) if isinstance(each, str) else Ids(each) for each in whole]


class Tokenize(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | msgspec.UnsetType = msgspec.UNSET
    messages: list[Message] | msgspec.UnsetType = msgspec.UNSET
    return_token_strs: bool | None = False

    def text(self, bytes_per_token: float) -> Text:
        if self.messages is not msgspec.UNSET:
            return _conversation(self.messages, bytes_per_token)
        if self.prompt is msgspec.UNSET:
            raise broken("Object missing required field `prompt` or `messages`", "body.prompt")
        return Text([encoded(self.prompt)], bytes_per_token)


class Detokenize(msgspec.Struct):
    tokens: list[TokenId]
    model: str | None = None


def _conversation(messages: list[Message], bytes_per_token: float) -> Text:
    if not messages:
        raise bad("Cannot apply chat template to an empty conversation. Provide at least one message.")
    return Text([_said(message) for message in messages], bytes_per_token)


def _said(message: Message) -> bytes:
    content = message.content or ""
    if isinstance(content, str):
        text = content
    else:
        texts = [part.text for part in content if part.text is not None]
        if len(texts) < len(content):
            raise bad("The simulated model is not a multimodal model")
        text = "".join(texts)
    return encoded(text) or b"\n"  # a chat template makes a token of any message, however little it says


def encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        raise bad("TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]") from None


def heading(prompt: Tokens) -> tuple[TextKind, int] | None:
    """The last one in a prompt: that of its last user's message, if that has one."""
    at = prompt.data.rfind(_HEADING)
    return None if at < 0 else read_heading(prompt.data[at : at + _MAX_HEADING].decode(errors="replace"))
