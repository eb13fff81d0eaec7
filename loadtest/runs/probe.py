"""What is asked of a server before a run: which model it serves, how it counts tokens, how long a word takes."""

from dataclasses import replace
from time import perf_counter
from typing import Any

import httpx

from loadtest.runs.connection import Server
from loadtest.workloads.texts import Texts

TIMEOUT = 600.0  # a prompt may have to wait for somebody else's
SAMPLES = (256, 8192)  # bytes
PROBES = 3


class ServerError(RuntimeError):
    """The server cannot be used as it is; the message says what to do."""


def served_model(base_url: str, api_key: str | None = None) -> str:
    """The first model that it lists. Raises ServerError."""
    url = f"{Server(base_url).root}/v1/models"
    try:
        answer = httpx.get(url, headers=_authorization(api_key), timeout=30.0, trust_env=False)
    except httpx.HTTPError as error:
        raise ServerError(f"{url} does not answer ({_reason(error)}): does the server run, and there?") from error
    if answer.status_code in (401, 403):
        raise ServerError(f"{url} wants an API key, and {'not this one' if api_key else 'got none'}")
    try:
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError) as error:
        raise ServerError(
            f"{url} lists no model (status {answer.status_code}): is that an OpenAI server, with its model loaded?"
        ) from error


async def server_version(base_url: str, api_key: str | None = None) -> str:
    """As vLLM tells it; nothing of a server that does not."""
    try:
        async with _http(api_key) as http:
            answer = await http.get(f"{Server(base_url).root}/version", timeout=30.0)
            return str(answer.raise_for_status().json()["version"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return ""


async def measure(base_url: str, model: str, api_key: str | None = None, *, nonce: str = "") -> Texts:
    """Texts of this nonce, in the server's tokens. It counts a short and a long sample: at /tokenize, which vLLM has,
    else as prompts for one token each. A server that does not tell gets the texts that `Texts` makes by itself."""
    texts = Texts(nonce=nonce)
    # Of another nonce, so that the run finds none of it in the server's prefix cache.
    samples = [replace(texts, nonce=f"{nonce}-sample").message(0, "mixed", 100, size) for size in SAMPLES]
    root = Server(base_url).root
    async with _http(api_key) as http:
        for count in (_tokenized, _prompted):
            short, long = [await count(http, root, model, sample) for sample in samples]
            if short is not None and long is not None and short < long:
                bytes_per_token = (SAMPLES[1] - SAMPLES[0]) / (long - short)
                overhead = max(0.0, short - SAMPLES[0] / bytes_per_token)
                return replace(texts, bytes_per_token=bytes_per_token, overhead=overhead)
    return texts


async def latency(base_url: str, model: str, api_key: str | None = None) -> float:
    """Seconds, on our clock, that a word in answer to a word takes: llama-benchy's probe. Raises ServerError."""
    root = Server(base_url).root
    async with _http(api_key) as http:
        start = perf_counter()
        for _ in range(PROBES):
            try:
                (await _ask(http, root, model, "hello")).raise_for_status()
            except httpx.HTTPError as error:
                raise ServerError(f"{root} does not answer a prompt of one word: {_reason(error)}") from error
        return (perf_counter() - start) / PROBES


async def _tokenized(http: httpx.AsyncClient, root: str, model: str, text: str) -> int | None:
    try:
        answer = await http.post(f"{root}/tokenize", json={"model": model, "messages": _messages(text)})
        return _whole(answer.json()["count"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None


async def _prompted(http: httpx.AsyncClient, root: str, model: str, text: str) -> int | None:
    try:
        answer = await _ask(http, root, model, text)
        return _whole(answer.json()["usage"]["prompt_tokens"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None


async def _ask(http: httpx.AsyncClient, root: str, model: str, text: str) -> httpx.Response:
    body = {"model": model, "messages": _messages(text), "max_tokens": 1}
    return await http.post(f"{root}/v1/chat/completions", json=body)


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _whole(count: Any) -> int | None:
    return count if isinstance(count, int) else None


def _http(api_key: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(headers=_authorization(api_key), timeout=TIMEOUT, trust_env=False)


def _authorization(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
