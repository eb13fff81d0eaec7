"""How many tokens a prompt is, before anybody has counted them.

Text is priced by a learned ratio of UTF-8 bytes to tokens; what the client sent as token ids is counted.
"""

from collections.abc import Sequence

from gateway.completion import Prompt

# English text under the usual vocabularies; the first answers correct it.
BYTES_PER_TOKEN = 4.0

# Tokens' worth of belief in the start value, and how much of what was seen remains after one more sample.
PRIOR_TOKENS = 500
MEMORY = 0.98

# No vocabulary leaves this range on real text; what does is a broken count, and must not be learned from.
PLAUSIBLE = (0.5, 16.0)


class Estimator:
    """Bytes per token, from all text seen and its true counts, the recent weighing most.

    Sums are kept instead of a mean of ratios, so long prompts, whose price matters, count for what they are, and
    the few tokens of a chat template on a short one count for little.
    """

    def __init__(self, bytes_per_token: float = BYTES_PER_TOKEN) -> None:
        self._bytes = PRIOR_TOKENS * bytes_per_token
        self._tokens = float(PRIOR_TOKENS)

    @property
    def bytes_per_token(self) -> float:
        return self._bytes / self._tokens

    def tokens(self, prompt: Prompt) -> int:
        """At least one token; whole tokens."""
        return max(1, prompt.tokens + round(prompt.text_bytes / self.bytes_per_token))

    def least(self, prompt: Prompt) -> int:
        """So many tokens it has in any case: no vocabulary has longer ones."""
        return prompt.tokens + int(prompt.text_bytes / PLAUSIBLE[1])

    def learn(self, prompts: Sequence[Prompt], prompt_tokens: int) -> None:
        """Correct the ratio by a true count, if the prompts are all text and that count can be true."""
        text_bytes = sum(prompt.text_bytes for prompt in prompts)
        if any(prompt.tokens for prompt in prompts) or prompt_tokens <= 0:
            return
        if not PLAUSIBLE[0] <= text_bytes / prompt_tokens <= PLAUSIBLE[1]:
            return
        self._bytes = self._bytes * MEMORY + text_bytes
        self._tokens = self._tokens * MEMORY + prompt_tokens
