"""The engine's prefill and step curves: what makes a sample, subtracting concurrent work, and the fitted profile."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pricing.curves import (
    CURVE_SEQUENCES,
    MARGINAL_BETWEEN,
    PLAUSIBLE_S,
    PrefillCurve,
    PrefillSample,
    StepCurve,
    refined,
)
from gateway.pricing.profile import Profile
from gateway.storage.profile_file import load

# 1 s a prompt, 1 s for 1000 tokens, 1 s for (1000 tokens) squared; a step is 0.1 s for one, and 0.2 s for 11.
ROUND = Profile(
    c_s=1, a_s_per_token=1e-3, b_s_per_token2=1e-6, decode_s_per_token=1e-2, decode_step_s={1: 0.1, 11: 0.2}
)


def curve(start: Profile = ROUND, threshold: int = 0) -> PrefillCurve:
    return PrefillCurve(start, StepCurve(start), 8192, threshold)


def prefill(
    tokens: int, seconds: float, cached: int = 0, queue_s: float | None = 0.0, beside: int = 0
) -> PrefillSample:
    return PrefillSample(tokens, cached, seconds, queue_s, beside)


def taught(prefills: PrefillCurve, truth: Profile, seed: int = 1, count: int = 60, *, with_cache: bool = False) -> None:
    random = Random(seed)
    for _ in range(count):
        tokens = int(2 ** random.uniform(6, 14.6))
        cached = random.randrange(tokens) if with_cache else 0
        seconds = truth.prefill(tokens, cached) * random.gauss(1, 0.1)
        assert prefills.observe(prefill(tokens, seconds, cached))


def off(profile: Profile, truth: Profile) -> float:
    return max(abs(profile.prefill(n, n // 2) / truth.prefill(n, n // 2) - 1) for n in (64, 500, 4000, 25_000))


# Prefill.


@pytest.mark.parametrize("name", ["gemma-4-26b-bf16", "gemma-4-26b-nvfp4"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("with_cache", [False, True])
def test_a_known_profile_is_recovered_from_samples(name: str, factor: float, with_cache: bool) -> None:
    truth = load(name)
    start = truth.scaled(factor)
    prefills = curve(start)
    taught(prefills, truth, with_cache=with_cache)
    assert off(refined(start, prefills, StepCurve(start)), truth) <= 0.1


def test_cached_tokens_are_subtracted_from_the_quadratic_term_too() -> None:
    """Of two prompts with as much left to do, the one behind a long beginning is the dearer."""
    prefills = curve()
    for _ in range(20):
        prefills.observe(prefill(1000, 3.0))
        prefills.observe(prefill(9000, 1 + 1 + 81 - 64, 8000))
    c, a, b = prefills.coefficients
    assert (c, a, b) == pytest.approx((1, 1e-3, 1e-6), rel=0.05)


def test_time_in_the_engines_own_queue_is_not_counted_as_work() -> None:
    prefills = curve()
    for _ in range(20):
        prefills.observe(prefill(1000, 3.0 + 2.0, queue_s=2.0))
    assert prefills.coefficients == pytest.approx((1, 1e-3, 1e-6), rel=0.02)


def test_without_a_queue_time_the_wait_for_the_running_step_is_estimated() -> None:
    prefills = curve()
    for _ in range(20):
        prefills.observe(prefill(1000, 3.0 + 1.5 * 0.2, queue_s=None, beside=11))
        prefills.observe(prefill(1000, 3.0, queue_s=None))
    assert prefills.coefficients == pytest.approx((1, 1e-3, 1e-6), rel=0.03)


def test_concurrent_decoding_is_not_attributed_to_the_prompt() -> None:
    """Sequences that decode add to each step of a prefill: learned from those that had some, and taken off."""
    prefills = curve(threshold=1000)
    truth = Profile(c_s=0.5, a_s_per_token=5e-4, b_s_per_token2=5e-7, decode_s_per_token=0)
    random = Random(1)
    for _ in range(60):
        tokens, beside = random.randint(100, 9000), random.choice((0, 0, 10, 40))
        steps = -(-tokens // 1000) if beside else -(-tokens // 8192)
        more = beside * steps * 0.02 + 0.75 * truth.c_s * (steps - -(-tokens // 8192))
        prefills.observe(prefill(tokens, truth.prefill(tokens) + more, beside=beside))
    assert prefills.coefficients == pytest.approx((0.5, 5e-4, 5e-7), rel=0.1)


def test_concurrent_prefills_are_separated_by_their_size() -> None:
    prefills = curve()
    for _ in range(20):
        prefills.observe(prefill(500, 1.75))
        prefills.observe(PrefillSample(1000, 0, 1 + 2 + 2, 0.0, 0, (1000,)))
        prefills.observe(PrefillSample(1000, 0, 1 + 3 + 3, 0.0, 0, (1000, 1000)))
    assert prefills.coefficients == pytest.approx((1, 1e-3, 1e-6), rel=0.02)


ABSURD = [
    prefill(1000, 0.0),
    prefill(1000, -1.0),
    prefill(1000, float("nan")),
    prefill(1000, float("inf")),
    prefill(1000, PLAUSIBLE_S[1] + 1),
    prefill(1000, 3.0, cached=1000),
    prefill(1000, 3.0, cached=1001),
    prefill(1000, 3.0, cached=-1),
    prefill(0, 3.0),
    prefill(-5, 3.0),
    prefill(1000, 3.0, queue_s=-0.1),
    prefill(1000, 3.0, queue_s=4.0),
    prefill(1000, 3.0, queue_s=2.9),  # hardly anything of it was prefill
    prefill(1000, 3.0, queue_s=float("nan")),
]


@pytest.mark.parametrize("sample", ABSURD, ids=repr)
def test_an_impossible_observation_is_no_sample(sample: PrefillSample) -> None:
    prefills = curve()
    assert not prefills.observe(sample)
    assert prefills.coefficients == pytest.approx((1, 1e-3, 1e-6))


@pytest.mark.parametrize("seed", range(5))
def test_a_quarter_of_wrong_prefills_does_not_move_the_curve(seed: int) -> None:
    """They compiled, were preempted, or shared the engine with somebody of whom nobody knew: ten times as slow."""
    truth = load("gemma-4-26b-bf16")
    start, random = truth.scaled(2), Random(seed)
    prefills = curve(start)
    for number in range(40):
        tokens = int(2 ** random.uniform(6, 14.6))
        wrong = 10 if number % 4 == 0 else 1
        prefills.observe(prefill(tokens, truth.prefill(tokens) * random.gauss(1, 0.1) * wrong))
    assert off(refined(start, prefills, StepCurve(start)), truth) <= 0.15


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            PrefillSample,
            st.integers(-5, 10**6),
            st.integers(-5, 10**6),
            st.floats(),
            st.none() | st.floats(),
            st.integers(0, 500),
            st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
        )
        | st.sampled_from(ABSURD),
        max_size=20,
    ),
    st.lists(st.tuples(st.floats(), st.floats()), max_size=20),
    st.integers(0, 20_000),
)
def test_any_observations_yield_a_valid_profile(
    prefills: list[PrefillSample], steps: list[tuple[float, float]], threshold: int
) -> None:
    step = StepCurve(ROUND)
    both = PrefillCurve(ROUND, step, 8192, threshold)
    for sequences, seconds in steps:
        step.observe(sequences, seconds)
    for each in prefills:
        both.observe(each)
    profile = Profile.model_validate(refined(ROUND, both, step).model_dump())  # none is below 0, or no number
    assert profile.prefill(1000) <= profile.prefill(2000)
    assert step.at(1) <= step.at(300)


# Steps.


def test_without_a_profile_the_step_curve_is_that_of_a_mixture_of_experts() -> None:
    assert StepCurve().at(1) == pytest.approx(0.04)
    assert StepCurve().at(16) == pytest.approx(0.04 * 16**0.4)
    assert StepCurve().at(0) == StepCurve().at(1)


def test_the_step_curve_starts_at_the_profile() -> None:
    assert [StepCurve(ROUND).at(sequences) for sequences in (1, 6, 11, 21)] == pytest.approx([0.1, 0.15, 0.2, 0.3])


@pytest.mark.parametrize("name", ["gemma-4-26b-bf16", "gemma-4-26b-nvfp4"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_steps_that_are_off_by_a_factor_of_two_are_corrected(name: str, factor: float) -> None:
    truth, random = load(name), Random(1)
    step = StepCurve(truth.scaled(factor))
    for _ in range(60):
        sequences = random.choice((1, 2, 4, 8, 16, 30))
        seconds = truth.step(sequences)
        assert seconds
        step.observe(sequences, seconds * random.gauss(1, 0.1) * (10 if random.random() < 0.1 else 1))
    for sequences in (1, 3, 10, 30):
        assert step.at(sequences) == pytest.approx(truth.step(sequences), rel=0.08)


@pytest.mark.parametrize(
    ("sequences", "seconds"),
    [(0, 0.1), (-1, 0.1), (float("nan"), 0.1), (1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf")), (1, 1e9)],
)
def test_an_impossible_step_is_no_sample(sequences: float, seconds: float) -> None:
    step = StepCurve(ROUND)
    for _ in range(10):
        step.observe(sequences, seconds)
    assert step.at(1) == pytest.approx(0.1)


# A profile.


def test_unobserved_coefficients_are_unchanged() -> None:
    assert refined(ROUND, curve(), StepCurve(ROUND)) is ROUND
    prefills = curve()
    prefills.observe(prefill(1000, 2.0))
    profile = refined(ROUND, prefills, StepCurve(ROUND))
    assert profile.c_s < 1
    assert (profile.decode_step_s, profile.decode_s_per_token) == (ROUND.decode_step_s, 1e-2)


def test_an_output_token_costs_the_marginal_step_time() -> None:
    step = StepCurve(ROUND)
    for _ in range(20):
        step.observe(1, 0.1)
        step.observe(11, 0.2)
    profile = refined(ROUND, curve(), step)
    assert (profile.c_s, profile.a_s_per_token) == (1, 1e-3)
    assert tuple(profile.decode_step_s) == CURVE_SEQUENCES
    few, many = MARGINAL_BETWEEN
    assert profile.decode_s_per_token == pytest.approx((step.at(many) - step.at(few)) / (many - few))
    assert profile.decode_s_per_token == pytest.approx(0.01, rel=0.05)


def test_reset_discards_everything_learned() -> None:
    step, other = StepCurve(ROUND), ROUND.scaled(3)
    prefills = PrefillCurve(ROUND, step)
    prefills.observe(prefill(1000, 9.0))
    step.observe(1, 0.5)
    prefills.reset(other)
    step.reset(other)
    assert prefills.coefficients == pytest.approx((3, 3e-3, 3e-6))
    assert step.at(1) == pytest.approx(0.3)
    assert not prefills.regression.samples
    assert not step.regression.samples
