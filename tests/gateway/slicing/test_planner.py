"""How a long prompt is cut, and how long its engine is left to others between the slices."""

from itertools import pairwise
from math import ceil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.slicing.planner import SlicePlan, Slicer, Slicing
from gateway.storage.profile_file import load

STEP_S = 0.05
SPARK = load("gemma-4-26b-nvfp4")


def slicer(slicing: Slicing | None = None, profile: Profile = SPARK, block: int = 16) -> Slicer:
    model = CostModel(profile)
    model.prefixes.block = block
    return Slicer(slicing or Slicing(), model)


def profile(c: float = 0.0, a: float = 0.0, b: float = 0.0) -> Profile:
    """Whose decode step is STEP_S, however many decode."""
    return Profile(
        c_s=c, a_s_per_token=a, b_s_per_token2=b, decode_s_per_token=0.001, decode_step_s={1: STEP_S, 100: STEP_S}
    )


def zero_or(least: float, most: float) -> st.SearchStrategy[float]:
    return st.just(0.0) | st.floats(least, most)


profiles = st.builds(profile, zero_or(0.001, 1.0), zero_or(1e-5, 1e-3), zero_or(1e-16, 1e-7))
slicings = st.builds(Slicing, max_stall=st.floats(0.05, 2.0), step_tokens=st.sampled_from([512, 2048, 8192]))


def cut(slices: SlicePlan, now: float = 0.0, *, company: bool = True, sequences: int = 0) -> list[tuple[int, int]]:
    """Where each slice begins and ends, if each takes as long as predicted."""
    cuts = [(slices.done, slices.end)]
    slices.begin(now)
    while not slices.last:
        now += slices.part.cost
        slices.go_on(now, company=company, sequences=sequences)
        cuts.append((slices.done, slices.end))
        assert len(cuts) <= slices.tokens
    return cuts


# Cuts.


@given(
    profiles,
    slicings,
    st.sampled_from([16, 64, 1056]),
    st.integers(1, 40_000),
    st.integers(0, 10_000),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_slices_are_the_prompt_cut_on_whole_blocks(
    profile: Profile, slicing: Slicing, block: int, tokens: int, found: int, sequences: int
) -> None:
    """Each token once, but for the beginning that the engine had; and each slice of about the time that it may take."""
    assume(tokens < 4000 or profile.prefill(tokens) / slicing.max_stall < 1000)  # a test of seconds
    slices = SlicePlan(slicer(slicing, profile, block), tokens, found)
    assert slices.found == slices.done <= min(found, tokens)
    cuts = cut(slices, sequences=sequences)
    assert cuts[0][0] == slices.found
    assert cuts[-1][1] == tokens
    assert all(end == begin for (_, end), (begin, _) in pairwise(cuts))
    may_take = SLACK * max(slicing.max_stall, WORTH * profile.c_s)
    for begin, end in cuts:
        assert begin % block == 0
        assert end % block == 0 or end == tokens
        assert end - begin >= min(block, tokens - begin) > 0
        if end - begin >= 2 * block:  # a block is the least
            assert profile.prefill(end - block, begin) <= may_take * (1 + 1e-6)


@given(profiles, slicings, st.integers(1, 40_000), st.integers(0, 40_000))
def test_a_part_says_what_it_costs_and_what_is_left(
    profile: Profile, slicing: Slicing, tokens: int, found: int
) -> None:
    slices = SlicePlan(slicer(slicing, profile), tokens, found)
    assert slices.part.tokens == slices.end - slices.done
    assert slices.part.cost == profile.prefill(slices.end, slices.done)
    assert slices.last == (slices.part.rest == 0 or not profile.prefill(tokens, slices.end))
    whole = slices.whole()
    assert slices.last
    assert (whole.tokens, whole.rest) == (tokens - slices.done, 0.0)
    assert whole.cost == profile.prefill(tokens, slices.done)


def test_what_is_left_is_cut_into_parts_of_equal_time() -> None:
    """So that no small rest is left over."""
    of = slicer(Slicing(max_stall=0.5, step_tokens=1 << 20))
    costs = [SPARK.prefill(end, begin) for begin, end in cut(SlicePlan(of, 25_000))]
    assert len(costs) > 5
    assert min(costs) > 0.95 * max(costs)


def test_deeper_slices_have_fewer_tokens() -> None:
    of = slicer(Slicing(step_tokens=1 << 20))
    *counts, _ = (end - begin for begin, end in cut(SlicePlan(of, 100_000)))
    assert all(later <= sooner + 2 * of.block for sooner, later in pairwise(counts))
    assert counts[-1] < counts[0] / 2


def test_slices_longer_than_a_step_are_whole_steps() -> None:
    """Of the tokens that those who decode leave of it, to the block."""
    step, sequences = 2048, 10
    of = slicer(Slicing(max_stall=1.0, step_tokens=step), profile(a=1e-4))
    first, *middle, last = (end - begin for begin, end in cut(SlicePlan(of, 100_000), sequences=sequences))
    assert first == ceil(first / step) * step
    steps = {ceil(count / (step - sequences)) for count in middle}
    assert min(steps) > 1
    for count in middle:
        spare = ceil(count / (step - sequences)) * (step - sequences) - count
        assert 0 <= spare < of.block
    assert last * 1e-4 <= SLACK * of.slicing.max_stall


def test_100_000_tokens() -> None:
    cuts = cut(SlicePlan(slicer(), 100_000))
    assert cuts[-1][1] == 100_000
    assert all(begin % 16 == 0 for begin, _ in cuts)
    assert 20 < len(cuts) < 1000


def test_a_short_prompt_goes_in_one() -> None:
    slices = SlicePlan(slicer(), 1000)
    assert slices.last
    assert slices.part == slices.whole()


@pytest.mark.parametrize("found", [24_999, 25_000, 30_000])
def test_of_a_prompt_that_is_all_there_the_last_token_is_prefilled(found: int) -> None:
    slices = SlicePlan(slicer(), 25_000, found)
    assert slices.last
    assert slices.part.tokens == 25_000 - 24_999 // 16 * 16


# Growth.


def test_alone_slices_grow() -> None:
    """Each takes at most so many times what the prompt has been alone; there are few of them."""
    alone, beset = SlicePlan(slicer(), 100_000), SlicePlan(slicer(), 100_000)
    cuts = cut(alone, company=False)
    now = 0.0
    for begin, end in cuts:
        seconds = SPARK.prefill(end, begin)
        assert seconds <= SLACK * max(Slicing().max_stall, WORTH * SPARK.c_s, GROWTH * now) * 1.01
        now += seconds
    assert len(cuts) < len(cut(beset, company=True)) / 3


def test_company_makes_them_small_again() -> None:
    slices = SlicePlan(slicer(), 1_000_000)
    slices.begin(0.0)
    small = slices.part.cost
    now = 0.0
    for _ in range(5):
        now += slices.part.cost
        slices.go_on(now, company=False)
    assert slices.part.cost > 3 * small
    slices.go_on(now + slices.part.cost, company=True)
    assert slices.part.cost < 1.5 * small
    slices.go_on(now + 50.0, company=True)
    assert slices.part.cost < 1.5 * small
    slices.go_on(now + 90.0, company=False)
    assert slices.part.cost > 3 * small


def test_one_that_has_waited_has_not_been_alone() -> None:
    slices = SlicePlan(slicer(), 100_000)
    slices.begin(1000.0)
    small = slices.part.cost
    slices.go_on(1000.0 + small, company=False)
    assert slices.part.cost < SLACK * max(1, GROWTH) * small


# Pauses.


@given(profiles, st.floats(0.01, 10), st.integers(0, 50_000), st.floats(0.01, 1), st.none() | st.floats(0.001, 5))
def test_with_nobody_decoding_there_is_no_pause(
    profile: Profile, seconds: float, tokens: int, share: float, target: float | None
) -> None:
    slicing = Slicing(long_share=share, tpot_target=target)
    assert slicer(slicing, profile).pause(seconds, 0, tokens) == 0.0


@given(st.floats(0.01, 10), st.floats(0.001, 1), st.integers(1, 200))
def test_a_share_is_of_the_time_beside_ten(seconds: float, share: float, sequences: int) -> None:
    pause = slicer(Slicing(long_share=share)).pause(seconds, sequences)
    assert pause == pytest.approx(min(MOST_PAUSE * seconds, (seconds / share - seconds) * sequences / TEN))
    assert pause >= 0


def test_no_share_is_the_most_pause_and_all_of_it_none() -> None:
    assert slicer(Slicing(long_share=0.0)).pause(2.0, 1) == MOST_PAUSE * 2.0
    assert slicer(Slicing(long_share=1.0)).pause(2.0, 1) == 0.0


@given(st.floats(0.05, 3), st.floats(0.06, 2), st.integers(1, 30_000), st.integers(1, 100))
def test_those_who_decode_get_a_token_each_target(seconds: float, target: float, tokens: int, sequences: int) -> None:
    """In the long run of slices, each of steps that give a token, and of pauses of decode steps."""
    of = slicer(Slicing(tpot_target=target), profile(a=1e-4))
    pause = of.pause(seconds, sequences, tokens)
    steps = ceil(tokens / (of.slicing.step_tokens - sequences))
    time = got = 0.0
    for _ in range(10):
        time += seconds + pause
        got += steps + pause / STEP_S
    if pause == 0:
        assert time / got <= target * (1 + 1e-9)
    elif pause == MOST_PAUSE * seconds:
        assert time / got >= target * (1 - 1e-9)
    else:
        assert time / got == pytest.approx(target)


@pytest.mark.parametrize("target", [STEP_S / 2, STEP_S])
def test_a_target_that_no_pause_reaches_has_the_most(target: float) -> None:
    assert slicer(Slicing(tpot_target=target), profile(a=1e-4)).pause(1.0, 4, 5000) == MOST_PAUSE


@given(st.floats(0.05, 3), st.integers(1, 30_000), st.floats(0, 1), st.floats(0.01, 2), st.floats(1, 3))
def test_more_asked_is_more_pause(seconds: float, tokens: int, share: float, target: float, more: float) -> None:
    """For a longer slice, a smaller share, a stricter target; and always between none and the most."""
    for slicing, stricter in (
        (Slicing(long_share=share), Slicing(long_share=share / more)),
        (Slicing(tpot_target=target), Slicing(tpot_target=target / more)),
    ):
        of = slicer(slicing, profile(a=1e-4))
        pause = of.pause(seconds, 5, tokens)
        assert 0 <= pause <= MOST_PAUSE * seconds
        assert of.pause(more * seconds, 5, tokens) >= pause
        assert slicer(stricter, profile(a=1e-4)).pause(seconds, 5, tokens) >= pause
