"""The KV cache's blocks: hits, evictions, and that no block is lost, against a naive model."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.spark.kv_cache import BlockPool, Holding


def hold(pool: BlockPool, keys: tuple[int, ...] = (), plain: int = 0) -> Holding:
    """What a sequence has that finds what it can, and computes the rest of its full blocks."""
    holding = pool.share(pool.find(keys, len(keys)))
    pool.take(holding, len(keys) + plain - len(holding))
    pool.cache(holding, keys, len(keys))
    return holding


def cached(pool: BlockPool, keys: tuple[int, ...]) -> int:
    return len(pool.find(keys, len(keys)))


def test_a_prefix_is_found_up_to_the_first_difference() -> None:
    pool = BlockPool(10)
    hold(pool, (1, 2, 3))
    assert cached(pool, (1, 2, 3, 4)) == 3
    assert cached(pool, (1, 2, 9, 3)) == 2
    assert cached(pool, (9, 1, 2, 3)) == 0
    assert len(pool.find((1, 2, 3), most=2)) == 2


def test_blocks_without_a_key_are_never_found_and_evicted_first() -> None:
    pool = BlockPool(5)
    full, part = hold(pool, (1, 2)), hold(pool, plain=2)
    pool.release(full)
    pool.release(part)
    assert pool.free == 5
    pool.take(Holding(), 3)
    assert cached(pool, (1, 2)) == 2
    pool.take(Holding(), 1)
    assert cached(pool, (1, 2)) == 1


def test_eviction_is_least_recently_freed_and_last_block_first() -> None:
    pool = BlockPool(6)
    old, new = hold(pool, (1, 2, 3)), hold(pool, (7, 8, 9))
    pool.release(old)
    pool.release(new)
    left = []
    for _ in range(6):
        pool.take(Holding(), 1)
        left.append((cached(pool, (1, 2, 3)), cached(pool, (7, 8, 9))))
    assert left == [(2, 3), (1, 3), (0, 3), (0, 2), (0, 1), (0, 0)]


def test_a_hit_refreshes_a_block() -> None:
    pool = BlockPool(4)
    for keys in ((1, 2), (7, 8), (1, 2)):
        pool.release(hold(pool, keys))
    pool.take(Holding(), 2)
    assert (cached(pool, (1, 2)), cached(pool, (7, 8))) == (2, 0)


def test_blocks_in_use_are_not_evicted() -> None:
    pool = BlockPool(4)
    one, two = hold(pool, (1, 2)), hold(pool, (1, 2))
    assert pool.free == 2  # they share
    pool.release(one)
    assert pool.free == 2
    pool.take(Holding(), 2)
    assert cached(pool, (1, 2)) == 2
    assert pool.free == 0
    pool.release(two)
    assert pool.free == 2


def test_two_sequences_that_compute_the_same_have_a_block_each() -> None:
    pool = BlockPool(4)
    one, two = Holding(), Holding()
    for holding in (one, two):
        pool.take(holding, 1)
    for holding in (one, two):
        pool.cache(holding, (1, 2), 1)
    assert pool.free == 2
    pool.release(one)
    pool.take(Holding(), 3)  # the first one's block goes, the second one's is still there
    assert cached(pool, (1,)) == 1
    pool.release(two)
    pool.take(Holding(), 1)
    assert cached(pool, (1,)) == 0


def test_shared_blocks_in_use_take_no_extra_room() -> None:
    pool = BlockPool(4)
    one = hold(pool, (1, 2), plain=1)
    assert pool.fits(3, pool.find((1, 2), 2))
    assert not pool.fits(4, pool.find((1, 2), 2))
    pool.release(one)
    assert pool.fits(4, pool.find((1, 2), 2))
    assert not pool.fits(5, pool.find((1, 2), 2))


def test_an_unlimited_pool_evicts_nothing() -> None:
    pool = BlockPool(None)
    pool.release(hold(pool, (1, 2)))
    pool.take(Holding(), 1_000_000)
    assert cached(pool, (1, 2)) == 2
    assert pool.usage == 0


def test_allocating_more_blocks_than_exist_is_an_error() -> None:
    pool = BlockPool(2)
    with pytest.raises(AssertionError, match="more blocks"):
        pool.take(Holding(), 3)


@dataclass
class Naive:
    """Every block by its number, and all that is asked of them counted anew."""

    total: int
    key: dict[int, int] = field(default_factory=dict)  # in the order in which the blocks got them
    idle: list[int] = field(default_factory=list)  # with a key and held by nobody, the next to go first
    held: list[list[int]] = field(default_factory=list)

    def find(self, keys: tuple[int, ...]) -> list[int]:
        found = []
        for key in keys:
            block = next((block for block, its in self.key.items() if its == key), None)
            if block is None:
                break
            found.append(block)
        return found

    def free(self) -> list[int]:
        """In the order in which they are taken."""
        used = {block for blocks in self.held for block in blocks}
        return [block for block in range(self.total) if block not in used and block not in self.key] + self.idle

    def take(self, blocks: list[int], count: int) -> None:
        for block in self.free()[:count]:
            if block in self.idle:
                self.idle.remove(block)
                del self.key[block]
            blocks.append(block)


texts = st.lists(st.integers(1, 3), max_size=6).map(
    lambda text: tuple(hash(tuple(text[: n + 1])) for n in range(len(text)))
)


@given(
    total=st.integers(1, 12),
    actions=st.lists(st.tuples(st.sampled_from(["hold", "grow", "release"]), texts, st.integers(0, 9)), max_size=40),
)
def test_the_pool_behaves_like_a_naive_one(total: int, actions: list[tuple[str, tuple[int, ...], int]]) -> None:
    pool, naive = BlockPool(total), Naive(total)
    holdings: list[Holding] = []
    for action, keys, number in actions:
        if action == "hold":
            found, same = pool.find(keys, len(keys)), naive.find(keys)
            assert [block.key for block in found] == [naive.key[block] for block in same]
            wanted = len(keys) + number // 3
            fits = wanted - len(same) + sum(block in naive.idle for block in same) <= len(naive.free())
            assert pool.fits(wanted, found) == fits
            if fits:
                holdings.append(pool.share(found))
                naive.held.append(same)
                naive.idle = [block for block in naive.idle if block not in same]
                pool.take(holdings[-1], wanted - len(found))
                naive.take(same, wanted - len(same))
                pool.cache(holdings[-1], keys, len(keys))
                naive.key |= {block: key for block, key in zip(same, keys, strict=False) if block not in naive.key}
        elif action == "grow" and holdings and pool.free:
            pool.take(holdings[number % len(holdings)], 1)
            naive.take(naive.held[number % len(holdings)], 1)
        elif action == "release" and holdings:
            pool.release(holdings.pop(number % len(naive.held)))
            blocks = naive.held.pop(number % len(naive.held))
            still = {block for others in naive.held for block in others}
            naive.idle += [block for block in reversed(blocks) if block in naive.key and block not in still]
        used = {block for blocks in naive.held for block in blocks}
        assert pool.free == len(naive.free()) == total - len(used)
        assert pool.usage == pytest.approx(len(used) / total)
        assert [len(holding) for holding in holdings] == [len(blocks) for blocks in naive.held]
    for holding in holdings:
        pool.release(holding)
    assert pool.free == total
