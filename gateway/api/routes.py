"""The allow-list: what of vLLM's server clients may reach, a line a route. Whatever is not here does not exist.

A route is queued by what its API says of its prefill, or passed on at once, for it makes the GPU do nothing. Left out
on purpose: what ends, empties or reloads the engine (/sleep, /reset_prefix_cache, /collective_rpc, ...), what goes past
the queue (/inference/v1/generate, /invocations, .../batch, .../render), and what the gateway has itself (/health).
"""

from typing import NamedTuple

from gateway.api.audio import TRANSCRIPTION, TRANSLATION
from gateway.api.base import Api
from gateway.api.chat import CHAT
from gateway.api.completions import COMPLETIONS
from gateway.api.errors import ANTHROPIC, OPENAI, ErrorFormat
from gateway.api.errors import RESPONSES as RESPONSES_ERRORS
from gateway.api.messages import MESSAGES
from gateway.api.pooling import CLASSIFY, EMBEDDINGS, POOLING, RERANK, SCORE
from gateway.api.responses import RESPONSES


class Queued(NamedTuple):
    """`POST`; `path` is also the route's name in logs and traces."""

    path: str
    api: Api


class Passed(NamedTuple):
    """`{id}` stands for an id that the engine gave."""

    method: str
    path: str


QUEUED = (
    Queued("/v1/chat/completions", CHAT),
    Queued("/v1/completions", COMPLETIONS),
    Queued("/v1/responses", RESPONSES),
    Queued("/v1/messages", MESSAGES),
    Queued("/v1/embeddings", EMBEDDINGS),
    Queued("/score", SCORE),
    Queued("/v1/score", SCORE),
    Queued("/rerank", RERANK),
    Queued("/v1/rerank", RERANK),
    Queued("/v2/rerank", RERANK),
    Queued("/classify", CLASSIFY),
    Queued("/pooling", POOLING),
    Queued("/v1/audio/transcriptions", TRANSCRIPTION),
    Queued("/v1/audio/translations", TRANSLATION),
)

PASSED = (
    Passed("GET", "/v1/responses/{id}"),
    Passed("POST", "/v1/responses/{id}/cancel"),
    Passed("POST", "/v1/messages/count_tokens"),
    Passed("POST", "/tokenize"),
    Passed("POST", "/detokenize"),
    Passed("GET", "/v1/models"),
    Passed("GET", "/version"),
)

# Known, and refused with a reason of its own.
REFUSED = {
    "/v1/realtime": "The realtime API is not served: a conversation without an end cannot be queued. "
    "Send recordings to /v1/audio/transcriptions.",
}


def error_format(path: str) -> ErrorFormat:
    """Of errors at this path."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return RESPONSES_ERRORS if path.startswith("/v1/responses") else OPENAI
