"""How long an answer will be, before it is there."""

from bisect import bisect_left, insort
from collections import deque

# The answers that count, and what is taken for granted before the first ones.
WINDOW = 256
FIRST_GUESS = 512


class Answers:
    """The 90th percentile of the answers that came last, in tokens; never more than was asked for."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def expect(self, max_tokens: int | None) -> int:
        enough = len(self._sorted) >= WINDOW // 16
        guess = self._sorted[int(0.9 * (len(self._sorted) - 1))] if enough else FIRST_GUESS
        return guess if max_tokens is None else max(0, min(guess, max_tokens))

    def learn(self, tokens: int) -> None:
        """An answer that ended by itself was so long. What cannot be a count is left out."""
        if tokens < 0:
            return
        if len(self._recent) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(tokens)
        insort(self._sorted, tokens)
