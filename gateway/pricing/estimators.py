"""Online estimators: each takes samples one by one, keeps sums or a bounded window, and withstands a wrong sample."""

from bisect import bisect_right, insort
from collections import deque
from math import ceil

DECAY = 0.97  # of the sums so far, at each later sample
WINDOW_SIZE = 256
PRIOR_ANSWER_TOKENS = 256  # of an answer, before there was any
STATED_QUANTILE = 0.9  # of the errors, as `ForecastErrors` states it
MIN_WAIT_S = 2.0  # nobody asks about a shorter wait
HORIZONS_S = (4.0, 16.0)  # between near and middling, and that and far
MIN_ERRORS = 9  # of fewer, the 90th percentile is no other than the largest


class Ratio:
    """The ratio of two sums, in which recent samples weigh most.

    prior_weight  of `prior`, in units of what is below the line
    """

    def __init__(self, prior: float, *, prior_weight: float, low: float = 0.1, high: float = 10.0) -> None:
        self._low, self._high = low, high
        self._above, self._below = prior * prior_weight, prior_weight

    @property
    def value(self) -> float:
        return min(self._high, max(self._low, self._above / self._below))

    def observe(self, above: float, below: float) -> None:
        if not below > 0:
            return
        # A sample far off is believed only so far: it may be right, and then more of its kind will come.
        above = min(max(0.0, above), 4 * self.value * below)
        self._above = self._above * DECAY + above
        self._below = self._below * DECAY + below


class Window:
    """The last `WINDOW_SIZE` values, in order of size."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self.ordered: list[float] = []

    def __len__(self) -> int:
        return len(self.ordered)

    def add(self, value: float) -> None:
        self._recent.append(value)
        insort(self.ordered, value)
        if len(self._recent) > WINDOW_SIZE:
            del self.ordered[bisect_right(self.ordered, self._recent.popleft()) - 1]


class Accuracy:
    """How far predictions have been off, of late: (predicted - true) / true."""

    def __init__(self) -> None:
        self._off = Window()

    def observe(self, predicted: float, true: float) -> None:
        if true > 0:
            self._off.add(max(-1.0, min(10.0, predicted / true - 1)))

    @property
    def bias(self) -> float | None:
        """The median error; None before there was any."""
        return _quantile(self._off.ordered, 0.5)

    def error(self, quantile: float = 0.5) -> float | None:
        """A quantile of the errors' sizes."""
        return _quantile(sorted(map(abs, self._off.ordered)), quantile)


class AnswerLengths:
    """How many tokens answers have."""

    def __init__(self) -> None:
        self._lengths = Window()

    def observe(self, tokens: int) -> None:
        if tokens > 0:
            self._lengths.add(tokens)

    def expect(self, so_far: int, max_tokens: int | None = None, quantile: float = 0.5) -> int:
        """Of an answer in the end: a quantile of those that were longer than this one is so far."""
        lengths = self._lengths.ordered
        longer = bisect_right(lengths, so_far)
        if longer < len(lengths):
            tokens = int(lengths[longer + int(quantile * (len(lengths) - longer))])
        else:
            tokens = max(0 if lengths else PRIOR_ANSWER_TOKENS, so_far + so_far // 2)
        return max(so_far + 1, min(tokens, max_tokens) if max_tokens else tokens)


class ForecastErrors:
    """The ratio of actual waits to forecast ones, by horizon: what makes a 90th percentile of a median.

    It is read off the last errors as split conformal prediction does, (n + 1)·0.9 from below, so it holds whatever the
    forecast's own faults are, as long as the next errors are like the last ones. Later arrivals are in it. Waits too
    short to be asked about teach nothing: most forecasts are of them, and they are right.
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._ratios = [Window() for _ in range(len(HORIZONS_S) + 1)]

    def observe(self, forecast_s: float, actual_s: float) -> None:
        if max(forecast_s, actual_s) >= MIN_WAIT_S:
            self._at(forecast_s).add(min(100.0, max(0.0, actual_s) / max(forecast_s, 0.1)))

    def factor(self, forecast_s: float) -> float:
        ratios = self._at(forecast_s)
        rank = ceil((len(ratios) + 1) * STATED_QUANTILE)
        if len(ratios) < MIN_ERRORS:
            return max(self._prior, *ratios.ordered, self._prior)
        return ratios.ordered[rank - 1]

    def _at(self, forecast_s: float) -> Window:
        return self._ratios[bisect_right(HORIZONS_S, forecast_s)]


def _quantile(ordered: list[float], quantile: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else None
