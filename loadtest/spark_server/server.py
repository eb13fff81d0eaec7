"""The simulated Spark as an OpenAI server: vLLM 0.32's API in front of the simulated engine, in real time.

It behaves as vLLM does. A stream's headers leave on accept, its role chunk with the first token; then comes a
chunk a token, the last with its finish_reason. A client that leaves takes its sequences out of the engine at
once. What it says is filler, the same in every answer.

An answer is as long as its prompt's heading says (loadtest/workloads/texts.py) and ends there with "stop", unless
`max_tokens` comes first, with "length"; `ignore_eos` goes on to max_tokens. A prompt without a heading is answered
up to max_tokens; a chat that names none, with 256 tokens.

All times that it tells, with an answer or in /metrics, are seconds of its own clock, which are those of its clients:
at speed 10, a tenth of what they would be on the Spark.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from loadtest.spark.engine import Engine
from loadtest.spark.profile import EngineProfile
from loadtest.spark_server.answer import SimulatedAnswer
from loadtest.spark_server.api import Chat, Detokenize, TextCompletion, Tokenize
from loadtest.spark_server.body import Refused, read
from loadtest.spark_server.frontend import Frontend
from loadtest.spark_server.live_engine import LiveEngine, Tokens
from loadtest.spark_server.metrics import SimMetrics
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.tokens import Ids, decode, prepare

VERSION = "0.32.0+simulated"  # the API's; the profiles were measured with an earlier vLLM

EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]

T = TypeVar("T")


@dataclass(frozen=True)
class Generate:
    """POST chat/completions or completions. Raw ASGI: one watcher sees the client leave, at whatever moment."""

    frontend: Frontend
    kind: type[Chat] | type[TextCompletion]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await _read(request, self.kind)
        except ClientDisconnect:
            return
        answer = self.frontend.accept(body, request.headers)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
            with self.frontend.live.generating(answer.choices, only_last=not body.stream) as tokens:
                if body.stream:
                    await _stream(answer, tokens, send)
                else:
                    for _ in answer.choices:
                        await tokens.get()
                    await Response(answer.whole(), media_type="application/json")(scope, receive, send)
            tasks.cancel_scope.cancel()


async def _stream(answer: SimulatedAnswer, tokens: Tokens, send: Send) -> None:
    """A body message a token; those that came while the client was slow go together."""
    await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
    left = sum(choice.sequence.output_tokens for choice in answer.choices)
    choices = [await tokens.get()]
    data = answer.opening()
    while True:
        while not tokens.empty():
            choices.append(tokens.get_nowait())
        left -= len(choices)
        data += b"".join([answer.token(choice) for choice in choices])
        if not left:
            await send({"type": "http.response.body", "body": data + answer.closing()})
            return
        await send({"type": "http.response.body", "body": data, "more_body": True})
        choices, data = [await tokens.get()], b""


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _read(request: Request, kind: type[T]) -> T:
    return read(await request.body(), request.headers.get("content-type"), kind)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.content, error.status)


def _nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


@dataclass(frozen=True)
class _Endpoints:
    """What the server has beside the two that generate."""

    frontend: Frontend

    async def tokenize(self, request: Request) -> Response:
        body = await _read(request, Tokenize)
        self.frontend.check_model(body.model)
        text = body.text(self.frontend.options.bytes_per_token)
        strings = [decode([span]) for span in text.spans] if body.return_token_strs else None
        content = {"count": text.count, "max_model_len": self._max_model_len, "tokens": text.ids}
        return _json({**content, "token_strs": strings})

    async def detokenize(self, request: Request) -> Response:
        body = await _read(request, Detokenize)
        self.frontend.check_model(body.model)
        return _json({"prompt": decode(Ids(body.tokens).spans)})

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [_card(self.frontend.model, self._max_model_len)]})

    async def prometheus(self, request: Request) -> Response:
        text = self.frontend.metrics.text()
        return Response(text, media_type="text/plain; version=1.0.0; charset=utf-8")

    async def load(self, request: Request) -> Response:
        return _json({"server_load": self.frontend.live.requests})

    async def health(self, request: Request) -> Response:
        return Response()

    async def version(self, request: Request) -> Response:
        return _json({"version": VERSION})

    @property
    def _max_model_len(self) -> int:
        return self.frontend.live.engine.profile.max_model_len


def create_app(profile: EngineProfile, options: ServerOptions | None = None) -> Starlette:
    """The server; run it with uvicorn. Its model is called as the profile is, unless it is named."""
    options = options or ServerOptions()
    prepare(options.bytes_per_token)
    engine = Engine(profile, seed=options.seed, noise=options.noise)
    model = options.served_model_name or profile.name
    metrics = SimMetrics(engine, model)
    live = LiveEngine(engine, options.speed, metrics)
    frontend = Frontend(live, metrics, model, options)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live.run)
            yield
            tasks.cancel_scope.cancel()

    handlers = {Refused: _refused, HTTPException: _not_routed, ClientDisconnect: _nobody_listens}
    return Starlette(routes=_routes(frontend), lifespan=lifespan, exception_handlers=handlers)


def _routes(frontend: Frontend) -> list[Route]:
    endpoints = _Endpoints(frontend)
    return [
        Route("/v1/chat/completions", Generate(frontend, Chat), methods=["POST"]),
        Route("/v1/completions", Generate(frontend, TextCompletion), methods=["POST"]),
        Route("/tokenize", endpoints.tokenize, methods=["POST"]),
        Route("/detokenize", endpoints.detokenize, methods=["POST"]),
        Route("/v1/models", endpoints.models),
        Route("/metrics", endpoints.prometheus),
        Route("/load", endpoints.load),
        Route("/health", endpoints.health),
        Route("/ping", endpoints.health, methods=["GET", "POST"]),
        Route("/version", endpoints.version),
    ]


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _card(model: str, max_model_len: int) -> dict[str, Any]:
    """As vLLM shows a model that it lets everybody sample from."""
    now = int(time.time())
    permission = {
        "id": "modelperm-simulated",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {"id": model, "object": "model", "created": now, "owned_by": "vllm", "root": model, "parent": None}
    return {**card, "max_model_len": max_model_len, "permission": [permission]}
