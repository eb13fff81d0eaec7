"""What the engine's own metrics say beside the gateway's ledger, and what to make of it.

The ledger is the gate. A scrape is always late: it does not show yet what was just let go, and shows still what has
just ended. So others are believed to use the engine only when several scrapes in a row say so, and a scrape that is
missing or old corrects nothing. (llm-d-router#2100, #2408: a gauge that fails closed froze a whole service.)
"""

import re
from collections import deque
from dataclasses import dataclass
from typing import Self

from gateway.scheduling.events import Corrected

# Scrapes in a row that must agree that others use the engine.
AGREEING = 3

# How much of a reservation is in use is told from so many reserved tokens on, and moves by so much a scrape.
LEAST_RESERVED = 4096
GAIN = 0.2
LEAST_SCALE = 0.1

_SAMPLE = re.compile(
    rb"^(?:vllm:)?(num_requests_running|num_requests_waiting|kv_cache_usage_perc|num_preemptions_total"
    rb"|prefix_cache_hits_total|process_start_time_seconds)"
    rb"(?:\{[^}\n]*\})? (\S+)",
    re.MULTILINE,
)
_CACHE = re.compile(rb"^vllm:cache_config_info\{([^}\n]*)\}", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class EngineState:
    """vLLM's metrics; None is what it does not tell.

    running, waiting  sequences
    kv_usage          share of the cache in use; kv_capacity, its tokens
    preemptions       so far
    block             tokens of a cache block
    caches            whether prefix caching is on; cache_hits, the tokens that it has saved so far
    started           when, in seconds since 1970
    """

    running: float
    waiting: float
    kv_usage: float
    kv_capacity: int | None
    preemptions: float
    block: int | None = None
    caches: bool | None = None
    cache_hits: float | None = None
    started: float | None = None

    @classmethod
    def read(cls, text: bytes) -> Self | None:
        """From vLLM's /metrics; None if it does not tell. Engines of one server are added up."""
        sums: dict[bytes, float] = {}
        for name, value in _SAMPLE.findall(text):
            try:
                sums[name] = sums.get(name, 0.0) + float(value)
            except ValueError:
                return None
        if b"num_requests_running" not in sums:
            return None
        cache = _CACHE.search(text)
        labels = dict(_LABEL.findall(cache[1])) if cache else {}
        on = labels.get(b"enable_prefix_caching")
        return cls(
            sums[b"num_requests_running"],
            sums.get(b"num_requests_waiting", 0.0),
            sums.get(b"kv_cache_usage_perc", 0.0),
            _count(labels.get(b"kv_cache_size_tokens")),
            sums.get(b"num_preemptions_total", 0.0),
            _count(labels.get(b"block_size")),
            None if on is None else on.lower() == b"true",
            sums.get(b"prefix_cache_hits_total"),
            sums.get(b"process_start_time_seconds"),
        )


def _count(text: bytes | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) > 0 else None


class Reconciler:
    """From scrapes to corrections. Told the ledger of the moment with each; has no clock."""

    def __init__(self) -> None:
        self._excess: deque[int] = deque(maxlen=AGREEING)
        self._scale = 1.0

    def observe(self, state: EngineState, seats: int, kv_tokens: int, kv_limit: int | None) -> Corrected:
        """`seats` and `kv_tokens` are what the ledger has given out, `kv_limit` the configured capacity."""
        self._excess.append(max(0, round(state.running + state.waiting) - seats))
        external_seats = min(self._excess) if len(self._excess) == AGREEING else 0
        capacity = kv_limit or state.kv_capacity
        if not capacity:
            return Corrected(external_seats=external_seats)
        used = state.kv_usage * capacity
        if external_seats == 0 and kv_tokens >= LEAST_RESERVED:
            measured = min(1.0, max(LEAST_SCALE, used / kv_tokens))
            self._scale += GAIN * (measured - self._scale)
        external_kv_tokens = max(0, round(used - kv_tokens * self._scale)) if external_seats else 0
        return Corrected(self._scale, external_seats, external_kv_tokens)

    def lost(self) -> Corrected:
        """No scrape, or an old one: the ledger alone."""
        self._excess.clear()
        return Corrected(kv_scale=1.0)
