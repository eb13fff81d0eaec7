"""Exact prompt tokens: asked of the engine, or counted here with the model's own tokenizer. Or none: a count is what
the answer's `usage.prompt_tokens` will say, and what cannot be counted so is left to the estimator.

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

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import anyio
import msgspec

from gateway.api.base import InferenceRequest
from gateway.errors import GatewayError
from gateway.upstream import Upstream

if TYPE_CHECKING:
    import jinja2

logger = logging.getLogger("fairlane")

Fields = dict[str, msgspec.Raw]

# Texts of one request that are counted. More are a batch job, which no count makes fairer.
MOST_TEXTS = 8

# Bytes of a body that is counted. No context window takes more, and an encoder cannot be stopped half-way.
MOST_BYTES = 4 << 20

# Seconds until a server that has no /tokenize is asked again: it may have been replaced by one that has.
ASK_AGAIN = 300.0

_UNCOUNTED = {"suffix", "prompt_embeds", "truncate_prompt_tokens", "kv_transfer_params"}
_OF_A_CHAT = [
    *("model", "messages", "tools", "chat_template"),
    *("add_generation_prompt", "continue_final_message", "add_special_tokens"),
]
_OF_A_TEXT = ["model", "add_special_tokens"]
_NULL = msgspec.Raw(b"null")
_NONE = msgspec.Raw(b'"none"')

# The type of a part, and where its text is (vLLM's TEXT_PART_TYPES).
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}


class Tokenizer(Protocol):
    async def count(self, completion: InferenceRequest) -> int | None:
        """Prompt tokens, as the engine will count them, all prompts of the request together.

        None if they cannot be counted. Raises nothing but its cancellation.
        """


class BoundedTokenizer:
    """Bounds what counting costs, for it is a courtesy: an estimate now beats a count too late.

    concurrent  counts at once
    patience    seconds for waiting and counting together
    """

    def __init__(self, tokenizer: Tokenizer, *, concurrent: int = 2, patience: float = 2.0) -> None:
        self._tokenizer = tokenizer
        self._places = anyio.Semaphore(concurrent)
        self._patience = patience

    async def count(self, completion: InferenceRequest) -> int | None:
        if len(completion.body) > MOST_BYTES:
            return None
        with anyio.move_on_after(self._patience):
            async with self._places:
                return await self._tokenizer.count(completion)
        return None


# Asked of the engine


class _Answer(msgspec.Struct):
    """Of vLLM's TokenizeResponse; its list of tokens is skipped. An empty prompt is none, for vLLM takes none."""

    count: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


_ANSWER = msgspec.json.Decoder(_Answer)


class EngineTokenizer:
    """By vLLM's POST /tokenize, which renders and encodes a prompt as a completion would, and runs nothing."""

    def __init__(self, upstream: Upstream, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream = upstream
        self._clock = clock
        self._missing_until: float | None = None  # by the clock; None while the server has /tokenize, as far as known

    async def count(self, completion: InferenceRequest) -> int | None:
        try:
            fields = _fields(completion)
            if "messages" in fields:
                return await self._ask(_chat_question(fields))
            texts, tokens = _prompts(fields)
            for text in texts:
                tokens += await self._ask(_text_question(fields, text))
            return tokens or None
        except (_Uncountable, GatewayError, msgspec.MsgspecError, UnicodeError, RecursionError):
            return None

    async def _ask(self, question: Fields) -> int:
        """Raises _Uncountable, GatewayError, or msgspec's and Unicode's errors for an answer that is none."""
        if self._missing_until is not None and self._clock() < self._missing_until:
            raise _Uncountable
        answer = await self._upstream.ask("/tokenize", msgspec.json.encode(question))
        # vLLM says 404 of an unknown model too, in words; one client's mistake must not end the counting.
        if answer.status_code in (404, 405, 501) and b"model" not in answer.content:
            if self._missing_until is None:
                logger.warning("the engine has no /tokenize: prompt tokens are estimated (HTTP %d)", answer.status_code)
            self._missing_until = self._clock() + ASK_AGAIN
        if answer.status_code != 200:
            raise _Uncountable
        self._missing_until = None
        return _ANSWER.decode(answer.content).count


class _Uncountable(Exception):
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


def _fields(completion: InferenceRequest) -> Fields:
    """The body's fields that are not null. Raises _Uncountable if one of them, or a part of a message, forbids it."""
    fields = {name: value for name, value in _FIELDS.decode(completion.body).items() if value != _NULL}
    chat = completion.api == "chat"
    if not fields.keys().isdisjoint(_UNCOUNTED) or ("messages" if chat else "prompt") not in fields:
        raise _Uncountable
    if not chat:
        fields.pop("messages", None)
        return fields
    if "tools" in fields and fields.get("tool_choice") == _NONE:
        raise _Uncountable
    messages = _MESSAGES.decode(fields["messages"])
    for message in messages:
        for part in message.content if isinstance(message.content, list) else ():
            if isinstance(part, _Part) and (part.type not in _TEXT_PARTS or part.uuid != _NULL):
                raise _Uncountable
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


def _template_kwargs(fields: Fields) -> Fields:
    """What the client gives its chat template, by whichever field."""
    kwargs = _KWARGS.decode(fields["chat_template_kwargs"]) if "chat_template_kwargs" in fields else {}
    effort = fields.get("reasoning_effort")
    if effort is not None:
        thinks = msgspec.Raw(b"false" if effort == _NONE else b"true")
        kwargs = {"enable_thinking": thinks, **kwargs, "reasoning_effort": effort}
    if "documents" in fields:
        kwargs["documents"] = fields["documents"]
    return kwargs


def _chat_question(fields: Fields) -> Fields:
    """vLLM's TokenizeChatRequest."""
    question = {name: fields[name] for name in _OF_A_CHAT if name in fields}
    if kwargs := _template_kwargs(fields):
        question["chat_template_kwargs"] = msgspec.Raw(msgspec.json.encode(kwargs))
    return question


def _text_question(fields: Fields, text: str) -> Fields:
    """vLLM's TokenizeCompletionRequest."""
    question = {name: fields[name] for name in _OF_A_TEXT if name in fields}
    return {**question, "prompt": msgspec.Raw(msgspec.json.encode(text))}


def _prompts(fields: Fields) -> tuple[list[str], int]:
    """The texts to count, and how many token ids there are. Raises _Uncountable for too many texts."""
    prompt = _PROMPT.decode(fields["prompt"])
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = [each for each in prompts if isinstance(each, str)]
    if len(texts) > MOST_TEXTS:
        raise _Uncountable
    return texts, sum(len(each) if isinstance(each, list) else 1 for each in prompts if not isinstance(each, str))


# Counted here


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
        self._chat = _ChatTemplates(file.parent)
        # Its threads are the bound: a count that nobody waits for any more runs on, and no more run beside it.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")

    async def count(self, completion: InferenceRequest) -> int | None:
        return await asyncio.wrap_future(self._threads.submit(self._count, completion))

    def _count(self, completion: InferenceRequest) -> int | None:
        try:
            fields = _fields(completion)
            chat = "messages" in fields
            texts, tokens = ([self._chat.render(fields)], 0) if chat else _prompts(fields)
            special = _flag(fields, "add_special_tokens", not chat)
            # Not `encode`: that holds the GIL from beginning to end, 50 ms for 25 000 tokens, and all streams stand
            # still. The batch's releases it.
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=special) if texts else []
            return tokens + sum(map(len, encoded)) or None
        except Exception as error:
            # A template is a program with the client's messages for input: it can raise anything, and can say the
            # prompt when it does.
            logger.debug("a prompt cannot be counted: %s", type(error).__name__)
            return None


class _ChatTemplates:
    """A model's chat templates, mostly one. As transformers finds them: beside the tokenizer, or in its configuration.

    Raises ValueError for files that cannot be read as what they should be.
    """

    def __init__(self, folder: Path) -> None:
        config, beside = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        try:
            settings = json.loads(config.read_text("utf-8")) if config.is_file() else {}
            found = beside.read_text("utf-8") if beside.is_file() else settings.get("chat_template")
            named = (
                {each["name"]: each["template"] for each in found} if isinstance(found, list) else {"default": found}
            )
            compiled = {name: _ChatTemplate(source) for name, source in named.items() if source is not None}
            # `bos_token` and the like: a text, or a record that has it.
            self._tokens = {
                name: value["content"] if isinstance(value, dict) else value
                for name, value in settings.items()
                if name.endswith("_token") and isinstance(value, str | dict)
            }
        except Exception as error:  # of JSON, of Jinja, of what is not shaped as it should be
            raise ValueError(f"The chat template of {folder} cannot be used: {error!r}") from error
        self._default = compiled.get("default")
        self._tool_use = compiled.get("tool_use", self._default)

    def render(self, fields: Fields) -> str:
        """The prompt. Raises _Uncountable if there is no template, and whatever a template raises."""
        template = self._tool_use if "tools" in fields else self._default
        # A client's own template is a program too, and would run here as long as it likes.
        if template is None or "chat_template" in fields:
            raise _Uncountable
        given = {name: value for name, raw in _template_kwargs(fields).items() if (value := _value(raw)) is not None}
        if not given.keys().isdisjoint({"chat_template", "tokenize"}):
            raise _Uncountable  # vLLM refuses these
        variables = {
            **self._tokens,
            "documents": None,
            "tools": [_tool(each) for each in _value(fields["tools"])] if "tools" in fields else None,
            **given,
            "add_generation_prompt": _flag(fields, "add_generation_prompt", True),
        }
        messages = list(_conversation(_value(fields["messages"]), template))
        if _flag(fields, "continue_final_message", False):
            return template.continued(messages, variables)
        return template.render(messages, variables)


class _ChatTemplate:
    """A program in Jinja that makes one text of messages.

    takes_parts  it goes through a message's parts itself, so it gets a list of them and not their joined text: what
                 vLLM calls the content formats "openai" and "string", and detects likewise
    """

    END = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers' own; it must survive a template's `trim`

    def __init__(self, source: str) -> None:
        environment = _environment()
        self._template = environment.from_string(source)
        self.takes_parts = _loops_over_content(environment.parse(source))
        self.knows_developers = '"developer"' in source or "'developer'" in source

    def render(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        return self._template.render(messages=messages, **variables)

    def continued(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        """The prompt up to where the last message's text ends, for the model to go on there."""
        content = messages[-1]["content"]
        if isinstance(content, list):
            content[-1]["text"] += self.END
        else:
            messages[-1]["content"] = content + self.END
        text = self.render(messages, variables)
        end = text.rindex(self.END.strip())
        return text[:end] if text[end:].startswith(self.END) else text[:end].rstrip()


def _environment() -> "jinja2.Environment":
    """As transformers makes it (utils/chat_template_utils.py), which is what templates are written for."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model said, for training. Here it means nothing."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """jinja2's own would escape what HTML wants escaped."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _loops_over_content(tree: "jinja2.nodes.Template") -> bool:
    """`for part in message.content`, `message["content"]` or `content`, whatever filters are behind."""
    from jinja2 import nodes

    for loop in tree.find_all(nodes.For):
        over: nodes.Node | None = loop.iter
        while isinstance(over, nodes.Filter):
            over = over.node
        match over:
            case nodes.Getattr(attr="content") | nodes.Name(name="content"):
                return True
            case nodes.Getitem(arg=nodes.Const(value="content")):
                return True
    return False


def _value(raw: msgspec.Raw) -> Any:
    return msgspec.json.decode(raw)


def _flag(fields: Fields, name: str, default: bool) -> bool:
    """Not strict, for vLLM's pydantic takes 1 and "true" too."""
    return msgspec.json.decode(fields[name], type=bool, strict=False) if name in fields else default


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """As vLLM's ChatCompletionToolsParam dumps it: a template shows a missing description as null."""
    function = tool["function"]
    optional = {name: function[name] for name in ("strict", "defer_loading") if function.get(name) is not None}
    described = {name: function.get(name) for name in ("name", "description", "parameters")}
    return {"type": "function", "function": described | optional}


def _conversation(messages: list[dict[str, Any]], template: _ChatTemplate) -> Iterator[dict[str, Any]]:
    """Messages as vLLM hands them to a template (chat_utils.py: _parse_chat_message_content, _postprocess_messages)."""
    for message in messages:
        role = message["role"]
        if role == "developer" and not template.knows_developers:
            raise _Uncountable  # vLLM makes one system message of all of them
        texts = list(_texts(message.get("content")))
        parts = template.takes_parts and role != "tool"
        said = {
            "role": role,
            "content": [{"type": "text", "text": each} for each in texts] if parts else "\n".join(texts),
        }
        if role == "assistant":
            if calls := message.get("tool_calls"):
                said["tool_calls"] = [_tool_call(each) for each in calls]
            if (reasoning := message.get("reasoning")) is not None:
                said |= {"reasoning": reasoning, "reasoning_content": reasoning}
        for name in ("name", "task") + (("tool_call_id",) if role == "tool" else ()):
            if isinstance(message.get(name), str):
                said[name] = message[name]
        if role == "developer":
            said["tools"] = message.get("tools")
        yield said


def _texts(content: str | list[str | dict[str, Any]] | None) -> Iterator[str]:
    for part in [content] if isinstance(content, str) else content or ():
        text = part if isinstance(part, str) else part.get(_TEXT_PARTS[part["type"]])
        if text is not None:
            yield text


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """Templates want the arguments as a mapping; what is none becomes an empty one."""
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}
