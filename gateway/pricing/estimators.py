"""Learners: each takes samples one by one, keeps a few sums or a bounded window, and no one sample does it harm."""

from bisect import bisect_right, insort
from collections import deque
from math import ceil

MEMORY = 0.97  # of the sums so far, after one more sample
WINDOW = 256
ANSWER_TOKENS = 256  # before any answer was seen
MARK = 0.9  # the percentile that `Errors` states
A_WAIT_S = 2.0  # what is shorter, nobody asks about
HORIZONS_S = (4.0, 16.0)  # between near and middling, and that and far
FEW = 9  # errors, with which a 90th percentile cannot be told from the largest


class Ratio:
    """Sums of two quantities, the recent weighing most, and `belief` in the value at the start."""

    def __init__(self, start: float, *, belief: float, low: float = 0.1, high: float = 10.0) -> None:
        self._low, self._high = low, high
        self._above, self._below = start * belief, belief

    @property
    def value(self) -> float:
        return min(self._high, max(self._low, self._above / self._below))

    def saw(self, above: float, below: float) -> None:
        if not below > 0:
            return
        # A sample far off is believed only so far: it may be right, and then more of its kind will come.
        above = min(max(0.0, above), 4 * self.value * below)
        self._above = self._above * MEMORY + above
        self._below = self._below * MEMORY + below


class Window:
    """The last `WINDOW` values, in order of size."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self.ordered: list[float] = []

    def __len__(self) -> int:
        return len(self.ordered)

    def add(self, value: float) -> None:
        self._recent.append(value)
        insort(self.ordered, value)
        if len(self._recent) > WINDOW:
            del self.ordered[bisect_right(self.ordered, self._recent.popleft()) - 1]


class Accuracy:
    """How far predictions have been off, of late: (predicted - true) / true."""

    def __init__(self) -> None:
        self._off = Window()

    def saw(self, predicted: float, true: float) -> None:
        if true > 0:
            self._off.add(max(-1.0, min(10.0, predicted / true - 1)))

    @property
    def bias(self) -> float | None:
        """The median error; None before there was any."""
        return _quantile(self._off.ordered, 0.5)

    def error(self, quantile: float = 0.5) -> float | None:
        """A quantile of the errors' sizes."""
        return _quantile(sorted(map(abs, self._off.ordered)), quantile)


class Lengths:
    """How many tokens answers have."""

    def __init__(self) -> None:
        self._seen = Window()

    def saw(self, tokens: int) -> None:
        if tokens > 0:
            self._seen.add(tokens)

    def expect(self, so_far: int, max_tokens: int | None = None, quantile: float = 0.5) -> int:
        """Of an answer in the end: a quantile of those that were longer than this one is so far."""
        seen = self._seen.ordered
        longer = bisect_right(seen, so_far)
        if longer < len(seen):
            tokens = int(seen[longer + int(quantile * (len(seen) - longer))])
        else:
            tokens = max(0 if seen else ANSWER_TOKENS, so_far + so_far // 2)
        return max(so_far + 1, min(tokens, max_tokens) if max_tokens else tokens)


class Errors:
    """The ratio of what came to what was said, near and far apart: what makes a median a 90th percentile.

    It is read off the last errors as split conformal prediction does, (n + 1)·0.9 from below, so it holds whatever the
    forecast's own faults are, as long as the next errors are like the last ones. Later arrivals are in it. Waits too
    short to be asked about teach nothing: most forecasts are of them, and they are right.
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._seen = [Window() for _ in range(len(HORIZONS_S) + 1)]

    def saw(self, said_s: float, took_s: float) -> None:
        if max(said_s, took_s) >= A_WAIT_S:
            self._of(said_s).add(min(100.0, max(0.0, took_s) / max(said_s, 0.1)))

    def factor(self, said_s: float) -> float:
        seen = self._of(said_s)
        rank = ceil((len(seen) + 1) * MARK)
        if len(seen) < FEW:
            return max(self._prior, *seen.ordered, self._prior)
        return seen.ordered[rank - 1]

    def _of(self, said_s: float) -> Window:
        return self._seen[bisect_right(HORIZONS_S, said_s)]


def _quantile(ordered: list[float], quantile: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else None
