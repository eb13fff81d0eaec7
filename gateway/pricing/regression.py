"""Learning from samples what a known formula's coefficients are, when some of the samples are wrong.

    y = θ₀·x₀ + θ₁·x₁ + ...    with no θ below 0

Least squares of the relative error, reweighted after Huber and then Tukey (Holland and Welsch, 1977), so that a sample
far off counts for little or nothing: an engine that compiles at its first prompt, or preempts, does not spoil a price.
The last few samples of each magnitude are kept, each weighing a little less than a later one. So a run of short
prompts does not wash out what is known of long ones, as recursive least squares with forgetting would; what is kept is
bounded, and is all that there is to save, to draw and to explain.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from math import log2, sqrt
from typing import NamedTuple

KEPT_PER_MAGNITUDE = 16  # samples of a magnitude, which is a power of two
DECAY = 0.985  # of a sample's weight, at each later sample
MIN_WEIGHT = 0.2
# How far each coefficient of the prior may be off, relative to it; the scale of the whole formula is in greater doubt.
# If the samples of a magnitude contradict the fit, the prior is of another kind of machine, and the next doubt holds.
PRIOR_DOUBTS = (0.3, 1.0, 3.0, 10.0)
CONTRADICTION_ERROR = 0.12  # relative error, all to one side,
CONTRADICTING = 0.8, 3  # of this share of a magnitude's samples, and of at least so many
ZERO_PRIOR_SHARE = 0.3  # of y: the room of a coefficient whose prior is 0
MIN_SPREAD = 0.03  # a smaller relative error cannot be told from noise
USUAL_SPREAD = 0.1  # relative error of a sample, against which the doubt of the prior is weighed
SAMPLE_BOUNDS = 1e-9, 1e18  # of a sample's x and y: within them, sums of squares are neither 0 nor infinite

_HUBER, _TUKEY = 1.345, 4.685
_ROUNDS = (_HUBER,) * 5 + (_TUKEY,) * 2

Row = tuple[float, ...]


class Sample(NamedTuple):
    x: Row
    y: float
    number: int  # in the order of observation, from 1


class Regression:
    def __init__(self, prior: Sequence[float]) -> None:
        """`prior` is what the coefficients are taken to be before there are samples. Not all of them may be 0."""
        self.prior: Row = tuple(prior)
        self.observations = 0  # that were samples, whether or not they are still kept
        self._samples: dict[int, deque[Sample]] = {}
        self._theta: Row | None = self.prior

    def observe(self, x: Sequence[float], y: float) -> bool:
        """Whether it is a sample at all: y must be above 0, no x below it, and x must say something about y."""
        row = tuple(x)
        if not (_bounded(y) and all(each == 0 or _bounded(each) for each in row)):
            return False
        if not _bounded(expected := _dot(self.prior, row)):
            return False
        self.observations += 1
        kept = self._samples.setdefault(round(log2(expected)), deque(maxlen=KEPT_PER_MAGNITUDE))
        kept.append(Sample(row, y, self.observations))
        self._theta = None
        return True

    @property
    def theta(self) -> Row:
        if self._theta is None:
            self._theta = self._fit()
        return self._theta

    def at(self, x: Sequence[float]) -> float:
        return _dot(self.theta, x)

    def largest(self, k: int) -> float:
        """The largest x of that number among the samples that are kept; 0 if there are none."""
        return max((sample.x[k] for kept in self._samples.values() for sample in kept), default=0.0)

    @property
    def samples(self) -> list[Sample]:
        """Those that are kept, the oldest first."""
        return sorted((sample for kept in self._samples.values() for sample in kept), key=lambda each: each.number)

    def errors(self) -> list[float]:
        """Of the kept samples, how far the formula is off, relative to what was observed."""
        return [self.at(sample.x) / sample.y - 1 for sample in self.samples]

    def _fit(self) -> Row:
        samples = self.samples
        ages = [max(MIN_WEIGHT, DECAY ** (self.observations - sample.number)) for sample in samples]
        scale = self._scale(samples, ages)
        scaled = tuple(scale * each for each in self.prior)
        rooms = tuple(scale * max(theta, self._room_of_zero(samples, k)) for k, theta in enumerate(self.prior))
        theta = scaled
        for doubt in PRIOR_DOUBTS:
            prior = [(t, (USUAL_SPREAD / doubt / room) ** 2) for t, room in zip(scaled, rooms, strict=True)]
            theta = _reweighted(samples, ages, scaled, prior)
            if not self._contradicts(theta):
                break
        return theta

    def _contradicts(self, theta: Row) -> bool:
        """Whether nearly all samples of a magnitude are off to one side. Single ones go wrong, but not most of them;
        were it not for this, those that a wrong prior is farthest from would be taken for such."""
        share, least = CONTRADICTING
        for kept in self._samples.values():
            if len(kept) >= least:
                off = sorted(sample.y / max(_dot(theta, sample.x), 1e-12) for sample in kept)
                others = int((1 - share) * len(off))
                if off[others] > 1 + CONTRADICTION_ERROR or off[-1 - others] < 1 / (1 + CONTRADICTION_ERROR):
                    return True
        return False

    def _scale(self, samples: list[Sample], weights: list[float]) -> float:
        """How much slower than the prior, by the lower median: what goes wrong goes slow. The prior itself has a vote,
        here and in the spread, so that one sample alone, which may be the one that went wrong, moves little."""
        ratios = [1.0, *(sample.y / _dot(self.prior, sample.x) for sample in samples)]
        return _lower_median(ratios, [1.0, *weights])

    def _room_of_zero(self, samples: list[Sample], k: int) -> float:
        """The coefficient k that would explain ZERO_PRIOR_SHARE of what the prior expects of the samples."""
        total = sum(sample.x[k] for sample in samples)
        return ZERO_PRIOR_SHARE * sum(_dot(self.prior, sample.x) for sample in samples) / total if total > 0 else 1e-12


def _bounded(value: float) -> bool:
    least, most = SAMPLE_BOUNDS
    return least <= value <= most


def _reweighted(samples: list[Sample], ages: list[float], theta: Row, prior: list[tuple[float, float]]) -> Row:
    """From `theta` on. `ages` weigh each sample by its age; `prior` has each coefficient's value and weight."""
    for bound in _ROUNDS:
        expected = [max(_dot(theta, sample.x), 1e-12) for sample in samples]
        off = [sample.y / y - 1 for sample, y in zip(samples, expected, strict=True)]
        spread = max(MIN_SPREAD, 1.4826 * _lower_median([0.0, *map(abs, off)], [1.0, *ages]))
        weights = [
            each * _weight(r / (bound * spread), bound) / (y * y)
            for each, r, y in zip(ages, off, expected, strict=True)
        ]
        theta = _solve(samples, weights, prior)
    return theta


def _weight(r: float, bound: float) -> float:
    if bound == _HUBER:
        return 1.0 if abs(r) <= 1 else 1 / abs(r)
    return (1 - r * r) ** 2 if abs(r) < 1 else 0.0


def _solve(samples: list[Sample], weights: list[float], prior: list[tuple[float, float]]) -> Row:
    """Weighted least squares with a prior (value, weight) for each coefficient; one that would be below 0 is 0."""
    size = len(prior)
    a = [[0.0] * size for _ in range(size)]
    b = [value * weight for value, weight in prior]
    for k, (_, weight) in enumerate(prior):
        a[k][k] = weight
    for sample, weight in zip(samples, weights, strict=True):
        for i, xi in enumerate(sample.x):
            if xi and weight:
                scaled = weight * xi
                b[i] += scaled * sample.y
                for j in range(i, size):
                    a[i][j] += scaled * sample.x[j]
    free = list(range(size))
    while True:
        found = _cholesky([[a[min(i, j)][max(i, j)] for j in free] for i in free], [b[i] for i in free])
        least = min(range(len(free)), key=found.__getitem__)
        if found[least] >= 0 or len(free) == 1:
            break
        del free[least]
    theta = [0.0] * size
    for i, value in zip(free, found, strict=True):
        theta[i] = max(0.0, value)
    return tuple(theta)


def _cholesky(a: list[list[float]], b: list[float]) -> list[float]:
    """Solve a·x = b for a symmetric positive a, scaled to ones: columns differ by many powers of 10."""
    size = len(b)
    scale = [1 / sqrt(a[i][i]) for i in range(size)]
    low = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = a[i][j] * scale[i] * scale[j] - sum(low[i][k] * low[j][k] for k in range(j))
            low[i][j] = sqrt(max(rest, 1e-15)) if i == j else rest / low[j][j]
    x = [each * scale[i] for i, each in enumerate(b)]
    for i in range(size):
        x[i] = (x[i] - sum(low[i][k] * x[k] for k in range(i))) / low[i][i]
    for i in reversed(range(size)):
        x[i] = (x[i] - sum(low[k][i] * x[k] for k in range(i + 1, size))) / low[i][i]
    return [each * scale[i] for i, each in enumerate(x)]


def _dot(theta: Sequence[float], x: Sequence[float]) -> float:
    return sum(t * each for t, each in zip(theta, x, strict=True))


def _lower_median(values: Iterable[float], weights: Sequence[float]) -> float:
    ordered = sorted(zip(values, weights, strict=True))
    half = sum(weights) / 2
    for value, weight in ordered:
        half -= weight
        if half <= 0:
            return value
    return ordered[-1][0]
