"""Prompt tokens counted here, with the model's own tokenizer."""

import asyncio
import logging
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gateway.api.base import InferenceRequest
from gateway.tokenizers.chat_template import ChatTemplates
from gateway.tokenizers.engine import IDS, Ids
from gateway.tokenizers.fields import Fields, flag, read_fields, read_prompt, read_prompts

logger = logging.getLogger("fairlane")

T = TypeVar("T")


class LocalTokenizer:
    """By the model's own tokenizer.json, with Hugging Face's `tokenizers`, and its chat template.

    Renders as transformers does what vLLM makes of a chat, for templates of the usual kind. Engines that are started
    with a --chat-template, a --tokenizer-mode or --default-chat-template-kwargs of their own need `EngineTokenizer`.
    A model without a chat template has its texts counted, and no chats.
    """

    def __init__(self, path: Path, *, threads: int = 2) -> None:
        """Load `tokenizer.json`, or the model folder that has it. Raises ValueError, which says what to do."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            import tokenizers
        except ImportError:
            raise ValueError("Counting tokens here takes a library: pip install 'fairlane[tokenizer]'") from None
        if not file.is_file():
            raise ValueError(f"{file} does not exist: name a model's tokenizer.json, or the folder that has it")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises no other class
            raise ValueError(f"{file} is not a tokenizer.json of Hugging Face's: {error}") from error
        # What a model was trained with is no limit here; vLLM switches both off too.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._chat = ChatTemplates(file.parent)
        # Its threads are the bound: a count that nobody waits for any more runs on, and no more run beside it.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")

    async def count(self, request: InferenceRequest) -> int | None:
        return await asyncio.wrap_future(self._threads.submit(_tried, self._count, request))

    async def encode(self, request: InferenceRequest) -> Ids | None:
        return await asyncio.wrap_future(self._threads.submit(_tried, self._encode, request))

    def _count(self, request: InferenceRequest) -> int | None:
        fields = read_fields(request)
        texts, tokens = ([self._chat.render(fields)], 0) if "messages" in fields else read_prompts(fields)
        return tokens + sum(map(len, self._encoded(fields, texts))) or None

    def _encode(self, request: InferenceRequest) -> Ids | None:
        fields = read_fields(request)
        prompt = self._chat.render(fields) if "messages" in fields else read_prompt(fields)
        ids = self._encoded(fields, [prompt])[0].ids if isinstance(prompt, str) else prompt
        return array(IDS, ids) if ids else None

    def _encoded(self, fields: Fields, texts: list[str]) -> list[Any]:
        special = flag(fields, "add_special_tokens", "messages" not in fields)
        # Not `encode`: that holds the GIL from beginning to end, 50 ms for 25 000 tokens, and all streams stand
        # still. The batch's releases it.
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=special) if texts else []


def _tried(work: Callable[[InferenceRequest], T | None], request: InferenceRequest) -> T | None:
    try:
        return work(request)
    except Exception as error:
        # A template is a program with the client's messages for input: it can raise anything, and can say the
        # prompt when it does.
        logger.debug("a prompt cannot be counted: %s", type(error).__name__)
        return None
