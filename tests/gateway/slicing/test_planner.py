"""Where a long prompt is cut, and how long the engine is left to other requests between slices."""

from itertools import pairwise
from math import ceil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.slicing.planner import (
    ALONE_GROWTH,
    MAX_PAUSE_TO_SLICE,
    MIN_SLICE_TO_OVERHEAD,
    REFERENCE_DECODES,
    SIZE_TOLERANCE,
    SlicePlan,
    Slicer,
    Slicing,
)
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


def cut(plan: SlicePlan, now: float = 0.0, *, contended: bool = True, sequences: int = 0) -> list[tuple[int, int]]:
    """Where each slice begins and ends, if each takes as long as predicted."""
    cuts = [(plan.done, plan.end)]
    plan.begin(now)
    while not plan.last:
        now += plan.slice.cost_s
        plan.advance(now, contended=contended, sequences=sequences)
        cuts.append((plan.done, plan.end))
        assert len(cuts) <= plan.tokens
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
def test_slices_cover_the_prompt_once_and_end_on_whole_blocks(
    profile: Profile, slicing: Slicing, block: int, tokens: int, found: int, sequences: int
) -> None:
    """But for the beginning that the engine had; and each slice takes about as long as it may."""
    assume(tokens < 4000 or profile.prefill(tokens) / slicing.max_stall < 1000)  # a test of seconds
    plan = SlicePlan(slicer(slicing, profile, block), tokens, found)
    assert plan.found == plan.done <= min(found, tokens)
    cuts = cut(plan, sequences=sequences)
    assert cuts[0][0] == plan.found
    assert cuts[-1][1] == tokens
    assert all(end == begin for (_, end), (begin, _) in pairwise(cuts))
    may_take = SIZE_TOLERANCE * max(slicing.max_stall, MIN_SLICE_TO_OVERHEAD * profile.c_s)
    for begin, end in cuts:
        assert begin % block == 0
        assert end % block == 0 or end == tokens
        assert end - begin >= min(block, tokens - begin) > 0
        if end - begin >= 2 * block:  # a block is the least
            assert profile.prefill(end - block, begin) <= may_take * (1 + 1e-6)


@given(profiles, slicings, st.integers(1, 40_000), st.integers(0, 40_000))
def test_a_slice_tells_its_cost_and_what_is_left_after_it(
    profile: Profile, slicing: Slicing, tokens: int, found: int
) -> None:
    plan = SlicePlan(slicer(slicing, profile), tokens, found)
    assert plan.slice.tokens == plan.end - plan.done
    assert plan.slice.cost_s == profile.prefill(plan.end, plan.done)
    assert plan.last == (plan.slice.rest_s == 0 or not profile.prefill(tokens, plan.end))
    whole = plan.whole()
    assert plan.last
    assert (whole.tokens, whole.rest_s) == (tokens - plan.done, 0.0)
    assert whole.cost_s == profile.prefill(tokens, plan.done)


def test_the_prompt_is_cut_into_slices_of_equal_time() -> None:
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
    """Of the tokens that the decoding sequences leave of a step, rounded to the block."""
    step, sequences = 2048, 10
    of = slicer(Slicing(max_stall=1.0, step_tokens=step), profile(a=1e-4))
    first, *middle, last = (end - begin for begin, end in cut(SlicePlan(of, 100_000), sequences=sequences))
    assert first == ceil(first / step) * step
    steps = {ceil(count / (step - sequences)) for count in middle}
    assert min(steps) > 1
    for count in middle:
        spare = ceil(count / (step - sequences)) * (step - sequences) - count
        assert 0 <= spare < of.block
    assert last * 1e-4 <= SIZE_TOLERANCE * of.slicing.max_stall


def test_a_prompt_of_100_000_tokens_has_a_reasonable_number_of_slices() -> None:
    cuts = cut(SlicePlan(slicer(), 100_000))
    assert cuts[-1][1] == 100_000
    assert all(begin % 16 == 0 for begin, _ in cuts)
    assert 20 < len(cuts) < 1000


def test_a_short_prompt_is_not_sliced() -> None:
    plan = SlicePlan(slicer(), 1000)
    assert plan.last
    assert plan.slice == plan.whole()


@pytest.mark.parametrize("found", [24_999, 25_000, 30_000])
def test_the_last_block_of_a_wholly_cached_prompt_is_prefilled(found: int) -> None:
    plan = SlicePlan(slicer(), 25_000, found)
    assert plan.last
    assert plan.slice.tokens == 25_000 - 24_999 // 16 * 16


# Growth.


def test_slices_grow_while_the_prompt_is_alone() -> None:
    """Each takes at most ALONE_GROWTH times as long as the prompt has been alone, so there are few of them."""
    alone, beset = SlicePlan(slicer(), 100_000), SlicePlan(slicer(), 100_000)
    cuts = cut(alone, contended=False)
    now = 0.0
    for begin, end in cuts:
        seconds = SPARK.prefill(end, begin)
        assert (
            seconds
            <= SIZE_TOLERANCE * max(Slicing().max_stall, MIN_SLICE_TO_OVERHEAD * SPARK.c_s, ALONE_GROWTH * now) * 1.01
        )
        now += seconds
    assert len(cuts) < len(cut(beset, contended=True)) / 3


def test_slices_are_small_again_once_the_prompt_is_contended() -> None:
    plan = SlicePlan(slicer(), 1_000_000)
    plan.begin(0.0)
    small = plan.slice.cost_s
    now = 0.0
    for _ in range(5):
        now += plan.slice.cost_s
        plan.advance(now, contended=False)
    assert plan.slice.cost_s > 3 * small
    plan.advance(now + plan.slice.cost_s, contended=True)
    assert plan.slice.cost_s < 1.5 * small
    plan.advance(now + 50.0, contended=True)
    assert plan.slice.cost_s < 1.5 * small
    plan.advance(now + 90.0, contended=False)
    assert plan.slice.cost_s > 3 * small


def test_time_in_the_queue_does_not_count_as_time_alone() -> None:
    plan = SlicePlan(slicer(), 100_000)
    plan.begin(1000.0)
    small = plan.slice.cost_s
    plan.advance(1000.0 + small, contended=False)
    assert plan.slice.cost_s < SIZE_TOLERANCE * max(1, ALONE_GROWTH) * small


# Pauses.


@given(profiles, st.floats(0.01, 10), st.integers(0, 50_000), st.floats(0.01, 1), st.none() | st.floats(0.001, 5))
def test_there_is_no_pause_while_nothing_decodes(
    profile: Profile, seconds: float, tokens: int, share: float, target: float | None
) -> None:
    slicing = Slicing(long_share=share, tpot_target=target)
    assert slicer(slicing, profile).pause(seconds, 0, tokens) == 0.0


@given(st.floats(0.01, 10), st.floats(0.001, 1), st.integers(1, 200))
def test_the_long_share_holds_beside_the_reference_number_of_decodes(
    seconds: float, share: float, sequences: int
) -> None:
    pause = slicer(Slicing(long_share=share)).pause(seconds, sequences)
    assert pause == pytest.approx(
        min(MAX_PAUSE_TO_SLICE * seconds, (seconds / share - seconds) * sequences / REFERENCE_DECODES)
    )
    assert pause >= 0


def test_a_share_of_zero_has_the_longest_pause_and_a_share_of_one_has_none() -> None:
    assert slicer(Slicing(long_share=0.0)).pause(2.0, 1) == MAX_PAUSE_TO_SLICE * 2.0
    assert slicer(Slicing(long_share=1.0)).pause(2.0, 1) == 0.0


@given(st.floats(0.05, 3), st.floats(0.06, 2), st.integers(1, 30_000), st.integers(1, 100))
def test_sequences_that_decode_get_a_token_every_tpot_target(
    seconds: float, target: float, tokens: int, sequences: int
) -> None:
    """In the long run, over slices whose steps give a token each and pauses of decode steps alone."""
    of = slicer(Slicing(tpot_target=target), profile(a=1e-4))
    pause = of.pause(seconds, sequences, tokens)
    steps = ceil(tokens / (of.slicing.step_tokens - sequences))
    time = got = 0.0
    for _ in range(10):
        time += seconds + pause
        got += steps + pause / STEP_S
    if pause == 0:
        assert time / got <= target * (1 + 1e-9)
    elif pause == MAX_PAUSE_TO_SLICE * seconds:
        assert time / got >= target * (1 - 1e-9)
    else:
        assert time / got == pytest.approx(target)


@pytest.mark.parametrize("target", [STEP_S / 2, STEP_S])
def test_a_target_that_no_pause_reaches_has_the_longest_pause(target: float) -> None:
    assert slicer(Slicing(tpot_target=target), profile(a=1e-4)).pause(1.0, 4, 5000) == MAX_PAUSE_TO_SLICE


@given(st.floats(0.05, 3), st.integers(1, 30_000), st.floats(0, 1), st.floats(0.01, 2), st.floats(1, 3))
def test_a_longer_slice_or_a_stricter_setting_has_a_longer_pause(
    seconds: float, tokens: int, share: float, target: float, more: float
) -> None:
    """And a pause is always between none and the longest."""
    for slicing, stricter in (
        (Slicing(long_share=share), Slicing(long_share=share / more)),
        (Slicing(tpot_target=target), Slicing(tpot_target=target / more)),
    ):
        of = slicer(slicing, profile(a=1e-4))
        pause = of.pause(seconds, 5, tokens)
        assert 0 <= pause <= MAX_PAUSE_TO_SLICE * seconds
        assert of.pause(more * seconds, 5, tokens) >= pause
        assert slicer(stricter, profile(a=1e-4)).pause(seconds, 5, tokens) >= pause
