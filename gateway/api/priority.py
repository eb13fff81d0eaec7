"""vLLM's own order of requests, which is the gateway's to say: the lower its `priority`, the earlier one goes.

A client's `priority` is taken out of its body, and its `x-vllm-priority` is not sent on: it would pass those who wait
here, and without `--scheduling-policy priority` vLLM refuses it. With it (engine.scheduling_policy) each request gets
the number of its dispatch. So the engine's queue keeps the policy's order, also where a long prompt that went first
was slower to be read in, and where its cache is full it preempts those who were let in last.
"""

from collections.abc import Callable

import msgspec

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

# From the number of a dispatch to the `priority` that vLLM is told; None where it goes by arrival.
Order = Callable[[int], int | None]


def with_priority(body: bytes, number: int | None) -> bytes:
    """The body with this priority, or with none. It is a JSON object, and otherwise stays as it is."""
    # A key may be written with escapes; most bodies are not looked into.
    if b'"priority"' in body or b"\\u" in body:
        request = _decode(body)
        if request.pop("priority", None) is not None:
            body = msgspec.json.encode(request)
    if number is None:
        return body
    end = body.rindex(b"}")
    return body[:end] + b',"priority":%d' % number + body[end:]
