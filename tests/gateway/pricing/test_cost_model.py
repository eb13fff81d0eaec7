"""Tokens into seconds: what is predicted, what is charged at the end, and what is learned from both."""

from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pricing.cost_model import MAX_OUTPUT_TOKENS, PROGRESS_CHUNKS, CostModel, Counts
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.profile import Profile
from gateway.pricing.prompt import Prompt, PromptReader, PromptSize
from gateway.pricing.token_estimator import TOKENS_PER_MESSAGE, TokenEstimator
from gateway.pricing.usage import PromptDetails, Usage

# Round numbers: 1 s a prompt, 1 s for 1000 tokens, 1 s for (1000 tokens) squared, 1 s for 100 tokens of answer.
ROUND = Profile(c_s=1, a_s_per_token=1e-3, b_s_per_token2=1e-6, decode_s_per_token=1e-2)


def model() -> CostModel:
    return CostModel(ROUND, TokenEstimator(4.0))


def usage(prompt: int, output: int = 0, cached: int | None = None) -> Usage:
    return Usage(prompt, output, None if cached is None else PromptDetails(cached))


def text(tokens: int) -> Prompt:
    """So many tokens at four bytes each, of which the gateway knows nothing but the size."""
    return Prompt(PromptSize(words=4 * tokens))


def written(data: str) -> Prompt:
    reader = PromptReader()
    reader.text(data.encode())
    return reader.prompt()


# What is predicted.


def test_a_prompt_is_predicted_by_the_curve() -> None:
    price = model().price([text(2000)])
    assert (price.tokens, price.cached, price.uncached) == (2000, 0, 2000)
    assert price.seconds == pytest.approx(1 + 2 + 4)


def test_prompts_are_prefilled_one_by_one() -> None:
    price = model().price([text(1000), Prompt(PromptSize(tokens=1000))])
    assert price.tokens == 2000
    assert price.seconds == pytest.approx(2 * (1 + 1 + 1))


def test_cached_tokens_are_not_priced() -> None:
    """All but its last block: one token at least is computed."""
    cost_model = model()
    prompts = [written("word " * 1600)]
    cost_model.insert_prefixes(prompts, cost_model.price(prompts))
    again = cost_model.price(prompts)
    assert (again.tokens, again.cached) == (2000, 1984)
    assert again.seconds == pytest.approx(1 + 0.016 + (2000**2 - 1984**2) / 1e6)


def test_a_count_takes_precedence_over_an_estimate() -> None:
    price = model().price([text(1000), text(3000)], counted=2000)
    assert price.tokens == 2000
    assert [tokens for tokens, _ in price.matches] == [500, 1500]
    assert price.seconds == pytest.approx(2 + 2 + 0.25 + 2.25)


def test_every_prompt_has_at_least_one_token() -> None:
    price = model().price([Prompt()], counted=0)
    assert (price.tokens, price.cached, price.uncached) == (1, 0, 1)


# What it came to, and what is charged.


def test_true_cost_is_the_curve_at_true_counts_with_the_answer() -> None:
    assert model().true_cost(Counts(2000, 0, 300)) == pytest.approx(1 + 2 + 4 + 3)


def test_cached_tokens_are_not_charged() -> None:
    assert model().true_cost(Counts(2000, 1000, 0)) == pytest.approx(1 + 1 + (4 - 1))
    assert model().true_cost(Counts(2000, 2000, 0)) == pytest.approx(1)


def test_the_total_count_is_split_over_several_prompts() -> None:
    assert model().true_cost(Counts(4000, 2000, 100), prompts=2) == pytest.approx(2 * (1 + 1 + 3) + 1)


def test_a_prediction_that_was_right_equals_the_true_prefill() -> None:
    price = model().price([text(1000), text(1000)])
    assert price.seconds == pytest.approx(model().true_cost(Counts(2000, 0, 0), prompts=2))


def test_the_engines_counts_are_used() -> None:
    cost_model, prompts = model(), [text(1000)]
    assert cost_model.counts(prompts, cost_model.price(prompts), usage(900, 50, 320)) == Counts(900, 320, 50)


def test_missing_counts_fall_back_to_the_prediction() -> None:
    cost_model, prompts = model(), [written("word " * 1600)]
    cost_model.insert_prefixes(prompts, cost_model.price(prompts))
    price = cost_model.price(prompts)
    assert cost_model.counts(prompts, price, usage(1990, 50)) == Counts(1990, 1984, 50)


@pytest.mark.parametrize("absurd", [0, -5, 1, 100_000, 10**18])
def test_an_impossible_count_is_not_charged(absurd: int) -> None:
    cost_model, prompts = model(), [text(1000)]
    assert cost_model.counts(prompts, cost_model.price(prompts), usage(absurd)).prompt == 1000


@pytest.mark.parametrize("absurd", [-1, 901, 10**18])
def test_cached_tokens_are_capped_at_the_prompt(absurd: int) -> None:
    cost_model, prompts = model(), [text(1000)]
    assert cost_model.counts(prompts, cost_model.price(prompts), usage(900, cached=absurd)).cached == 0


def test_a_job_that_left_before_its_first_token_is_charged_at_most_its_elapsed_time() -> None:
    assert model().partial_cost(7.5, elapsed=2.0, began=False, chunks=0) == 2.0
    assert model().partial_cost(7.5, elapsed=60.0, began=False, chunks=0) == 7.5


def test_a_job_that_left_mid_answer_is_charged_its_prefill_and_the_tokens_sent() -> None:
    assert model().partial_cost(7.5, elapsed=2.0, began=True, chunks=200) == pytest.approx(7.5 + 2)


def test_the_charge_of_a_stream_grows_with_its_tokens() -> None:
    cost_model = model()
    price = cost_model.price([text(1000)])
    assert cost_model.growth(price, 200) == (price.seconds + 2.0, 1000 + 200 + PROGRESS_CHUNKS)
    assert cost_model.growth(price, 1) == (price.seconds + 0.01, 1000 + 1 + PROGRESS_CHUNKS)


# What is learned.


def test_learning_changes_the_next_prediction() -> None:
    cost_model, prompts = model(), [text(500)]
    for _ in range(40):
        cost_model.learn(
            prompts, cost_model.price(prompts), usage(1000, cached=0), PrefillObservation(6.0, 0), queue_s=0.0
        )
    assert cost_model.price(prompts).tokens == pytest.approx(1000, rel=0.02)
    assert cost_model.profile.prefill(1000) == pytest.approx(6.0, rel=0.05)
    cost_model.reset_curves()
    assert cost_model.profile == ROUND
    assert cost_model.price(prompts).tokens == pytest.approx(1000, rel=0.02)  # of tokens a profile says nothing


def test_another_profile_starts_the_curves_again_and_keeps_what_is_known_of_tokens() -> None:
    cost_model, prompts = model(), [text(500)]
    for _ in range(40):
        price = cost_model.price(prompts)
        cost_model.learn(prompts, price, usage(1000, cached=0), PrefillObservation(6.0, 0), queue_s=0.0)
        cost_model.step.observe(4, 0.5)
    slower = ROUND.scaled(3)
    cost_model.reconfigure(slower, 8192, 0)
    assert cost_model.prior == cost_model.profile == slower
    assert cost_model.step.regression.samples == cost_model.prefill.regression.samples == []
    assert cost_model.price(prompts).tokens == pytest.approx(1000, rel=0.02)
    cost_model.reset()
    assert cost_model.profile == slower


def test_the_same_profile_keeps_what_was_learned() -> None:
    cost_model, prompts = model(), [text(1000)]
    for _ in range(40):
        cost_model.learn(
            prompts, cost_model.price(prompts), usage(1000, cached=0), PrefillObservation(6.0, 0), queue_s=0.0
        )
    before = cost_model.profile
    cost_model.reconfigure(ROUND, 2048, 512)
    assert cost_model.profile == before != ROUND


@pytest.mark.parametrize(
    ("step_tokens", "threshold", "steps"), [(8192, 0, 1), (1000, 0, 4), (8192, 1000, 4), (2000, 8192, 2)]
)
def test_step_sizes_hold_for_the_samples_that_come_after_a_change(step_tokens: int, threshold: int, steps: int) -> None:
    """A prefill beside a sequence that decodes takes as many steps as the engine cuts it into."""
    cost_model = model()
    cost_model.reconfigure(ROUND, step_tokens, threshold)
    assert cost_model.learn_slice(4000, 0, PrefillObservation(6.0, 1), queue_s=0.0)
    (sample,) = cost_model.prefill.regression.samples
    assert sample.x[-1] == steps


def test_seconds_are_learned_only_with_known_token_counts() -> None:
    cost_model, prompts, seen = model(), [written("word " * 1600)], PrefillObservation(1.0, 0)
    price = cost_model.price(prompts)
    assert not cost_model.learn(prompts, price, usage(2000, cached=0), None)  # somebody else's work was in it
    assert not cost_model.learn(prompts, price, usage(1, cached=0), seen)  # no such count
    assert not cost_model.learn(2 * prompts, cost_model.price(2 * prompts), usage(4000, cached=0), seen)
    cost_model.insert_prefixes(prompts, price)
    cached = cost_model.price(prompts)
    assert cached.cached
    assert not cost_model.learn(prompts, cached, usage(2000), seen)  # a guess of what the engine had is none
    assert cost_model.profile.prefill(2000) == ROUND.prefill(2000)
    assert cost_model.learn(prompts, cached, usage(2000, cached=1984), seen)
    assert cost_model.learn(
        [text(700)], cost_model.price([text(700)]), usage(700), seen
    )  # nothing known, none expected


# Anything that an engine may say, and what a clock may say of it.

NUMBERS = st.one_of(
    st.integers(-5, 3000), st.sampled_from([0, -(2**63), 2**63 - 1, 10**12]), st.integers(-(10**9), 10**9)
)
SECONDS = st.one_of(
    st.floats(-10, 100), st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e300, 1e-300])
)
SAYS = st.tuples(
    st.builds(usage, NUMBERS, NUMBERS, st.none() | NUMBERS),
    st.none()
    | st.builds(
        PrefillObservation, SECONDS, st.integers(0, 300), st.lists(st.integers(0, 30_000), max_size=3).map(tuple)
    ),
    st.none() | SECONDS,
    st.integers(1, 3),
)


@settings(max_examples=50)
@given(st.lists(SAYS, max_size=12))
def test_every_price_is_a_finite_positive_number(
    says: list[tuple[Usage, PrefillObservation | None, float | None, int]],
) -> None:
    cost_model = model()
    for said, seen, queue_s, count in says:
        prompts = [written("word " * 100 * (number + 1)) for number in range(count)]
        price = cost_model.price(prompts)
        cost_model.insert_prefixes(prompts, price)
        cost_model.learn(prompts, price, said, seen, queue_s)
        counts = cost_model.counts(prompts, price, said)
        assert 0 <= counts.cached <= counts.prompt
        assert 0 <= counts.output <= MAX_OUTPUT_TOKENS
        assert 0 <= cost_model.true_cost(counts, count) < 1e6
        for tokens in (1, 1000, 25_000):
            assert 0 <= cost_model.profile.prefill(tokens, tokens // 2) < 1e6
        assert all(isfinite(each) and each >= 0 for each in cost_model.prefill.coefficients)
        assert 1 <= price.tokens < 10**7
        assert 0 <= price.cached < price.tokens


def absurd(number: int) -> tuple[Usage, PrefillObservation, float | None]:
    """Each wrong in another way."""
    return (
        (usage(1, 10, 0), PrefillObservation(1.0, 0), 0.0),
        (usage(10**9, 10, 0), PrefillObservation(1.0, 0), 0.0),
        (usage(0, 0, 0), PrefillObservation(0.0, 0), 0.0),
        (usage(1000, 10, 10**6), PrefillObservation(3.0, 0), 0.0),
        (usage(1000, 10, 0), PrefillObservation(1e9, 0), 0.0),
        (usage(1000, 10, 0), PrefillObservation(-3.0, 0), 0.0),
        (usage(1000, 10, 0), PrefillObservation(3.0, 0), 99.0),
        (usage(1000, 10, 0), PrefillObservation(3.0, 0), -1.0),
        (usage(1000, 10, 0), PrefillObservation(3.0, 0), float("nan")),
        (usage(1000, 10, 0), PrefillObservation(30.0, 0), None),  # it compiled, or was preempted
        (usage(1000, 10**12, 0), PrefillObservation(300.0, 0), 0.0),
    )[number]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 10), max_size=20).flatmap(lambda wrong: st.permutations(wrong + [-1] * 3 * len(wrong))))
def test_a_quarter_of_absurd_answers_does_not_spoil_the_model(order: list[int]) -> None:
    cost_model = model()
    right = usage(1000, 100, 0), PrefillObservation(3.0, 0), 0.0
    for number in [-1] * 8 + order:
        prompts = [text(1000)]
        said, seen, queue_s = right if number < 0 else absurd(number)
        cost_model.learn(prompts, cost_model.price(prompts), said, seen, queue_s)
    price = cost_model.price([text(1000)])
    assert price.tokens == pytest.approx(1000, rel=0.03)
    assert price.seconds == pytest.approx(3.0, rel=0.05)


def test_each_message_adds_template_tokens() -> None:
    assert model().price([Prompt(PromptSize(words=4000, messages=10))]).tokens == 1000 + 10 * TOKENS_PER_MESSAGE
