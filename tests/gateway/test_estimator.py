"""Bytes into tokens: the start value, what is learned, and what is not believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.completion import Prompt
from gateway.estimator import BYTES_PER_TOKEN, PLAUSIBLE, Estimator


def taught(estimator: Estimator, ratio: float, *tokens: int) -> Estimator:
    for count in tokens:
        estimator.learn([Prompt(text_bytes=round(ratio * count))], count)
    return estimator


def test_english_to_begin_with() -> None:
    assert Estimator().tokens(Prompt(text_bytes=4000)) == 4000 / BYTES_PER_TOKEN == 1000


def test_what_is_counted_is_not_guessed() -> None:
    assert Estimator().tokens(Prompt(tokens=123)) == 123
    assert Estimator().tokens(Prompt(text_bytes=40, tokens=256)) == 266


def test_no_prompt_is_free() -> None:
    assert Estimator().tokens(Prompt()) == 1
    assert Estimator().tokens(Prompt(text_bytes=1)) == 1


@pytest.mark.parametrize("ratio", [2.0, 3.2, 5.0])
def test_a_few_answers_teach_the_vocabulary(ratio: float) -> None:
    assert taught(Estimator(), ratio, *[500] * 10).bytes_per_token == pytest.approx(ratio, rel=0.1)
    assert taught(Estimator(), ratio, *[500] * 100).bytes_per_token == pytest.approx(ratio, rel=0.01)


def test_one_long_prompt_teaches_more_than_a_short_one() -> None:
    """A chat template's twenty tokens on a two-word question say nothing of the vocabulary."""
    assert taught(Estimator(), 0.6, 20).bytes_per_token == pytest.approx(4.0, rel=0.05)
    assert taught(Estimator(), 3.2, 25_000).bytes_per_token == pytest.approx(3.2, rel=0.05)


def test_what_changed_is_learned_anew() -> None:
    estimator = taught(Estimator(), 5.0, *[1000] * 1000)
    assert taught(estimator, 2.5, *[1000] * 200).bytes_per_token == pytest.approx(2.5, rel=0.05)


def test_several_prompts_are_taught_by_their_sum() -> None:
    one, two = Estimator(), Estimator()
    one.learn([Prompt(text_bytes=3000)], 1000)
    two.learn([Prompt(text_bytes=1000), Prompt(text_bytes=2000)], 1000)
    assert one.bytes_per_token == two.bytes_per_token


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [
        ([Prompt(text_bytes=400, tokens=256)], 300),  # an image's tokens are a guess of ours
        ([Prompt(text_bytes=400), Prompt(tokens=3)], 100),
        ([Prompt(text_bytes=400)], 0),
        ([Prompt(text_bytes=400)], -1),
        ([Prompt(text_bytes=400)], 1),  # 400 bytes a token
        ([Prompt(text_bytes=4)], 400),
        ([Prompt()], 5),
        ([], 5),
    ],
)
def test_what_cannot_be_true_teaches_nothing(prompts: list[Prompt], tokens: int) -> None:
    estimator = Estimator()
    estimator.learn(prompts, tokens)
    assert estimator.bytes_per_token == BYTES_PER_TOKEN


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(-5, 10**6))))
def test_whatever_is_said_the_ratio_stays_plausible(samples: list[tuple[int, int]]) -> None:
    estimator = Estimator()
    for text_bytes, tokens in samples:
        estimator.learn([Prompt(text_bytes)], tokens)
    assert PLAUSIBLE[0] <= estimator.bytes_per_token <= PLAUSIBLE[1]
