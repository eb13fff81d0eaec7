"""Generated prompts: their length, what they share, and what the simulated engine reads from them."""

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.workloads.plan import Request, TextKind
from loadtest.workloads.texts import Texts, read_heading

ONE = Texts(nonce="a1")
KINDS: tuple[TextKind, ...] = get_args(TextKind)


def request(prompt_tokens: int = 1000, text: TextKind = "mixed", output_tokens: int = 312) -> Request:
    return Request(0.0, "ada", "short", prompt_tokens, output_tokens, text=text)


def shared(*texts: str) -> int:
    """How many characters they all begin with."""
    different = (at for at, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
    return next(different, min(map(len, texts)))


# Length


@given(st.integers(40, 30_000), st.floats(1.0, 6.0), st.floats(0.0, 20.0), st.sampled_from(KINDS))
def test_a_prompt_has_the_bytes_of_its_tokens(
    tokens: int, bytes_per_token: float, overhead: float, kind: TextKind
) -> None:
    text = Texts(bytes_per_token, overhead, "a1").prompt(7, request(tokens, kind))
    wanted = (tokens - overhead) * bytes_per_token
    heading = text.index("]") + 2
    assert len(text.encode()) == max(heading, int(wanted))


@given(st.integers(20, 30_000))
def test_a_byte_counting_server_counts_the_requested_tokens(tokens: int) -> None:
    """As the simulated Spark does: so many bytes a token, and a token begun is one."""
    assert -(-len(Texts().prompt(0, request(tokens)).encode()) // 3.2) == tokens


def test_a_prompt_is_no_shorter_than_its_heading() -> None:
    assert ONE.prompt(7, request(1)) == "[fairlane-load a1/7 text=mixed answer=312] "


@pytest.mark.parametrize("tokens", [1, 4, 100, 30_000, 300_000])
def test_instructions_are_as_long_as_they_should_be(tokens: int) -> None:
    assert len(ONE.system("handbook", tokens).encode()) == int(tokens * 3.2)


def test_a_prompt_may_be_longer_than_the_source_text() -> None:
    text = ONE.prompt(7, request(300_000))
    assert len(text) == 960_000
    assert "\n" not in text


# What is the same, and what is not


def test_a_name_always_gives_the_same_text() -> None:
    assert ONE.prompt(7, request()) == Texts(nonce="a1").prompt(7, request())
    assert ONE.system("handbook", 500) == Texts(nonce="a1").system("handbook", 500)


def test_the_longer_text_of_a_name_begins_with_the_shorter() -> None:
    assert ONE.prompt(7, request(2000)).startswith(ONE.prompt(7, request(1000)))
    assert ONE.system("handbook", 2000).startswith(ONE.system("handbook", 1000))


@pytest.mark.parametrize("kind", KINDS)
def test_two_requests_share_at_most_the_start_of_their_headings(kind: TextKind) -> None:
    texts = [ONE.prompt(number, request(500, kind)) for number in range(50)]
    rests = {text[text.index("]") :][:40] for text in texts}
    assert len(rests) > 45
    assert shared(*texts) <= len("[fairlane-load a1/")


def test_instructions_differ_by_name() -> None:
    handbook, rules = ONE.system("handbook", 500), ONE.system("rules", 500)
    assert shared(handbook, rules) <= len("a1 ")
    assert handbook[20:60] != rules[20:60]


def test_another_nonce_changes_the_text_from_its_first_words() -> None:
    """Two runs share less than the 16 tokens of vLLM's smallest cache block."""
    other = Texts(nonce="b2")
    assert shared(ONE.prompt(7, request()), other.prompt(7, request())) <= len("[fairlane-load ")
    assert shared(ONE.system("handbook", 500), other.system("handbook", 500)) == 0
    assert ONE.prompt(7, request())[60:100] != other.prompt(7, request())[60:100]


@pytest.mark.parametrize("nonce", ["a 1", "a]", "a\n"])
def test_a_nonce_that_would_break_the_heading_is_refused(nonce: str) -> None:
    with pytest.raises(ValueError, match="nonce"):
        Texts(nonce=nonce)


# What it reads like


def test_random_text_has_the_same_words_in_random_order() -> None:
    """The same words, so that a tokenizer makes as many tokens of the same bytes."""

    def words(kind: TextKind) -> list[str]:
        return ONE.prompt(7, request(80_000, kind)).split()[4:-1]

    mixed, random = words("mixed"), words("random")
    assert set(mixed) == set(random)
    pairs = [set(pairwise(text)) for text in (mixed, random)]
    assert len(pairs[1]) > 3 * len(pairs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_begins_with_a_whole_word(kind: TextKind) -> None:
    known = set(ONE.prompt(0, request(80_000, kind)).split()[4:-1])
    for number in range(50):
        assert ONE.prompt(number, request(500, kind)).split(" ")[4] in known


# The heading


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [ONE, Texts()], ids=["a nonce", "none"])
def test_the_simulated_engine_reads_kind_and_answer_length(texts: Texts, kind: TextKind) -> None:
    wanted = replace(request(text=kind, output_tokens=99), max_tokens=50)
    assert read_heading(texts.prompt(17, wanted)) == (kind, 99)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[fairlane-load a1/17 text=random answer=312] words", ("random", 312)),
        ("[fairlane-load /0 text=mixed answer=1]", ("mixed", 1)),
        (" [fairlane-load a1/17 text=random answer=312]", None),
        ("[fairlane-load a1/17 text=verse answer=312]", None),
        ("[fairlane-load a1/17 text=random answer=]", None),
        ("[fairlane-load a 1/17 text=random answer=3]", None),
        ("hello", None),
        ("", None),
    ],
)
def test_headings_are_parsed(text: str, says: tuple[str, int] | None) -> None:
    assert read_heading(text) == says
