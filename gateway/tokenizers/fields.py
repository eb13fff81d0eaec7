"""What a prompt is made of, before it is one: the fields of a body that decide it.

vLLM makes the prompt of a chat from these fields (ChatCompletionRequest.build_chat_params, OnlineRenderer.render_chat):

    messages, tools, model                      as they are; `reasoning_content` is `reasoning`
    add_generation_prompt, continue_final_message, add_special_tokens, chat_template
    chat_template_kwargs                        and over them `documents` and `reasoning_effort`; an effort also means
                                                `enable_thinking`, unless the client says it itself

Not counted: media; `tool_choice: "none"` beside tools, for the server's --exclude-tools-when-tool-choice-none decides
then; `suffix`, `prompt_embeds`, `truncate_prompt_tokens`, `kv_transfer_params`, for they change the prompt after or
instead of its text. Two models have a prompt that vLLM's /tokenize does not make: gpt-oss (Harmony), and Kimi K3
where `tool_choice` or `response_format` is asked for.
"""

from typing import Any

import msgspec

from gateway.api.base import InferenceRequest

Fields = dict[str, msgspec.Raw]

# Texts of one request that are counted. More are a batch job, which no count makes fairer.
MAX_TEXTS = 8

_UNCOUNTED = {"suffix", "prompt_embeds", "truncate_prompt_tokens", "kv_transfer_params"}
_NULL = msgspec.Raw(b"null")
_NONE = msgspec.Raw(b'"none"')

# The type of a part, and where its text is (vLLM's TEXT_PART_TYPES).
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}


class Uncountable(Exception):
    """The tokens of this request cannot be known before the engine has it."""


class _Part(msgspec.Struct):
    type: str = ""
    uuid: msgspec.Raw = _NULL  # makes vLLM look for media in a part of any type


class _Message(msgspec.Struct):
    content: str | list[str | _Part] | None = None
    reasoning_content: msgspec.Raw = _NULL


_FIELDS = msgspec.json.Decoder(Fields)
_KWARGS = msgspec.json.Decoder(Fields)
_MESSAGES = msgspec.json.Decoder(list[_Message])
_PROMPT = msgspec.json.Decoder(str | list[str | int | list[int]])


def read_fields(request: InferenceRequest) -> Fields:
    """The body's fields that are not null. Raises Uncountable if one of them, or a part of a message, forbids it."""
    fields = {name: value for name, value in _FIELDS.decode(request.body).items() if value != _NULL}
    if request.api not in ("chat", "completions"):
        raise Uncountable
    chat = request.api == "chat"
    if not fields.keys().isdisjoint(_UNCOUNTED) or ("messages" if chat else "prompt") not in fields:
        raise Uncountable
    if not chat:
        fields.pop("messages", None)
        return fields
    if "tools" in fields and fields.get("tool_choice") == _NONE:
        raise Uncountable
    messages = _MESSAGES.decode(fields["messages"])
    for message in messages:
        for part in message.content if isinstance(message.content, list) else ():
            if isinstance(part, _Part) and (part.type not in TEXT_PARTS or part.uuid != _NULL):
                raise Uncountable
    if any(message.reasoning_content != _NULL for message in messages):
        # vLLM renames it in a chat, and not at /tokenize.
        renamed = [_with_reasoning(each) for each in msgspec.json.decode(fields["messages"], type=list[Fields])]
        fields["messages"] = msgspec.Raw(msgspec.json.encode(renamed))
    return fields


def _with_reasoning(message: Fields) -> Fields:
    content = message.pop("reasoning_content", _NULL)
    if content != _NULL and message.get("reasoning", _NULL) == _NULL:
        message["reasoning"] = content
    return message


def template_kwargs(fields: Fields) -> Fields:
    """What the client gives its chat template, by whichever field."""
    kwargs = _KWARGS.decode(fields["chat_template_kwargs"]) if "chat_template_kwargs" in fields else {}
    effort = fields.get("reasoning_effort")
    if effort is not None:
        thinks = msgspec.Raw(b"false" if effort == _NONE else b"true")
        kwargs = {"enable_thinking": thinks, **kwargs, "reasoning_effort": effort}
    if "documents" in fields:
        kwargs["documents"] = fields["documents"]
    return kwargs


def read_prompts(fields: Fields) -> tuple[list[str], int]:
    """The texts to count, and how many token ids there are. Raises Uncountable for too many texts."""
    prompt = _PROMPT.decode(fields["prompt"])
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = [each for each in prompts if isinstance(each, str)]
    if len(texts) > MAX_TEXTS:
        raise Uncountable
    return texts, sum(len(each) if isinstance(each, list) else 1 for each in prompts if not isinstance(each, str))


def read_prompt(fields: Fields) -> str | list[int]:
    """The text to encode, or its token ids. Raises Uncountable if there are several prompts."""
    prompts: str | list[str | int | list[int]] = _PROMPT.decode(fields["prompt"])
    if isinstance(prompts, str):
        return prompts
    if len(prompts) == 1 and not isinstance(prompts[0], int):
        return prompts[0]
    ids = [each for each in prompts if isinstance(each, int)]
    if len(ids) < len(prompts):
        raise Uncountable
    return ids


def value_of(raw: msgspec.Raw) -> Any:
    return msgspec.json.decode(raw)


def flag(fields: Fields, name: str, default: bool) -> bool:
    """Not strict, for vLLM's pydantic takes 1 and "true" too."""
    return msgspec.json.decode(fields[name], type=bool, strict=False) if name in fields else default
