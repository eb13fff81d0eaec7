"""Which prompt is measured next, and how many streams, in the time that is left. It has no clock.

Prompts grow as long as what is left has room for one more of the same; then each size is measured again, those seen
least first, so that no one bad moment of the engine is all that is known of a size.
"""

from collections.abc import Callable, Sequence

FIRST_TOKENS = 128  # tokens: less, and the template and the heading are half of it
GROWTH = 4
REPEATS = 4  # that a size is measured, at the most
HEADROOM = 3.0  # times that the largest must fit into what is left: once more, and as long for the others
SHRINK = 0.75  # of a size that does not fit
MIN_GROWTH = 1.5  # times the last size, below which another teaches nothing
MAX_STREAMS = 64
STREAM_REPEATS = 3


class Prompts:
    """most  tokens that a prompt may have"""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[int, list[float]] = {}
        self._grows = True

    def next(self, left_s: float, predict: Callable[[float], float]) -> int | None:
        """Its tokens; None when there is nothing more to learn in that time."""
        if not self._seen:
            return min(FIRST_TOKENS, self._most)
        if self._grows:
            top = max(self._seen)
            size = min(top * GROWTH, self._most)
            while size >= MIN_GROWTH * top:
                if HEADROOM * self._expected(size, predict) <= left_s:
                    return size
                size = int(SHRINK * size)
            self._grows = False
        again = sorted((len(seen), -size) for size, seen in self._seen.items() if len(seen) < REPEATS)
        return next((-size for _, size in again if self._expected(-size, predict) <= left_s), None)

    def took(self, size: int, seconds: float) -> None:
        self._seen.setdefault(size, []).append(seconds)

    def refused(self, size: int) -> None:
        """The engine takes none so large, or not in time."""
        self._most = min(self._most, size - 1)
        self._seen.pop(size, None)
        self._grows = False

    def _expected(self, size: int, predict: Callable[[float], float]) -> float:
        """What was seen; of a larger one what is predicted, but no less than the last by its size, for the prediction
        may be of another machine."""
        if seen := self._seen.get(size):
            return max(seen)
        top = max(self._seen)
        return max(predict(size), min(self._seen[top]) * size / top)


def streams(done: Sequence[int], left_s: float, most: int, expected: Callable[[int], float]) -> int | None:
    """How many at once, after those that were: one in any case, then GROWTH times as many while there is time, then
    the same again."""
    if not done:
        return 1
    size = GROWTH * max(done)
    if size > min(most, MAX_STREAMS) or expected(size) > left_s:
        size = min(set(done), key=lambda each: (done.count(each), each))
    return size if done.count(size) < STREAM_REPEATS and expected(size) <= left_s else None
