"""The bootstrap: how far a figure might be another one, had chance dealt out the same requests otherwise.

A replicate draws as many requests as there were, with replacement; it is kept as how often each was drawn. Of several
runs it draws runs first, and then requests inside them (Davison and Hinkley 1997, §3.8). Two groups that were sent the
same plan share their draws, so that what the requests have in common does not blur what tells the groups apart.

Requests of one run wait for each other, so from one run alone an interval says how much hangs on which requests were
sent, and too little of how much another run would differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.results.records import percentile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

SEED = 20_260_101
REPLICATES, MIN_REPLICATES = 1000, 200
MAX_DRAWS = 10_000_000  # of all replicates: what fits into memory with ease
LEVEL = 95.0


@dataclass(frozen=True)
class Draws:
    """How often each run, and each request, run after run, was drawn: a row for each replicate."""

    runs: "Counts"
    requests: "Counts"


def draw(sizes: Sequence[int], stream: int) -> Draws:
    """Of runs with so many requests. Each stream has numbers of its own, always the same."""
    import numpy as np

    random = np.random.default_rng([SEED, stream])
    replicates = max(MIN_REPLICATES, min(REPLICATES, MAX_DRAWS // max(1, sum(sizes))))
    runs = random.multinomial(len(sizes), [1 / len(sizes)] * len(sizes), size=replicates)
    requests = [
        random.multinomial(times * size, [1 / size] * size) if size else np.zeros((replicates, 0), np.int64)
        for times, size in zip(runs.T, sizes, strict=True)
    ]
    return Draws(runs, np.concatenate(requests, axis=1))


def percentiles(values: "Floats", counts: "Counts", q: float) -> "Floats":
    """Of each replicate, as `records.percentile`. NaN counts as no value at all."""
    import numpy as np

    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    ordered, reached = values[order], counts[:, order].cumsum(axis=1)
    if not len(ordered):
        return np.full(len(counts), np.nan)
    position = (reached[:, -1] - 1) * q / 100
    below = np.floor(position)

    def at(place: "Floats") -> "Counts":
        found: Counts = (reached <= place[:, None]).sum(axis=1)
        return np.minimum(found, len(ordered) - 1)

    low, high = ordered[at(below)], ordered[at(below + 1)]
    with np.errstate(invalid="ignore"):
        between = low + (high - low) * (position - below)
    exact = (position == below) | (low == high)  # no arithmetic with infinities
    return np.where(reached[:, -1] == 0, np.nan, np.where(exact, low, between))


def means(values: "Floats", counts: "Counts") -> "Floats":
    """Of each replicate. NaN counts as no value at all."""
    import numpy as np

    known = ~np.isnan(values)
    drawn = counts[:, known]
    with np.errstate(invalid="ignore"):
        return np.asarray(drawn @ values[known] / drawn.sum(axis=1))


def interval(ratios: Sequence[float]) -> tuple[float, float] | None:
    """The middle of them; None if there is no ratio."""
    known = [ratio for ratio in ratios if ratio == ratio]
    if not known:
        return None
    tail = (100 - LEVEL) / 2
    return percentile(known, tail), percentile(known, 100 - tail)
