"""Exact prompt tokens: asked of the engine, or counted here with the model's own tokenizer. Or none: a count is what
the answer's `usage.prompt_tokens` will say, and what cannot be counted so is left to the estimator. The ids of the
tokens, where a prompt is to be cut.
"""

import logging
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Protocol, TypeVar

import anyio
import msgspec

from gateway.api.base import InferenceRequest
from gateway.engine.client import EngineClient
from gateway.errors import GatewayError
from gateway.tokenizers.fields import Fields, Uncountable, read_fields, read_prompt, read_prompts, template_kwargs

logger = logging.getLogger("fairlane")

# Bytes of a body that is counted. No context window takes more, and an encoder cannot be stopped half-way.
MAX_BODY_BYTES = 4 << 20

# After so many counts in a row that are further off than this share of the engine's own, nothing is counted any more.
MAX_WRONG_COUNTS = 3
MAX_RELATIVE_ERROR = 0.02

# Seconds until a server that has no /tokenize is asked again: it may have been replaced by one that has.
RETRY_MISSING_S = 300.0

_OF_A_CHAT = [
    *("model", "messages", "tools", "chat_template"),
    *("add_generation_prompt", "continue_final_message", "add_special_tokens"),
]
_OF_A_TEXT = ["model", "add_special_tokens"]

# Token ids; in an array, since those of a long prompt are kept as long as it waits.
Ids = Sequence[int]
IDS = "q"

T = TypeVar("T")


class Tokenizer(Protocol):
    async def count(self, request: InferenceRequest) -> int | None:
        """Prompt tokens, as the engine will count them, all prompts of the request together.

        None if they cannot be counted. Raises nothing but its cancellation.
        """

    async def encode(self, request: InferenceRequest) -> Ids | None:
        """The ids of the tokens of its one prompt, as the engine will make them. None if they cannot be known, or there
        are several. Raises nothing but its cancellation."""


class BoundedTokenizer:
    """Bounds what counting costs, for it is a courtesy: an estimate now beats a count too late.

    concurrent  counts at once
    patience    seconds for waiting and counting together
    """

    def __init__(self, tokenizer: Tokenizer, *, concurrent: int = 2, patience: float = 2.0) -> None:
        self._tokenizer = tokenizer
        self._wrong = 0  # counts in a row
        self._places = anyio.Semaphore(concurrent)
        self._patience = patience

    async def count(self, request: InferenceRequest) -> int | None:
        return await self._bounded(self._tokenizer.count, request)

    async def encode(self, request: InferenceRequest) -> Ids | None:
        return await self._bounded(self._tokenizer.encode, request)

    async def _bounded(
        self, ask: Callable[[InferenceRequest], Awaitable[T | None]], request: InferenceRequest
    ) -> T | None:
        if len(request.body) > MAX_BODY_BYTES or self._wrong >= MAX_WRONG_COUNTS:
            return None
        with anyio.move_on_after(self._patience):
            async with self._places:
                return await ask(request)
        return None

    def compare(self, counted: int, true: int) -> None:
        """Told of a count, and of the engine's own. One that is wrong again and again, as for a template
        that the engine has otherwise, is worse than an estimate, which learns."""
        if abs(counted - true) <= MAX_RELATIVE_ERROR * true:
            self._wrong = 0
            return
        self._wrong += 1
        if self._wrong == MAX_WRONG_COUNTS:
            logger.warning(
                "prompts have other tokens than were counted (%d instead of %d): they are estimated from now on",
                counted,
                true,
            )


# Asked of the engine

# Why it may not tell.
_UNKNOWN = (Uncountable, GatewayError, msgspec.MsgspecError, UnicodeError, RecursionError)


class _Answer(msgspec.Struct):
    """Of vLLM's TokenizeResponse; its list of tokens is skipped. An empty prompt is none, for vLLM takes none."""

    count: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class _Tokens(msgspec.Struct):
    """Of the same, where the ids are asked for."""

    tokens: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1)]


_ANSWER = msgspec.json.Decoder(_Answer)
_TOKENS = msgspec.json.Decoder(_Tokens)


class EngineTokenizer:
    """By vLLM's POST /tokenize, which renders and encodes a prompt as a completion would, and runs nothing."""

    def __init__(self, upstream: EngineClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream = upstream
        self._clock = clock
        self._missing_until: float | None = None  # by the clock; None while the server has /tokenize, as far as known

    async def count(self, request: InferenceRequest) -> int | None:
        try:
            fields = read_fields(request)
            if "messages" in fields:
                return _ANSWER.decode(await self._ask(_chat_question(fields))).count
            texts, tokens = read_prompts(fields)
            for text in texts:
                tokens += _ANSWER.decode(await self._ask(_text_question(fields, text))).count
            return tokens or None
        except _UNKNOWN:
            return None

    async def encode(self, request: InferenceRequest) -> Ids | None:
        try:
            fields = read_fields(request)
            if "messages" in fields:
                question = _chat_question(fields)
            else:
                match read_prompt(fields):
                    case str(text):
                        question = _text_question(fields, text)
                    case ids:
                        return array(IDS, ids) if ids else None
            return array(IDS, _TOKENS.decode(await self._ask(question)).tokens)
        except (*_UNKNOWN, OverflowError):
            return None

    async def _ask(self, question: Fields) -> bytes:
        """The answer. Raises Uncountable, GatewayError."""
        if self._missing_until is not None and self._clock() < self._missing_until:
            raise Uncountable
        answer = await self._upstream.ask("/tokenize", msgspec.json.encode(question))
        # vLLM says 404 of an unknown model too, in words; one client's mistake must not end the counting.
        if answer.status_code in (404, 405, 501) and b"model" not in answer.content:
            if self._missing_until is None:
                logger.warning("the engine has no /tokenize: prompt tokens are estimated (HTTP %d)", answer.status_code)
            self._missing_until = self._clock() + RETRY_MISSING_S
        if answer.status_code != 200:
            raise Uncountable
        self._missing_until = None
        return answer.content


def _chat_question(fields: Fields) -> Fields:
    """vLLM's TokenizeChatRequest."""
    question = {name: fields[name] for name in _OF_A_CHAT if name in fields}
    if kwargs := template_kwargs(fields):
        question["chat_template_kwargs"] = msgspec.Raw(msgspec.json.encode(kwargs))
    return question


def _text_question(fields: Fields, text: str) -> Fields:
    """vLLM's TokenizeCompletionRequest."""
    question = {name: fields[name] for name in _OF_A_TEXT if name in fields}
    return {**question, "prompt": msgspec.Raw(msgspec.json.encode(text))}
