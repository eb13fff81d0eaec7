"""Slicing is switched off for a model whose slices miss the cache, and is tried again after a while."""

import pytest

from gateway.slicing.circuit_breaker import (
    MAX_MISSES,
    MIN_CONTRAST,
    MIN_FOUND,
    OFF_S,
    SliceCircuitBreaker,
    cache_hit,
    cache_hit_by_time,
)


def tripped(now: float = 0.0) -> SliceCircuitBreaker:
    """A breaker that the last of several misses has switched off."""
    breaker = SliceCircuitBreaker()
    for miss in range(1, MAX_MISSES + 1):
        assert breaker.observe("m", hit=False, now=now) is (miss == MAX_MISSES)
    return breaker


def test_a_model_that_was_never_observed_may_be_sliced() -> None:
    breaker = SliceCircuitBreaker()
    assert breaker.allows("m", 0.0)
    assert breaker.off(0.0) == []


def test_misses_in_a_row_switch_one_model_off_for_a_while() -> None:
    breaker = tripped(now=50.0)
    assert not breaker.allows("m", 50.0 + OFF_S - 1)
    assert breaker.off(50.0 + OFF_S - 1) == ["m"]
    assert breaker.allows("another", 50.0)
    assert breaker.allows("m", 50.0 + OFF_S)
    assert breaker.off(50.0 + OFF_S) == []


def test_a_hit_between_misses_starts_the_count_again() -> None:
    breaker = SliceCircuitBreaker()
    for hit in [False] * (MAX_MISSES - 1) + [True] + [False] * (MAX_MISSES - 1):
        assert not breaker.observe("m", hit=hit, now=0.0)
    assert breaker.allows("m", 0.0)


def test_when_it_is_tried_again_one_miss_switches_it_off() -> None:
    breaker = tripped()
    assert breaker.observe("m", hit=False, now=OFF_S)
    assert not breaker.allows("m", 2 * OFF_S - 1)
    assert breaker.allows("m", 2 * OFF_S)


def test_when_it_is_tried_again_a_hit_switches_it_on() -> None:
    breaker = tripped()
    assert not breaker.observe("m", hit=True, now=1.0)  # of a slice that was sent before
    assert breaker.allows("m", 1.0)
    assert not breaker.observe("m", hit=False, now=1.0)


def test_nothing_is_remembered_of_another_engine() -> None:
    breaker = tripped()
    breaker.reset()
    assert breaker.allows("m", 0.0)
    assert not breaker.observe("m", hit=False, now=0.0)


@pytest.mark.parametrize(("cached", "hit"), [(1000, True), (884, True), (883, False), (0, False)])
def test_a_hit_may_lack_a_tenth_and_a_block(cached: int, hit: bool) -> None:
    """Some engines keep the last block to themselves."""
    assert MIN_FOUND * 1000 - 16 == 884
    assert cache_hit(1000, cached, block=16) is hit


@pytest.mark.parametrize(
    ("seconds", "expected", "from_scratch", "hit"),
    [(1.0, 1.0, 4.0, True), (1.9, 1.0, 4.0, True), (2.1, 1.0, 4.0, False), (4.0, 1.0, 4.0, False)],
)
def test_a_hit_shows_in_the_time_that_a_slice_took(
    seconds: float, expected: float, from_scratch: float, hit: bool
) -> None:
    assert cache_hit_by_time(seconds, expected, from_scratch) is hit


def test_the_time_says_nothing_where_a_miss_would_take_hardly_longer() -> None:
    assert cache_hit_by_time(1.0, 1.0, MIN_CONTRAST * 0.99) is None
    assert cache_hit_by_time(1.0, 1.0, MIN_CONTRAST) is True
