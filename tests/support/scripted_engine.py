"""A fake vLLM that the test steers: it receives a request, and the test says what is answered, chunk by chunk."""

import asyncio
import json
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from tests.support.waiting import DEADLINE


@dataclass(eq=False)
class ReceivedRequest:
    """One request that has reached the scripted engine, and how the test answers it.

    left  set when the gateway closes the connection before the answer is complete
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    query: str = ""
    left: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _steps: asyncio.Queue[Message | bytes | None] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def start(self, status: int = 200, content_type: str = "text/event-stream; charset=utf-8", **headers: str) -> None:
        """Send status and headers; an underscore in a name stands for a hyphen."""
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-type", content_type.encode()))
        self._step({"type": "http.response.start", "status": status, "headers": raw})

    def send(self, chunk: bytes) -> None:
        self._step({"type": "http.response.body", "body": chunk, "more_body": True})

    def end(self, chunk: bytes = b"") -> None:
        self._step({"type": "http.response.body", "body": chunk, "more_body": False})

    def stream(self, *chunks: bytes) -> None:
        """A whole stream."""
        self.start()
        for chunk in chunks:
            self.send(chunk)
        self.end()

    def answer(self, status: int = 200, content: object = None, **headers: str) -> None:
        """A whole answer in JSON, an ordinary one by default."""
        ordinary = {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }
        self.start(status, "application/json", **headers)
        self.end(
            content if isinstance(content, bytes) else json.dumps(ordinary if content is None else content).encode()
        )

    def say(self, raw: bytes) -> None:
        """Write bytes past HTTP."""
        self._step(raw)

    def hang_up(self) -> None:
        """Close the connection at this point."""
        self._step(None)

    def _step(self, step: Message | bytes | None) -> None:
        if not self._over.is_set():
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._steps.put_nowait, step)


class ScriptedEngine:
    """A fake vLLM: it lists its model by itself and leaves every other answer to the test."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[ReceivedRequest] = []
        self.metrics: bytes | None = None  # without any, the gateway's ledger stands alone
        self._asked: queue.Queue[ReceivedRequest] = queue.Queue()

    def asked(self, seconds: float = DEADLINE) -> ReceivedRequest:
        """Wait for the next request."""
        try:
            return self._asked.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"the engine was not asked within {seconds:g} s") from None

    @property
    def pending(self) -> int:
        """Requests that the test has not taken yet."""
        return self._asked.qsize()

    def reset(self) -> None:
        for call in self.calls:
            call.hang_up()
        self.calls = []
        self.metrics = None
        self._asked = queue.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        call = ReceivedRequest(scope["method"], scope["path"], headers, body, scope["query_string"].decode())
        if call.path == "/metrics":
            call.answer(404 if self.metrics is None else 200, self.metrics or {})
        elif call.path == "/version":
            call.answer(200, {"version": "scripted"})
        elif call.path in ("/v1/models", "/health"):
            card = {"id": "scripted", "object": "model", "created": 0, "owned_by": "vllm", "max_model_len": 32768}
            call.answer(200, {"object": "list", "data": [card]}, x_engine="scripted")
        else:
            self.calls.append(call)
            self._asked.put(call)
        await self._act(call, receive, send)

    async def _act(self, call: ReceivedRequest, receive: Receive, send: Send) -> None:
        watching = asyncio.create_task(self._watch(call, receive))
        try:
            while True:
                step = asyncio.create_task(call._steps.get())
                await asyncio.wait({watching, step}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    step.cancel()
                    return
                message = step.result()
                # uvicorn's `send` is a method of the one request that it serves, which knows its connection.
                transport = getattr(send, "__self__").transport  # noqa: B009
                if message is None:
                    transport.close()
                    await watching
                    return
                if isinstance(message, bytes):
                    transport.write(message)
                    continue
                if not message.get("more_body", True):
                    call._over.set()
                await send(message)
                if call._over.is_set():
                    return
        finally:
            call._over.set()
            watching.cancel()

    async def _watch(self, call: ReceivedRequest, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not call._over.is_set():
            call.left.set()
