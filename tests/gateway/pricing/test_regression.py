"""Fitting coefficients: accurate with few samples, robust to outliers, never absurd, bounded in memory."""

from math import isfinite
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pricing.regression import KEPT_PER_MAGNITUDE, Regression

# A prefill curve: a constant, seconds a token, seconds a token squared. Its columns differ by nine powers of ten.
TRUE = 0.2, 3e-4, 1e-8
SIZES = (60, 500, 4000, 25_000)


def row(tokens: float) -> tuple[float, float, float]:
    return 1.0, tokens, tokens * tokens


def true(tokens: float, factor: float = 1.0) -> float:
    return factor * sum(theta * x for theta, x in zip(TRUE, row(tokens), strict=True))


def start(factor: float = 2.0) -> Regression:
    return Regression([factor * theta for theta in TRUE])


def sizes(random: Random, count: int) -> list[int]:
    return [int(2 ** random.uniform(6, 14.6)) for _ in range(count)]


def taught(regression: Regression, random: Random, count: int, factor: float = 1.0, noise: float = 0.1) -> Regression:
    for tokens in sizes(random, count):
        regression.observe(row(tokens), true(tokens, factor) * random.gauss(1, noise))
    return regression


def worst(regression: Regression, factor: float = 1.0) -> float:
    return max(abs(regression.at(row(tokens)) / true(tokens, factor) - 1) for tokens in SIZES)


# What it learns.


def test_without_samples_the_fit_is_the_prior() -> None:
    regression = start()
    assert regression.theta == pytest.approx([2 * theta for theta in TRUE])
    assert regression.at(row(1000)) == pytest.approx(2 * true(1000))


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_prior_that_is_off_by_a_factor_of_two_is_corrected(factor: float, seed: int) -> None:
    assert worst(start(factor)) >= 0.5
    assert worst(taught(start(factor), Random(seed), 20)) <= 0.12
    assert worst(taught(start(factor), Random(seed), 100)) <= 0.06


def test_exact_samples_are_fitted_up_to_the_weight_of_the_prior() -> None:
    assert worst(taught(start(), Random(1), 100, noise=0.0)) <= 0.01


def test_a_prior_of_another_shape_is_corrected() -> None:
    """A machine whose attention is four times as dear as the profile says, and its constant a third."""
    regression = Regression((3 * TRUE[0], TRUE[1], TRUE[2] / 4))
    assert worst(taught(regression, Random(1), 100)) <= 0.1


def test_a_coefficient_with_prior_0_is_learned() -> None:
    regression = taught(Regression((*TRUE[:2], 0.0)), Random(1), 100)
    assert worst(regression) <= 0.1
    assert regression.theta[2] > 0


def test_samples_of_one_size_scale_the_whole_curve() -> None:
    """Nothing was seen of others: they are taken to be off as these are."""
    regression = start()
    for _ in range(30):
        regression.observe(row(1000), true(1000))
    assert worst(regression) <= 0.1


def test_long_samples_are_kept_among_many_short_ones() -> None:
    regression = taught(start(), Random(1), 40)
    random = Random(2)
    for _ in range(2000):
        tokens = random.randint(50, 300)
        regression.observe(row(tokens), true(tokens) * random.gauss(1, 0.1))
    assert worst(regression) <= 0.1


@pytest.mark.parametrize("drift", [1 / 1.5, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_follows_a_machine_that_became_slower(drift: float, seed: int) -> None:
    """Or faster: most of it within 60 samples, whichever they are, and all of it within 120."""
    random = Random(seed)
    regression = taught(start(1.0), random, 60)
    taught(regression, random, 60, drift)
    assert worst(regression, drift) <= 0.3
    taught(regression, random, 60, drift)
    assert worst(regression, drift) <= 0.12


def test_a_negative_coefficient_is_fixed_at_0_and_the_others_are_refitted() -> None:
    """Seconds that grow ever slower, which no square does: the best line is left."""
    regression = start(1.0)
    for tokens in sizes(Random(1), 200):
        regression.observe(row(tokens), 0.2 + 3e-4 * tokens - 4e-9 * tokens**2)
    assert regression.theta[2] == 0
    assert abs(sum(regression.errors())) / len(regression.errors()) <= 0.05
    assert max(map(abs, regression.errors())) <= 0.35


# What does not move it.


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("wrong", [10.0, 100.0, 1e6, 0.1, 1e-3])
@pytest.mark.parametrize("seed", range(3))
def test_a_quarter_of_wrong_samples_moves_the_fit_little(factor: float, wrong: float, seed: int) -> None:
    """In any order, and the first ones among them."""
    random = Random(seed)
    marks = [True] * 10 + [False] * 30
    random.shuffle(marks)
    regression = start(factor)
    for outlier, tokens in zip(marks, sizes(random, 40), strict=True):
        regression.observe(row(tokens), true(tokens) * random.gauss(1, 0.1) * (wrong if outlier else 1))
    assert worst(regression) <= 0.15


def test_a_wrong_first_sample_moves_the_fit_little() -> None:
    """An engine compiles at its first prompt."""
    regression = start(1.0)
    regression.observe(row(1000), 50 * true(1000))
    assert worst(regression) <= 0.5
    taught(regression, Random(1), 5)
    assert worst(regression) <= 0.2


def test_wrong_samples_do_not_evict_right_ones() -> None:
    regression = taught(start(), Random(1), 100)
    before = regression.theta
    regression.observe(row(25_000), 1000 * true(25_000))
    assert regression.theta == pytest.approx(before, rel=0.05)


@settings(max_examples=30)
@given(st.data())
def test_outliers_at_any_position_do_not_move_the_curve(data: st.DataObject) -> None:
    random = Random(1)
    right = [(tokens, random.gauss(1, 0.05)) for tokens in sizes(random, 30)]
    wrong = data.draw(
        st.lists(st.tuples(st.sampled_from(right).map(lambda each: each[0]), st.floats(5, 1e5)), max_size=8)
    )
    regression = start(1.0)
    for tokens, off in data.draw(st.permutations(right + wrong)):
        regression.observe(row(tokens), true(tokens) * off)
    assert worst(regression) <= 0.2


# What it never is.

NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 10**9)
EVERYDAY = st.floats(1e-6, 1e6)


@settings(max_examples=100)
@given(
    st.tuples(EVERYDAY, st.just(0.0) | EVERYDAY, st.just(0.0) | st.floats(1e-12, 1.0)),
    st.lists(
        st.tuples(st.tuples(NUMBERS, NUMBERS, NUMBERS) | EVERYDAY.map(row), NUMBERS | EVERYDAY),
        max_size=60,
    ),
)
def test_coefficients_are_finite_and_not_negative(
    begin: tuple[float, float, float], samples: list[tuple[tuple[float, float, float], float]]
) -> None:
    regression = Regression(begin)
    for x, y in samples:
        before = regression.observations
        took = regression.observe(x, y)
        assert regression.observations == before + took
        assert not took or (y > 0 and isfinite(y))
        assert all(isfinite(theta) and theta >= 0 for theta in regression.theta)


def test_the_number_and_age_of_kept_samples_is_bounded() -> None:
    regression, random = start(), Random(1)
    for _ in range(3000):
        tokens = random.randint(64, 25_000)
        regression.observe(row(tokens), true(tokens))
    magnitudes = 10
    assert len(regression.samples) <= KEPT_PER_MAGNITUDE * magnitudes
    assert regression.samples == sorted(regression.samples, key=lambda sample: sample.number)
    assert [sample.number for sample in regression.samples][-KEPT_PER_MAGNITUDE:][
        0
    ] > 3000 - 2 * KEPT_PER_MAGNITUDE * magnitudes


def test_the_error_on_kept_samples_is_reported() -> None:
    regression = start(1.0)
    for _ in range(10):
        for off in (0.8, 1.0, 1.25):
            regression.observe(row(1000), true(1000) * off)
    errors = sorted(regression.errors())
    assert errors[0] == pytest.approx(-0.2, abs=0.05)
    assert errors[-1] == pytest.approx(0.25, abs=0.05)
