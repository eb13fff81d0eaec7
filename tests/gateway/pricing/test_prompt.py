"""A prompt's size and the names of its prefixes: two prompts share a name exactly when they are equal up to there."""

from collections.abc import Callable
from itertools import pairwise, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pricing.prompt import STRIDE, STRIDES_BEFORE_GROWTH, Prompt, PromptReader, PromptSize, text_size

Told = Callable[[PromptReader], None]


def read(*told: Told, seed: tuple[bytes, ...] = ()) -> Prompt:
    reader = PromptReader(seed)
    for tell in told:
        tell(reader)
    return reader.prompt()


def message(text: bytes, role: str = "user") -> Told:
    def tell(reader: PromptReader) -> None:
        reader.role(role)
        reader.text(text)
        reader.mark_prefix()

    return tell


def text(data: bytes) -> Prompt:
    return read(lambda reader: reader.text(data))


def shared(one: Prompt, other: Prompt) -> PromptSize:
    """The longest beginning that both have a name for."""
    both = zip(one.prefixes, other.prefixes, strict=False)
    links = list(takewhile(lambda pair: pair[0].digest == pair[1].digest, both))
    return links[-1][0].size if links else PromptSize()


# Sizes.


@given(st.text(max_size=200))
def test_every_byte_counts_in_exactly_one_class(written: str) -> None:
    data = written.encode("utf-8", "surrogatepass")
    size = text_size(data)
    assert size.text_bytes == len(data)
    assert size.wide == sum(len(each.encode("utf-8", "surrogatepass")) for each in written if ord(each) > 127)
    assert size.words == sum(each.isalpha() or each in " \t\n\r\v\f" for each in written if ord(each) < 128)


def test_bytes_are_classified() -> None:
    assert text_size(b"def f(x): return 2") == PromptSize(words=14, marks=4)
    assert text_size("Grüße, 日本".encode()) == PromptSize(words=4, marks=1, wide=10)


@given(st.lists(st.binary(max_size=3000), max_size=5))
def test_a_prompts_size_is_the_sum_of_its_parts(parts: list[bytes]) -> None:
    prompt = read(*(message(part) for part in parts))
    assert prompt.size == PromptSize(*map(sum, zip(PromptSize(), *map(text_size, parts), strict=True)))._replace(
        messages=len(parts)
    )
    assert prompt.prefixes[-1].size == prompt.size
    for prefix, longer in pairwise(prompt.prefixes):
        assert min(longer.size.minus(prefix.size)) >= 0


def test_sizes_add_up() -> None:
    one, other = PromptSize(1, 2, 3, 4, 5), PromptSize(10, 20, 30, 40, 50)
    assert one.plus(other) == PromptSize(11, 22, 33, 44, 55)
    assert one.plus(other).minus(other) == one
    assert one.text_bytes == 6


def test_token_ids_and_media_count_as_tokens() -> None:
    prompt = read(lambda reader: reader.ids([1, 2, 3]), lambda reader: reader.media(b"an image", 256))
    assert prompt.size == PromptSize(tokens=259)


# Names.

SHORT = st.binary(max_size=40)
MESSAGES = st.lists(st.tuples(SHORT, st.sampled_from(["user", "assistant", "system"])), max_size=4)


@given(MESSAGES, MESSAGES, MESSAGES)
def test_short_messages_share_a_prefix_name_exactly_when_equal_up_to_there(
    begin: list[tuple[bytes, str]], one: list[tuple[bytes, str]], other: list[tuple[bytes, str]]
) -> None:
    first = read(*(message(*each) for each in [*begin, *one, (b"end", "user")]))
    second = read(*(message(*each) for each in [*begin, *other, (b"end", "user")]))
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip([*begin, *one], [*begin, *other], strict=False))))
    names = {prefix.digest: number for number, prefix in enumerate(first.prefixes)}
    in_common = [
        (names[prefix.digest], number) for number, prefix in enumerate(second.prefixes) if prefix.digest in names
    ]
    if one == other:
        same += 1
    assert in_common == [(number, number) for number in range(same)]


@settings(max_examples=50)
@given(st.integers(0, 200_000), st.integers(1, 5000), st.integers(1, 5000))
def test_long_texts_share_prefix_names_to_within_a_stride(common: int, one: int, other: int) -> None:
    begin = b"a" * common
    size = shared(text(begin + b"b" * one), text(begin + b"c" * other))
    assert size.text_bytes <= common
    assert common - size.text_bytes <= STRIDE + common // 16


@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(0, 9000))
def test_prefix_names_do_not_depend_on_how_a_text_is_chunked(cuts: list[int], length: int) -> None:
    data = bytes(number % 251 for number in range(length))
    at = [0, *sorted(min(cut, length) for cut in cuts), length]
    pieces = [data[begin:end] for begin, end in pairwise(at)]
    parts = read(*((lambda reader, piece=piece: reader.text(piece)) for piece in pieces))
    assert parts == text(data)


def test_prefix_names_are_placed_by_distance_from_the_start_of_the_message() -> None:
    """A document that follows upon another question is another prompt from there on."""
    document = b"d" * 20 * STRIDE
    prompt = read(message(b"Be brief.", "system"), message(document + b"What is it?"))
    again = read(message(b"Be brief.", "system"), message(document + b"Who wrote it?"))
    assert shared(prompt, again).text_bytes >= 20 * STRIDE
    assert shared(prompt, again).text_bytes < 20 * STRIDE + 20
    assert shared(prompt, read(message(b"Be blunt.", "system"), message(document))) == PromptSize()


@pytest.mark.parametrize(("one", "other"), [((b"m",), (b"n",)), ((b"ab", b"c"), (b"a", b"bc")), ((b"m",), (b"m", b""))])
def test_another_salt_or_model_shares_no_prefix_name(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    hello = message(b"hello" * STRIDE)
    assert shared(read(hello, seed=one), read(hello, seed=one)).messages == 1
    assert shared(read(hello, seed=one), read(hello, seed=other)) == PromptSize()


def test_images_share_prefix_names_exactly_when_equal() -> None:
    def image(data: bytes) -> Prompt:
        return read(lambda reader: reader.role("user"), lambda reader: reader.media(data, 256))

    assert shared(image(b"a cat"), image(b"a cat")).tokens == 256
    assert shared(image(b"a cat"), image(b"a dog")) == PromptSize()


def test_prefix_names_before_an_answer_are_marked() -> None:
    prompt = read(message(b"Why?"), message(b"Because.", "assistant"), message(b"Oh."))
    assert [prefix.answered for prefix in prompt.prefixes] == [True, False, False]
    assert not any(prefix.answered for prefix in read(message(b"Sure:", "assistant")).prefixes)


def test_an_empty_prompt_is_accepted() -> None:
    prompt = read()
    assert prompt.size == PromptSize()
    assert len(prompt.prefixes) == 1


def test_the_number_of_prefix_names_is_bounded() -> None:
    chain = text(b"x" * (64 << 20)).prefixes
    assert STRIDES_BEFORE_GROWTH < len(chain) < 8 * STRIDES_BEFORE_GROWTH
    assert all(len(prefix.digest) == len(chain[0].digest) for prefix in chain)


def test_prefix_names_contain_no_text() -> None:
    assert b"a secret" not in repr(text(b"a secret" * 1000)).encode()
