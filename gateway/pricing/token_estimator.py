"""How many tokens a prompt is, before anybody has counted them.

Text is priced by the bytes that a token has, learned for prose, for code and for scripts beyond ASCII apart, and each
message by what the chat template puts around it; what the client sent as token ids is counted.
"""

from gateway.pricing.prompt import PromptSize
from gateway.pricing.regression import Regression

# English text under the usual vocabularies; the first answers correct it.
BYTES_PER_TOKEN = 4.0
BYTES_PER_MARK = 2.0
BYTES_PER_WIDE = 3.0
TOKENS_PER_MESSAGE = 4.0

# Of any real text; a count that says otherwise is broken, and must not be learned from.
PLAUSIBLE_BYTES_PER_TOKEN = (0.5, 16.0)
# Tokens that a message's template and the tools' instructions may add to its text, at the most.
TEMPLATE_TOKENS = 4096


class TokenEstimator:
    def __init__(self, bytes_per_token: float = BYTES_PER_TOKEN) -> None:
        self._prior = 1 / bytes_per_token, 1 / BYTES_PER_MARK, 1 / BYTES_PER_WIDE, TOKENS_PER_MESSAGE
        self.reset()

    def reset(self) -> None:
        self.regression = Regression(self._prior)

    @property
    def bytes_per_token(self) -> float:
        """Of prose."""
        return 1 / max(self.regression.theta[0], 1 / PLAUSIBLE_BYTES_PER_TOKEN[1])

    def tokens(self, size: PromptSize) -> float:
        """Not whole, and 0 for nothing."""
        return size.tokens + self.regression.at(_row(size))

    def min_tokens(self, size: PromptSize) -> int:
        """So many tokens it has in any case: no vocabulary has longer ones."""
        return size.tokens + int(size.text_bytes / PLAUSIBLE_BYTES_PER_TOKEN[1])

    def plausible(self, size: PromptSize, tokens: int) -> bool:
        """Whether a prompt of that size can have so many tokens."""
        most = size.tokens + size.text_bytes / PLAUSIBLE_BYTES_PER_TOKEN[0] + TEMPLATE_TOKENS * (size.messages + 1)
        return max(1, self.min_tokens(size)) <= tokens <= most

    def learn(self, size: PromptSize, tokens: int) -> None:
        """Correct the ratios by a true count, if it can be one, of a prompt that is all text."""
        if size.tokens or not size.text_bytes or tokens <= 0:
            return
        if PLAUSIBLE_BYTES_PER_TOKEN[0] <= size.text_bytes / tokens <= PLAUSIBLE_BYTES_PER_TOKEN[1]:
            self.regression.observe(_row(size), tokens)


def _row(size: PromptSize) -> tuple[float, float, float, float]:
    return size.words, size.marks, size.wide, size.messages
