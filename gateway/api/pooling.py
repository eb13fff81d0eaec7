"""Embeddings, scores, classes, and whatever else a model's pooler makes of a prompt: it is prefilled, and that is all.

One reader for all of them, for vLLM takes their prompts in the same shapes (pooling/*/protocol.py): one in `input` or
`messages`, several in a list of them; to score, pairs. APIs: https://platform.openai.com/docs/api-reference/embeddings,
https://docs.vllm.ai/en/latest/models/pooling_models/
"""

from itertools import cycle
from typing import Any

import msgspec

from gateway.api.base import Api, InferenceRequest, decode
from gateway.api.conversation import read_content, read_messages
from gateway.api.openai import read
from gateway.errors import BadRequest
from gateway.pricing.prompt import Prompt, PromptReader, PromptSize


class _Ask(msgspec.Struct):
    """Where the prompts may be. Which of them goes with which route is the engine's to judge."""

    model: str | None = None
    user: str | None = None
    instruction: str | None = None

    input: Any = None
    messages: Any = None
    data: Any = None  # a plugin's own

    query: Any = None
    queries: Any = None
    text_1: Any = None
    data_1: Any = None
    documents: Any = None
    items: Any = None
    text_2: Any = None
    data_2: Any = None


_ASK = msgspec.json.Decoder(_Ask, strict=False)


def parse(body: bytes, content_type: bytes = b"") -> InferenceRequest:
    """Prompts whose beginnings have no names, for a pooler that looks both ways has no use for a prefix cache."""
    ask: _Ask = decode(_ASK, body)
    try:
        sizes = _pairs(ask) or _prompts(_given(ask.input, ask.messages, ask.data))
    except OverflowError as error:
        raise BadRequest("Expected token ids that a vocabulary has", param="input") from error
    return InferenceRequest(
        api="pooling",
        body=body,
        model=ask.model,
        prompts=tuple(map(Prompt, sizes)),
        max_tokens=1,  # the least that an answer is reckoned with
        user=ask.user,
        truncatable=True,
    )


def _given(*fields: Any) -> Any:
    return next((field for field in fields if field is not None), None)


def _prompts(value: Any) -> list[PromptSize]:
    """A text, token ids or a conversation is one prompt; a list of such is many."""
    if not isinstance(value, list) or _is(int, value) or _is(dict, value):
        return [_size(value)]
    return list(map(_size, value))


def _pairs(ask: _Ask) -> list[PromptSize]:
    """Each of the ones with each of the others, as they stand; or one with all."""
    ones = _list(_given(ask.query, ask.queries, ask.text_1, ask.data_1))
    others = _list(_given(ask.documents, ask.items, ask.text_2, ask.data_2))
    if not ones or not others:
        return []
    instruction = _size(ask.instruction)
    pairs = zip(ones, cycle(others)) if len(ones) > len(others) else zip(cycle(ones), others)
    return [one.plus(other).plus(instruction) for one, other in pairs]


def _list(value: Any) -> list[PromptSize]:
    return [_size(each) for each in (value if isinstance(value, list) else [] if value is None else [value])]


def _size(value: Any) -> PromptSize:
    reader = PromptReader()
    match value:
        case list() if value and _is(int, value):
            reader.ids(value)
        case list():
            read_messages(reader, value)
        case {"content": content}:
            read_content(reader, content)
        case _:
            read_content(reader, value)
    return reader.prompt().size


def _is(kind: type, values: list[Any]) -> bool:
    return all(isinstance(each, kind) for each in values)


def _api(operation: str) -> Api:
    return Api(operation, parse, read, decodes=False)


EMBEDDINGS, SCORE, RERANK, CLASSIFY, POOLING = map(_api, ("embeddings", "score", "rerank", "classify", "pooling"))
