"""How many tokens a prompt is, before anybody has counted them.

Text is priced by the bytes that a token has, learned for prose, for code and for scripts beyond ASCII apart, and each
message by what the chat template puts around it; what the client sent as token ids is counted.
"""

from gateway.pricing.prompt import Size
from gateway.pricing.regression import Regression

# English text under the usual vocabularies; the first answers correct it.
BYTES_PER_TOKEN = 4.0
BYTES_PER_MARK = 2.0
BYTES_PER_WIDE = 3.0
TOKENS_PER_MESSAGE = 4.0

# Bytes that a token has on any real text; beyond it a count is broken, and must not be learned from.
PLAUSIBLE = (0.5, 16.0)
# Tokens that a message's template and the tools' instructions may add to its text, at the most.
TEMPLATE_TOKENS = 4096


class Estimator:
    def __init__(self, bytes_per_token: float = BYTES_PER_TOKEN) -> None:
        self._start = 1 / bytes_per_token, 1 / BYTES_PER_MARK, 1 / BYTES_PER_WIDE, TOKENS_PER_MESSAGE
        self.reset()

    def reset(self) -> None:
        self.regression = Regression(self._start)

    @property
    def bytes_per_token(self) -> float:
        """Of prose."""
        return 1 / max(self.regression.theta[0], 1 / PLAUSIBLE[1])

    def tokens(self, size: Size) -> float:
        """Not whole, and 0 for nothing."""
        return size.tokens + self.regression.at(_row(size))

    def min_tokens(self, size: Size) -> int:
        """So many tokens it has in any case: no vocabulary has longer ones."""
        return size.tokens + int(size.text_bytes / PLAUSIBLE[1])

    def plausible(self, size: Size, tokens: int) -> bool:
        """Whether a prompt of that size can have so many tokens."""
        most = size.tokens + size.text_bytes / PLAUSIBLE[0] + TEMPLATE_TOKENS * (size.messages + 1)
        return max(1, self.min_tokens(size)) <= tokens <= most

    def learn(self, size: Size, tokens: int) -> None:
        """Correct the ratios by a true count, if it can be one, of a prompt that is all text."""
        if size.tokens or not size.text_bytes or tokens <= 0:
            return
        if PLAUSIBLE[0] <= size.text_bytes / tokens <= PLAUSIBLE[1]:
            self.regression.saw(_row(size), tokens)


def _row(size: Size) -> tuple[float, float, float, float]:
    return size.words, size.marks, size.wide, size.messages
