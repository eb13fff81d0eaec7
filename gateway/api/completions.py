"""`/v1/completions`: a text goes on, or several.

API: https://platform.openai.com/docs/api-reference/completions, and vLLM's completion/protocol.py.
"""

import msgspec

from gateway.api.base import Api, InferenceRequest, decode, utf8
from gateway.api.conversation import opening, seed
from gateway.api.openai import Options, ask_for_usage, read
from gateway.errors import BadRequest
from gateway.pricing.prompt import Prompt, PromptReader


class _Text(Options, kw_only=True):
    # One text, several, one list of token ids, or several; msgspec allows one type of list only.
    prompt: str | list[str | int | list[int]]


_TEXT = msgspec.json.Decoder(_Text, strict=False)


def parse(body: bytes, content_type: bytes = b"") -> InferenceRequest:
    text: _Text = decode(_TEXT, body)
    return InferenceRequest(
        api="completions",
        body=ask_for_usage(body) if text.lacks_usage else body,
        model=text.model,
        prompts=_prompts(text),
        n=text.n or 1,
        stream=bool(text.stream),
        drop_usage=text.lacks_usage,
        max_tokens=text.max_completion_tokens or text.max_tokens,
        user=text.user,
        truncatable=text.truncatable,
        opening=opening(text.prompt) if isinstance(text.prompt, str) else "",
    )


def _prompts(text: _Text) -> tuple[Prompt, ...]:
    prompt = text.prompt
    if isinstance(prompt, str):
        return (_prompt(text, prompt),)
    if not prompt:
        raise BadRequest("Expected at least one prompt", param="prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) < len(prompt):
        raise BadRequest("Expected texts or token ids, not both", param="prompt")
    if ids:
        return (_prompt(text, ids),)
    return tuple(_prompt(text, item) for item in prompt if not isinstance(item, int))


def _prompt(text: _Text, prompt: str | list[int]) -> Prompt:
    reader = PromptReader(seed(text.model, text.cache_salt))
    if isinstance(prompt, str):
        reader.text(utf8(prompt))
    else:
        try:
            reader.ids(prompt)
        except OverflowError as error:
            raise BadRequest("Expected token ids that a vocabulary has", param="prompt") from error
    return reader.prompt()


COMPLETIONS = Api("text_completion", parse, read, tokenized=True)
