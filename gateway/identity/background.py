"""What is served last: requests that nobody waits for.

All conditions of a rule must be met. Open WebUI's own tasks need no rule: after an answer it asks for a title, tags and
follow-up questions, each a request whose one message is a prompt of its own. It strips the task's name before it sends;
a connection that is given the header `X-OpenWebUI-Task: {{TASK}}` tells it all the same, also where the prompts are
changed. Search queries and image prompts are tasks of the same kind, but somebody waits for what comes of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.identity.callers import Caller

# How Open WebUI's prompts begin (backend/open_webui/config.py, DEFAULT_*_PROMPT_TEMPLATE, as of 2025). Not
# "### Task:" alone, for its prompt around documents that were found begins so, too.
OPEN_WEBUI_TEXTS = (
    "### Task:\nGenerate a concise, 3-5 word title",
    "### Task:\nGenerate a concise title",
    "### Task:\nGenerate 1-3 broad tags",
    "### Task:\nSuggest 3-5 relevant follow-up",
    "### Task:\nYou are an autocompletion system",
    "Your task is to reflect the speaker's likely facial expression",
)
# Its names for them (backend/open_webui/constants.py, TASKS).
OPEN_WEBUI_TASKS = {
    b"title_generation",
    b"tags_generation",
    b"follow_up_generation",
    b"autocomplete_generation",
    b"emoji_generation",
}


class Request(Protocol):
    """What a rule looks at of a request; `gateway.api.base.InferenceRequest` explains it."""

    @property
    def user(self) -> str | None: ...

    @property
    def model(self) -> str | None: ...

    @property
    def opening(self) -> str: ...


@dataclass(frozen=True, slots=True)
class BackgroundRule:
    """Empty is any.

    owner   a key's owner, else the client's address
    user    whom the request names; anybody may, since it only sends the request back
    header  in lower case; it must be there and not empty, and be `value` if there is one
    text    how the last message begins
    """

    owner: str | None = None
    user: str | None = None
    model: str | None = None
    header: bytes = b""
    value: bytes = b""
    text: str = ""

    def matches(self, caller: Caller, request: Request, headers: Mapping[bytes, bytes]) -> bool:
        sent = headers.get(self.header, b"").strip()
        return (
            self.owner in (None, caller.name.partition(":")[2])
            and self.user in (None, caller.user(request.user))
            and self.model in (None, request.model)
            and (not self.header or (bool(sent) and self.value in (b"", sent)))
            and request.opening.startswith(self.text)
        )


@dataclass(frozen=True, slots=True)
class BackgroundRules:
    rules: tuple[BackgroundRule, ...] = ()
    open_webui: bool = True

    def matches(self, caller: Caller, request: Request, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the request is served last."""
        if self.open_webui and (
            request.opening.startswith(OPEN_WEBUI_TEXTS)
            or headers.get(b"x-openwebui-task", b"").strip() in OPEN_WEBUI_TASKS
        ):
            return True
        return any(rule.matches(caller, request, headers) for rule in self.rules)
