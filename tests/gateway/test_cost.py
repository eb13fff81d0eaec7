"""Tokens into seconds: what is predicted, what is charged at the end, and what when there is no count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.completion import Prompt
from gateway.cost import CostModel
from gateway.estimator import Estimator
from gateway.profile import Profile
from gateway.sse import Usage, read_usage

# Round numbers: 1 s a prompt, 1 s for 1000 tokens, 1 s for (1000 tokens) squared, 1 s for 100 tokens of answer.
ROUND = Profile(c_s=1, a_s_per_token=1e-3, b_s_per_token2=1e-6, decode_s_per_token=1e-2)


def model() -> CostModel:
    return CostModel(ROUND, Estimator(4.0))


def usage(prompt: int, output: int = 0, cached: int = 0) -> Usage:
    read = read_usage(
        b'{"usage": {"prompt_tokens": %d, "completion_tokens": %d, "prompt_tokens_details": {"cached_tokens": %d}}}'
        % (prompt, output, cached)
    )
    assert read
    return read


def test_a_prompt_is_predicted_by_the_curve() -> None:
    tokens, cost = model().predict([Prompt(text_bytes=8000)])
    assert tokens == 2000
    assert cost == pytest.approx(1 + 2 + 4)


def test_prompts_are_prefilled_one_by_one() -> None:
    tokens, cost = model().predict([Prompt(text_bytes=4000), Prompt(tokens=1000)])
    assert tokens == 2000
    assert cost == pytest.approx(2 * (1 + 1 + 1))


def test_true_cost_is_the_curve_at_true_counts_with_the_answer() -> None:
    assert model().true_cost(usage(2000, output=300)) == pytest.approx(1 + 2 + 4 + 3)


def test_what_was_cached_is_not_charged() -> None:
    assert model().true_cost(usage(2000, cached=1000)) == pytest.approx(1 + 1 + (4 - 1))
    assert model().true_cost(usage(2000, cached=2000)) == pytest.approx(1)


def test_counts_of_several_prompts_are_shared_among_them() -> None:
    assert model().true_cost(usage(4000, output=100, cached=2000), prompts=2) == pytest.approx(2 * (1 + 1 + 3) + 1)


def test_a_prediction_that_was_right_equals_the_true_prefill() -> None:
    prompts = [Prompt(text_bytes=4000), Prompt(text_bytes=4000)]
    assert model().predict(prompts)[1] == pytest.approx(model().true_cost(usage(2000), prompts=2))


@given(st.integers(-5, 10**6), st.integers(-5, 10**6), st.integers(-5, 10**7), st.integers(1, 5))
def test_no_count_makes_a_charge_that_is_negative(prompt: int, output: int, cached: int, prompts: int) -> None:
    assert model().true_cost(usage(prompt, output, cached), prompts) >= 0


def test_one_that_left_before_its_first_token_is_charged_no_more_than_the_time_it_had() -> None:
    assert model().partial_cost(7.5, elapsed=2.0, began=False, chunks=0) == 2.0
    assert model().partial_cost(7.5, elapsed=60.0, began=False, chunks=0) == 7.5


def test_one_that_left_in_the_middle_is_charged_its_prefill_and_what_it_was_told() -> None:
    assert model().partial_cost(7.5, elapsed=2.0, began=True, chunks=200) == pytest.approx(7.5 + 2)


def test_what_is_learned_changes_the_next_prediction() -> None:
    learning = model()
    for _ in range(100):
        learning.learn((prompt for prompt in [Prompt(text_bytes=2000)]), usage(1000))
    assert learning.predict([Prompt(text_bytes=2000)])[0] == pytest.approx(1000, rel=0.02)
