"""The prompts of a plan, as the gateway reads them and as the engine's cache knows them."""

from collections.abc import Iterator
from math import ceil

from gateway.pricing.prompt import PrefixHash, Prompt, PromptSize
from loadtest.workloads.plan import Plan, Segment


class Prompts:
    """`bytes_per_token` of the text that the gateway sees, which knows no tokens before the answer."""

    def __init__(self, plan: Plan, bytes_per_token: float, block_size: int) -> None:
        self._plan = plan
        self._bytes_per_token = bytes_per_token
        self._block_size = block_size
        self._chains: dict[tuple[str, ...], int] = {}

    def read(self, number: int) -> Prompt:
        """What the gateway reads of it: bytes, and which beginnings it shares with others."""
        chain: list[PrefixHash] = []
        names: tuple[str, ...] = ()
        end = 0
        segments = self._plan.segments[number]
        for (name, tokens), (following, _) in zip(segments, (*segments[1:], ("", 0)), strict=True):
            names, end = (*names, name), end + tokens
            size = PromptSize(words=ceil(end * self._bytes_per_token))
            chain.append(PrefixHash("\n".join(names).encode(), size, following.startswith("answer ")))
        return Prompt(chain[-1].size, tuple(chain))

    def blocks(self, number: int) -> tuple[int, ...]:
        """Identities of the cache blocks of its prompt and answer: equal where all text up to the block's end is."""
        answer = (f"answer {number}", self._plan.requests[number].answer_tokens)
        return tuple(self._blocks((*self._plan.segments[number], answer)))

    def _blocks(self, segments: tuple[Segment, ...]) -> Iterator[int]:
        names: tuple[str, ...] = ()
        end = block = 0
        for name, tokens in segments:
            names, end = (*names, name), end + tokens
            chain = self._chains.setdefault(names, len(self._chains))
            while (block + 1) * self._block_size <= end:
                yield chain << 24 | block
                block += 1
