"""The simulated Spark as an OpenAI server: vLLM's API in front of the simulated engine, in real time.

It behaves as vLLM does. A stream's headers leave on accept, its role chunk with the first token; then comes a
chunk a token, the last with its finish_reason. A client that leaves takes its sequences out of the engine at
once. What it says is filler. A prompt has ceil(bytes / bytes_per_token) tokens, or as many as it lists ids; an
answer has `max_completion_tokens`, else `max_tokens`, else 256 (vLLM would fill the context).
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from math import ceil
from typing import Annotated, Any
from uuid import uuid4

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from loadtest.engine import Engine, Sequence
from loadtest.live_engine import LiveEngine, Tokens
from loadtest.profile import EngineProfile

FILLER = "the spark reads every expert once and says the same few words to all who wait in its line and "

SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]

Count = Annotated[int, msgspec.Meta(ge=1)]


class Refused(HTTPException):
    """What vLLM would refuse; `kind` and `param` are its error's type and param."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(status, message)
        self.kind = kind
        self.param = param


class Part(msgspec.Struct):
    text: str = ""


class Message(msgspec.Struct):
    content: str | list[Part] | None = None

    def text(self) -> str:
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Body(msgspec.Struct):
    """A request of either kind; other fields are ignored."""

    messages: list[Message] = []
    prompt: str | list[str | int | list[int]] = []
    model: str | None = None
    n: Count | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


@dataclass(frozen=True)
class Generate:
    """POST chat/completions or completions. Raw ASGI: one watcher sees the client leave, at whatever moment."""

    chat: bool
    live: LiveEngine
    model: str
    max_model_len: int
    bytes_per_token: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = self._parse(await Request(scope, receive).body())
        except ClientDisconnect:
            return
        sequences = self._sequences(body)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
            with self.live.generating(sequences) as tokens:
                if body.stream:
                    await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
                    async for event in self._events(body, sequences, tokens):
                        data = b"data: " + msgspec.json.encode(event) + b"\n\n"
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
                else:
                    answer = await self._answer(body, sequences, tokens)
                    await JSONResponse(answer)(scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _answer(self, body: Body, sequences: list[Sequence], tokens: Tokens) -> dict[str, Any]:
        usage = _usage(body, sequences)
        for _ in range(usage["completion_tokens"]):
            await tokens.get()
        text = self._text(0, sequences[0].output_tokens)
        said: dict[str, Any]
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choices = [{"index": index, **said, "finish_reason": "length"} for index in range(len(sequences))]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    async def _events(self, body: Body, sequences: list[Sequence], tokens: Tokens) -> AsyncIterator[dict[str, Any]]:
        head = self._head("chat.completion.chunk")
        usage = _usage(body, sequences)
        made = [0] * len(sequences)
        for count in range(usage["completion_tokens"]):
            index = await tokens.get()
            if self.chat and count == 0:
                delta = {"role": "assistant", "content": ""}
                for each in range(len(sequences)):
                    yield {**head, "choices": [{"index": each, "delta": delta, "finish_reason": None}]}
            text = self._text(made[index], made[index] + 1)
            made[index] += 1
            finish_reason = "length" if made[index] == sequences[index].output_tokens else None
            said: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
            yield {**head, "choices": [{"index": index, **said, "finish_reason": finish_reason}]}
        if body.stream_options is not None and body.stream_options.include_usage:
            yield {**head, "choices": [], "usage": usage}

    def _head(self, chat_object: str) -> dict[str, Any]:
        prefix, kind = ("chatcmpl", chat_object) if self.chat else ("cmpl", "text_completion")
        return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.model}

    def _text(self, start: int, stop: int) -> str:
        """The answer's tokens from start to stop."""
        span = range(int(start * self.bytes_per_token), int(stop * self.bytes_per_token))
        return "".join(FILLER[at % len(FILLER)] for at in span)

    def _parse(self, data: bytes) -> Body:
        try:
            body = msgspec.json.decode(data, type=Body)
        except msgspec.DecodeError as error:
            raise Refused(400, "Bad Request", str(error)) from None
        if body.model and body.model != self.model:
            raise Refused(404, "NotFoundError", f"The model `{body.model}` does not exist.", "model")
        return body

    def _sequences(self, body: Body) -> list[Sequence]:
        """Each prompt, n times."""
        prompts = self._prompts(body)
        output_tokens = body.max_completion_tokens or body.max_tokens or 256
        if not all(prompts):
            raise Refused(400, "BadRequestError", "The prompt is empty.", "messages" if self.chat else "prompt")
        if max(prompts) + output_tokens > self.max_model_len:
            message = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{output_tokens} output tokens and your prompt contains {max(prompts)} input tokens. Please "
                "reduce the length of the input prompt or the number of requested output tokens."
            )
            raise Refused(400, "BadRequestError", message, "input_tokens")
        return [Sequence(tokens, output_tokens) for tokens in prompts for _ in range(body.n or 1)]

    def _prompts(self, body: Body) -> list[int]:
        """The tokens of each prompt."""
        if self.chat:
            return [self._count("".join(message.text() for message in body.messages))]
        if isinstance(body.prompt, str):
            return [self._count(body.prompt)]
        prompts = [each for each in body.prompt if not isinstance(each, int)]
        if not prompts:
            return [len(body.prompt)]  # a flat list of token ids is one prompt
        if len(prompts) < len(body.prompt):
            raise Refused(400, "BadRequestError", "Token ids stand among whole prompts.", "prompt")
        return [self._count(each) if isinstance(each, str) else len(each) for each in prompts]

    def _count(self, text: str) -> int:
        return ceil(len(text.encode()) / self.bytes_per_token)


def _usage(body: Body, sequences: list[Sequence]) -> dict[str, int]:
    prompt_tokens = sum(sequence.prompt_tokens for sequence in sequences) // (body.n or 1)
    made = sum(sequence.output_tokens for sequence in sequences)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, param = HTTPStatus(error.status_code).phrase, None
    if isinstance(error, Refused):
        kind, param = error.kind, error.param
    content = {"message": error.detail, "type": kind, "param": param, "code": error.status_code}
    return JSONResponse({"error": content}, error.status_code)


def create_app(
    profile: EngineProfile,
    *,
    speed: float = 1.0,
    seed: int = 0,
    noise: float = 0.1,
    bytes_per_token: float = 3.2,
    served_model_name: str | None = None,
    max_model_len: int = 131072,
) -> Starlette:
    """The server; run it with uvicorn. Its model is called as the profile is, unless it is named."""
    engine = Engine(profile, seed=seed, noise=noise)
    live = LiveEngine(engine, speed)
    model = served_model_name or profile.name

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live.run)
            yield
            tasks.cancel_scope.cancel()

    async def models(request: Request) -> Response:
        card = {"id": model, "object": "model", "created": 0, "owned_by": "vllm"}
        return JSONResponse({"object": "list", "data": [{**card, "max_model_len": max_model_len}]})

    async def metrics(request: Request) -> Response:
        labels = f'{{engine="0",model_name={json.dumps(model, ensure_ascii=False)}}}'
        gauges = {"vllm:num_requests_running": engine.running, "vllm:num_requests_waiting": engine.waiting}
        lines = [f"# TYPE {name} gauge\n{name}{labels} {value}\n" for name, value in gauges.items()]
        return PlainTextResponse("".join(lines))

    async def health(request: Request) -> Response:
        return Response()

    async def version(request: Request) -> Response:
        return JSONResponse({"version": "0.20.1+simulated"})  # the one that the profiles were measured with

    chat = Generate(True, live, model, max_model_len, bytes_per_token)
    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", replace(chat, chat=False), methods=["POST"]),
        Route("/v1/models", models),
        Route("/metrics", metrics),
        Route("/health", health),
        Route("/version", version),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _error_response})
