"""vLLM's answers, key by key: in one piece, or as a stream's events.

An event is put together from bytes, not encoded: most of it is the same in every event of a stream.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from loadtest.spark.engine import Sequence
from loadtest.spark_server.api import FinishReason
from loadtest.spark_server.timing import Timing
from loadtest.spark_server.tokens import Tokens, answer, answer_token, decode, token_id

FINGERPRINT = "vllm-0.32.0-simulated"
DONE = b"data: [DONE]\n\n"

_ROLE = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
_CHAT_TOKEN = b'{"index":%d,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null,"token_ids":%b}'
_CHAT_LAST = (
    b'{"index":%d,"delta":{"content":"%b"},"logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":%b}'
)
_TEXT_TOKEN = (
    b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":%b,"stop_reason":null,"prompt_token_ids":%b,'
    b'"token_ids":%b}'
)
_END = b',"system_fingerprint":"%b"' % FINGERPRINT.encode()

_encode = msgspec.json.encode


@dataclass(eq=False, slots=True)
class Choice:
    """One answer to one prompt. `made` counts its tokens that are in the stream already."""

    index: int
    prompt: Tokens
    sequence: Sequence
    finish_reason: FinishReason
    timing: Timing = field(default_factory=Timing)
    made: int = 0


@dataclass(eq=False)
class SimulatedAnswer:
    """What one request is told. A stream: the opening with its first token, each token, the closing.

    n           choices to each prompt, one prompt's after the other's
    usage       which of a stream's chunks count the tokens
    token_ids   whether to tell them, of the prompts and of the answers
    block_size  of the prefix cache; 0 if there is none
    details     whether to tell what the cache had
    metrics     whether to tell when it got on; never of several choices
    """

    chat: bool
    id: str
    model: str
    bytes_per_token: float
    choices: list[Choice]
    n: int = 1
    usage: Literal["", "final", "continuous"] = ""
    token_ids: bool = False
    block_size: int = 0
    details: bool = True
    metrics: bool = True

    def __post_init__(self) -> None:
        self._created = int(time.time())
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        self._event = b"data: " + _encode(head)[:-1] + b',"choices":['

    def whole(self) -> bytes:
        """Once all tokens have come."""
        shared: dict[str, Any] = {"prompt_logprobs": None, "prompt_token_ids": self._prompt_ids(self.choices[0])}
        metrics = self._metrics()
        body = {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [self._choice(choice) for choice in self.choices],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {
                **self._counts(),
                "prompt_tokens_details": {"multimodal_tokens": None, **self._details()} if self.details else None,
                "completion_tokens_details": None,
            },
            **({**shared, "prompt_text": None} if self.chat else {}),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": {**metrics, "speculative_decoding": None} if metrics else None,
        }
        return _encode(body)

    def opening(self) -> bytes:
        """The roles of a chat's answers."""
        if not self.chat:
            return b""
        end = b',"prompt_token_ids":%b,"prompt_text":null' % _encode(self._prompt_ids(self.choices[0]))
        return b"".join([self._chunk(_ROLE % choice.index, self._count_so_far(choice), end) for choice in self.choices])

    def token(self, choice: Choice) -> bytes:
        said = answer_token(choice.made, self.bytes_per_token)
        ids = b"[%d]" % token_id(said) if self.token_ids else b"null"
        prompt_ids = b"null" if self.chat or choice.made else _encode(self._prompt_ids(choice))
        choice.made += 1
        last = choice.made == choice.sequence.output_tokens
        reason = choice.finish_reason.encode()
        if not self.chat:
            event = _TEXT_TOKEN % (choice.index, said, b'"%b"' % reason if last else b"null", prompt_ids, ids)
        elif last:
            event = _CHAT_LAST % (choice.index, said, reason, ids)
        else:
            event = _CHAT_TOKEN % (choice.index, said, ids)
        return self._chunk(event, self._count_so_far(choice), _END if last and not self.usage else b"")

    def closing(self) -> bytes:
        if not self.usage:
            return DONE
        usage: dict[str, Any] = dict(self._counts())
        if self.details:
            usage["prompt_tokens_details"] = _told(self._details())
        end = {"usage": usage, "system_fingerprint": FINGERPRINT}
        if metrics := self._metrics():
            end["metrics"] = _told(metrics)
        return self._chunk(b"", b"," + _encode(end)[1:-1]) + DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self.model}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        tokens = answer(choice.sequence.output_tokens, self.bytes_per_token)
        text = decode([tokens.data])
        end = {
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": None,
            "token_ids": tokens.ids if self.token_ids else None,
            "routed_experts": None,
        }
        if self.chat:
            nothing = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
            return {"index": choice.index, "message": {"role": "assistant", "content": text, **nothing}, **end}
        prompt_ids = self._prompt_ids(choice)
        return {"index": choice.index, "text": text, **end, "prompt_logprobs": None, "prompt_token_ids": prompt_ids}

    def _chunk(self, choices: bytes, *end: bytes) -> bytes:
        return b"%b%b]%b}\n\n" % (self._event, choices, b"".join(end))

    def _prompt_ids(self, choice: Choice) -> list[int] | None:
        return list(choice.prompt.ids) if self.token_ids else None

    def _counts(self) -> dict[str, int]:
        prompt = sum(choice.sequence.prompt_tokens for choice in self.choices[:: self.n])
        made = sum(choice.sequence.output_tokens for choice in self.choices)
        return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}

    def _count_so_far(self, choice: Choice) -> bytes:
        if self.usage != "continuous":
            return b""
        prompt = choice.sequence.prompt_tokens
        counts = {"prompt_tokens": prompt, "total_tokens": prompt + choice.made, "completion_tokens": choice.made}
        return b',"usage":' + _encode({**counts, "completion_tokens_details": None} if self.chat else counts)

    def _details(self) -> dict[str, int | None]:
        """What the cache had, and what of the prompt it had not and has now; of the first prompt, if of several."""
        sequence = self.choices[0].sequence
        kept = sequence.prompt_tokens // self.block_size * self.block_size if self.block_size else 0
        created = max(0, kept - sequence.cached)
        return {"cached_tokens": sequence.cached, "created_cache_tokens": created if self.chat else None}

    def _metrics(self) -> dict[str, float | None]:
        return self.choices[0].timing.milliseconds() if self.metrics and len(self.choices) == 1 else {}


def _told(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
