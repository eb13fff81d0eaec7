"""The real clock: arrivals sent at an OpenAI server when they are due, and what came back, when."""

import time
from collections.abc import Callable, Iterable

import anyio
import httpx

from loadtest.office import Arrival
from loadtest.records import Record

BYTES_PER_TOKEN = 3.2

# Words are drawn from no model's vocabulary in particular; only their number counts.
_WORDS = "the office writes and reads and asks its machine for one more page before lunch "


def filler(arrival: Arrival) -> str:
    """As many bytes as the arrival's tokens take; its first words are its own, so that no prefix is shared."""
    size = int(arrival.prompt_tokens * BYTES_PER_TOKEN)
    head = f"{arrival.user} at {arrival.at:.6f} about {arrival.output_tokens}: "
    return (head + _WORDS * (size // len(_WORDS) + 1))[:size]


class LoadClient:
    """Streams chat requests.

    speed  of the server's clock: a second of it is 1/speed s of ours
    text   makes a prompt of an arrival's size, in the server's tokens
    """

    def __init__(self, base_url: str, model: str, speed: float = 1.0, text: Callable[[Arrival], str] = filler) -> None:
        self._url = f"{base_url}/v1/chat/completions"
        self._model = model
        self._speed = speed
        self._text = text

    async def run(
        self, arrivals: Iterable[Arrival], on_progress: Callable[[Record], None] | None = None
    ) -> list[Record]:
        """Send each arrival when it is due. `on_progress` is told of every record that is complete."""
        records = [Record(arrival) for arrival in arrivals]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
        async with (
            httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(None), trust_env=False) as http,
            anyio.create_task_group() as tasks,
        ):
            start = time.perf_counter()
            for record in records:
                tasks.start_soon(self._request, http, record, start, on_progress)
        return records

    async def _request(
        self, http: httpx.AsyncClient, record: Record, start: float, on_progress: Callable[[Record], None] | None
    ) -> None:
        arrival = record.arrival
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": self._text(arrival)}],
            "max_tokens": arrival.output_tokens,
            "stream": True,
            "user": arrival.user,
        }
        await anyio.sleep(max(0.0, start + arrival.at / self._speed - time.perf_counter()))
        try:
            async with http.stream("POST", self._url, json=body) as response:
                if response.status_code != 200:
                    record.failure = f"status {response.status_code}"
                    return
                tail = b""
                async for chunk in response.aiter_bytes():
                    now = (time.perf_counter() - start) * self._speed
                    *events, tail = (tail + chunk).split(b"\n\n")
                    for event in events:
                        # An event a token; the role chunk comes with the first one and is not counted.
                        if b'"content":' in event and b'"role":' not in event:
                            record.tokens.append(now)
                        elif event.startswith(b'data: {"error"'):
                            record.failure = "error in the stream"
        except httpx.HTTPError as error:
            record.failure = type(error).__name__
        finally:
            if on_progress:
                on_progress(record)
