from hypothesis import given
from hypothesis import strategies as st

from gateway.answers import FIRST_GUESS, WINDOW, Answers


def test_before_anything_is_known_a_guess_and_never_more_than_asked_for() -> None:
    assert Answers().expect(None) == FIRST_GUESS
    assert Answers().expect(10) == 10


@given(st.lists(st.integers(0, 5000), min_size=16, max_size=2 * WINDOW))
def test_nine_of_ten_of_the_last_answers_are_no_longer(lengths: list[int]) -> None:
    answers = Answers()
    for tokens in lengths:
        answers.learn(tokens)
    recent = lengths[-WINDOW:]
    expected = answers.expect(None)
    assert expected in recent
    assert sum(tokens <= expected for tokens in recent) >= 0.9 * len(recent) - 1
    assert sum(tokens < expected for tokens in recent) <= 0.9 * len(recent)


def test_what_was_long_ago_is_forgotten() -> None:
    answers = Answers()
    for _ in range(WINDOW):
        answers.learn(9000)
    for _ in range(WINDOW):
        answers.learn(7)
    assert answers.expect(None) == 7


def test_what_is_no_count_is_left_out() -> None:
    answers = Answers()
    for _ in range(100):
        answers.learn(-5)
    assert answers.expect(None) == FIRST_GUESS
