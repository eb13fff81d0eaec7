"""What becomes of a request at the simulated vLLM: sequences for the engine, or a refusal."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from uuid import uuid4

from loadtest.spark.engine import Sequence
from loadtest.spark_server.answer import Choice, SimulatedAnswer
from loadtest.spark_server.api import Chat, TextCompletion, heading
from loadtest.spark_server.body import Refused, bad
from loadtest.spark_server.live_engine import LiveEngine
from loadtest.spark_server.metrics import SimMetrics
from loadtest.spark_server.options import ServerOptions
from loadtest.spark_server.tokens import Tokens, answer, block_keys

_FULL = {
    "max_num_queued_reqs": "The engine is currently busy and cannot accept new requests.",
    "max_num_queued_tokens": "The engine has reached its prefill token backlog limit.",
}


@dataclass(frozen=True)
class Frontend:
    """How the API server was started, and the engine behind it, whose own flags are in its profile."""

    live: LiveEngine
    metrics: SimMetrics
    model: str
    options: ServerOptions

    def accept(self, body: Chat | TextCompletion, headers: Mapping[str, str]) -> SimulatedAnswer:
        """The answer that will be given. Where several things are wrong, what vLLM finds first is refused."""
        body.check()
        self.check_model(body.model)
        self._check_queue(body.choices)
        profile, priority = self.live.engine.profile, _priority(body.priority, headers)
        choices: list[Choice] = []
        for prompt in body.prompts(self.options.bytes_per_token):
            kind, wanted = heading(prompt) or ("mixed", None)
            tokens, finish_reason = body.length(prompt, wanted, profile.max_model_len)
            self._check_cache(prompt.count + tokens)
            keys = self._keys(prompt, tokens, body.cache_salt)
            for _ in range(body.choices):
                sequence = Sequence(prompt.count, tokens, text=kind, priority=priority, keys=keys)
                choices.append(Choice(len(choices), prompt, sequence, finish_reason))
        name = headers.get("x-request-id") or body.request_id or uuid4().hex[:16]
        return SimulatedAnswer(
            chat=isinstance(body, Chat),
            id=f"chatcmpl-{name}" if isinstance(body, Chat) else f"cmpl-{name}",
            model=self.model,
            bytes_per_token=self.options.bytes_per_token,
            choices=choices,
            n=body.choices,
            usage=body.usage,
            token_ids=bool(body.return_token_ids),
            block_size=profile.block_size if profile.enable_prefix_caching else 0,
            details=self.options.enable_prompt_tokens_details,
            metrics=self.options.enable_per_request_metrics,
        )

    def check_model(self, name: str | None) -> None:
        if name and name != self.model:
            message = f"The model `{name}` does not exist. Valid aliases: {self.model}."
            raise Refused(404, "NotFoundError", message, "model")

    def _check_queue(self, choices: int) -> None:
        """As roughly as vLLM: of several prompts one counts, and a long one passes if there was room for a short."""
        requests, tokens = self.options.max_num_queued_reqs, self.options.max_num_queued_tokens
        if requests is not None and self.live.unfinished + choices > requests:
            self._refuse("max_num_queued_reqs")
        if tokens is not None and self.live.prefilling >= tokens:
            self._refuse("max_num_queued_tokens")

    def _refuse(self, reason: str) -> None:
        self.metrics.rejected(reason)
        message = f"{_FULL[reason]} Please try again later or on a different instance."
        raise Refused(503, HTTPStatus.SERVICE_UNAVAILABLE.phrase, message)

    def _check_cache(self, tokens: int) -> None:
        """vLLM would not have started with a cache that a whole context does not fit into."""
        profile = self.live.engine.profile
        if profile.kv_cache_tokens is None:
            return
        blocks, total = -(-tokens // profile.block_size), profile.kv_cache_tokens // profile.block_size
        if blocks > total:
            raise bad(f"A prompt and an answer of {tokens} tokens need {blocks} of the KV cache's {total} blocks.")

    def _keys(self, prompt: Tokens, tokens: int, salt: str | None) -> tuple[int, ...]:
        profile = self.live.engine.profile
        if not profile.enable_prefix_caching:
            return ()
        return block_keys(prompt, answer(tokens, self.options.bytes_per_token), profile.block_size, salt or "")


def _priority(said: int, headers: Mapping[str, str]) -> int:
    """The header's, if that is a number."""
    try:
        return int(headers["x-vllm-priority"])
    except (KeyError, ValueError):
        return said
