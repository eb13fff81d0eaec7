"""Bootstrap confidence intervals."""

from math import inf, isnan, nan
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report import bootstrap
from loadtest.results.records import percentile

WAITS = st.one_of(st.floats(0, 1e6), st.just(inf))


@given(st.lists(st.tuples(WAITS, st.integers(0, 3)), min_size=1), st.sampled_from([5, 50, 95, 99]))
def test_a_replicates_percentile_is_that_of_its_sample(drawn: list[tuple[float, int]], q: float) -> None:
    values, counts = np.array([value for value, _ in drawn]), np.array([[count for _, count in drawn]])
    repeated = [value for value, count in drawn for _ in range(count)]
    found = bootstrap.percentiles(values, counts, q)[0]
    assert found == pytest.approx(percentile(repeated, q)) if repeated else isnan(found)


def test_missing_values_are_excluded() -> None:
    counts = np.array([[1, 1, 5, 1]])
    values = np.array([3.0, 1.0, nan, 2.0])
    assert bootstrap.percentiles(values, counts, 50).tolist() == [2.0]
    assert bootstrap.means(values, counts).tolist() == [2.0]
    assert isnan(bootstrap.percentiles(np.array([nan, nan]), np.ones((1, 2), int), 50)[0])
    assert isnan(bootstrap.percentiles(np.array([1.0]), np.zeros((1, 1), int), 50)[0])


def test_each_replicate_draws_as_many_as_there_were() -> None:
    draws = bootstrap.draw([30, 0, 50], 0)
    assert (draws.runs.sum(axis=1) == 3).all()
    of_runs = [draws.requests[:, :30].sum(axis=1), draws.requests[:, 30:].sum(axis=1)]
    assert (of_runs[0] == 30 * draws.runs[:, 0]).all()
    assert (of_runs[1] == 50 * draws.runs[:, 2]).all()
    assert draws.runs.std() > 0


def test_random_streams_are_reproducible_and_distinct() -> None:
    first, again, other = (bootstrap.draw([40], stream).requests for stream in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_very_many_requests_get_fewer_replicates() -> None:
    assert len(bootstrap.draw([20], 0).requests) == bootstrap.REPLICATES
    assert len(bootstrap.draw([bootstrap.MAX_DRAWS // 100], 0).requests) == bootstrap.MIN_REPLICATES


def test_an_interval_excludes_undefined_replicates() -> None:
    assert bootstrap.interval([nan, nan]) is None
    assert bootstrap.interval([nan, *range(1, 42)]) == (2, 40)
    assert bootstrap.interval([1.0] * 10 + [inf] * 30) == (1.0, inf)


def test_intervals_have_about_their_nominal_coverage() -> None:
    """Medians of exponential waits, the second twice as long."""
    random, covered = Random(5), 0
    for trial in range(100):
        one, two = (np.array([random.expovariate(1 / mean) for _ in range(60)]) for mean in (1.0, 2.0))
        drawn = [bootstrap.draw([60], 2 * trial + side).requests for side in (0, 1)]
        ratios = bootstrap.percentiles(two, drawn[1], 50) / bootstrap.percentiles(one, drawn[0], 50)
        within = bootstrap.interval(ratios.tolist())
        covered += within is not None and within[0] <= 2 <= within[1]
    assert 88 <= covered <= 100
