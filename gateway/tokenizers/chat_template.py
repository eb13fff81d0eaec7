"""A model's chat template, which makes one text of messages: as transformers runs it, and fed as vLLM feeds it."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.tokenizers.fields import TEXT_PARTS, Fields, Uncountable, flag, template_kwargs, value_of

if TYPE_CHECKING:
    import jinja2


class ChatTemplates:
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
        """The prompt. Raises Uncountable if there is no template, and whatever a template raises."""
        template = self._tool_use if "tools" in fields else self._default
        # A client's own template is a program too, and would run here as long as it likes.
        if template is None or "chat_template" in fields:
            raise Uncountable
        given = {name: value for name, raw in template_kwargs(fields).items() if (value := value_of(raw)) is not None}
        if not given.keys().isdisjoint({"chat_template", "tokenize"}):
            raise Uncountable  # vLLM refuses these
        variables = {
            **self._tokens,
            "documents": None,
            "tools": [_tool(each) for each in value_of(fields["tools"])] if "tools" in fields else None,
            **given,
            "add_generation_prompt": flag(fields, "add_generation_prompt", True),
        }
        messages = list(_conversation(value_of(fields["messages"]), template))
        if flag(fields, "continue_final_message", False):
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
            raise Uncountable  # vLLM makes one system message of all of them
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
        text = part if isinstance(part, str) else part.get(TEXT_PARTS[part["type"]])
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
