"""Estimating tokens from bytes: the prior, learning, and rejecting implausible counts."""

from math import isfinite
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pricing.prompt import PromptSize
from gateway.pricing.token_estimator import (
    BYTES_PER_TOKEN,
    PLAUSIBLE_BYTES_PER_TOKEN,
    TEMPLATE_TOKENS,
    TOKENS_PER_MESSAGE,
    TokenEstimator,
)


def taught(estimator: TokenEstimator, ratio: float, *tokens: int) -> TokenEstimator:
    for count in tokens:
        estimator.learn(PromptSize(words=round(ratio * count)), count)
    return estimator


def test_the_prior_is_english_text() -> None:
    assert TokenEstimator().tokens(PromptSize(words=4000)) == pytest.approx(4000 / BYTES_PER_TOKEN)
    assert TokenEstimator().tokens(PromptSize(words=4000)) == pytest.approx(1000)
    assert TokenEstimator(3.2).bytes_per_token == pytest.approx(3.2)


def test_other_scripts_and_message_templates_add_tokens() -> None:
    estimator = TokenEstimator()
    assert (
        estimator.tokens(PromptSize(marks=4000))
        > estimator.tokens(PromptSize(wide=4000))
        > estimator.tokens(PromptSize(words=4000))
    )
    assert estimator.tokens(PromptSize(words=4000, messages=3)) == pytest.approx(1000 + 3 * TOKENS_PER_MESSAGE)


def test_counted_tokens_are_used_unchanged() -> None:
    assert TokenEstimator().tokens(PromptSize(tokens=123)) == 123
    assert TokenEstimator().tokens(PromptSize(words=40, tokens=256)) == pytest.approx(266)
    assert TokenEstimator().tokens(PromptSize()) == 0


@pytest.mark.parametrize("ratio", [2.0, 3.2, 5.0])
def test_a_few_answers_are_enough_to_learn_the_vocabulary(ratio: float) -> None:
    assert taught(TokenEstimator(), ratio, *[500] * 10).bytes_per_token == pytest.approx(ratio, rel=0.03)
    assert taught(TokenEstimator(), ratio, *[500] * 100).bytes_per_token == pytest.approx(ratio, rel=0.01)


def test_one_answer_alone_changes_little() -> None:
    """It may be the one that is wrong."""
    assert taught(TokenEstimator(), 1.0, 25_000).bytes_per_token == pytest.approx(4.0, rel=0.4)


def test_a_changed_vocabulary_is_learned_again() -> None:
    estimator = taught(TokenEstimator(), 5.0, *[1000] * 1000)
    assert taught(estimator, 2.5, *[1000] * 40).bytes_per_token == pytest.approx(2.5, rel=0.05)


def mixed(random: Random) -> PromptSize:
    """Chats about prose, about code and in other scripts, each with something of the others."""
    length = int(2 ** random.uniform(6, 16))
    parts = random.choice(((0.95, 0.04, 0.01), (0.7, 0.29, 0.01), (0.15, 0.05, 0.8)))
    words, marks, wide = (int(length * part) for part in parts)
    return PromptSize(words, marks, wide, messages=random.randint(1, 30))


@pytest.mark.parametrize("seed", range(5))
def test_prose_code_and_other_scripts_have_their_own_rates(seed: int) -> None:
    """Each has its bytes a token, and each message what the template adds; a text's own varies by a few percent."""
    random, estimator = Random(seed), TokenEstimator()

    def true(size: PromptSize) -> float:
        return size.words / 4.6 + size.marks / 1.6 + size.wide / 2.4 + size.messages * 9

    for _ in range(40):
        size = mixed(random)
        estimator.learn(size, round(true(size) * random.gauss(1, 0.03)))
    off = sorted(abs(estimator.tokens(size) / true(size) - 1) for size in (mixed(random) for _ in range(200)))
    assert off[100] <= 0.03
    assert off[190] <= 0.1


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        (PromptSize(words=400, tokens=256), 300),  # an image's tokens are a guess of ours
        (PromptSize(words=400), 0),
        (PromptSize(words=400), -1),
        (PromptSize(words=400), 1),  # 400 bytes a token
        (PromptSize(words=4), 400),
        (PromptSize(), 5),
    ],
)
def test_impossible_counts_are_not_learned_from(size: PromptSize, tokens: int) -> None:
    estimator = TokenEstimator()
    for _ in range(20):
        estimator.learn(size, tokens)
    assert estimator.bytes_per_token == pytest.approx(BYTES_PER_TOKEN)


def test_plausible_counts_are_bounded() -> None:
    estimator = TokenEstimator()
    size = PromptSize(words=1600, tokens=256, messages=1)
    assert estimator.min_tokens(size) == 356
    assert [estimator.plausible(size, tokens) for tokens in (0, 355, 356, 3456)] == [False, False, True, True]
    most = 256 + 3200 + 2 * TEMPLATE_TOKENS
    assert [estimator.plausible(size, tokens) for tokens in (most, most + 1)] == [True, False]
    assert not estimator.plausible(PromptSize(), 0)


COUNTS = st.integers(0, 10**6)
SIZES = st.builds(PromptSize, COUNTS, COUNTS, COUNTS, st.integers(0, 1000), st.integers(0, 10) | COUNTS)


@settings(max_examples=50)
@given(st.lists(st.tuples(SIZES, st.integers(-5, 10**7)), max_size=30), SIZES)
def test_every_estimate_is_a_valid_number_of_tokens(samples: list[tuple[PromptSize, int]], size: PromptSize) -> None:
    estimator = TokenEstimator()
    for each, tokens in samples:
        estimator.learn(each, tokens)
    assert 0 < estimator.bytes_per_token <= PLAUSIBLE_BYTES_PER_TOKEN[1]
    assert isfinite(estimator.tokens(size))
    assert estimator.tokens(size) >= size.tokens
