"""The KV cache in blocks, as vLLM V1 keeps it: who holds how many, and which the next that starts alike may share.

A block gets a key once it is full: the identity of the whole text up to its end. Only then can it be told from another,
so only then it is an object; all others are counted. A block that nobody holds is free, but one with a key stays in
the cache until its place is needed. The one freed longest ago goes first, and of one sequence the last block, since
without those before it nobody has a use for it.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from sys import maxsize

from loadtest.spark.profile import EngineProfile
from loadtest.spark.sequence import Sequence


@dataclass(eq=False, slots=True)
class Block:
    key: int
    holders: int = 1


@dataclass(eq=False, slots=True)
class Holding:
    """The blocks of one sequence, from the start of its text: first those with a key, then so many without."""

    keyed: list[Block] = field(default_factory=list)
    plain: int = 0

    def __len__(self) -> int:
        return len(self.keyed) + self.plain


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """
    holdings  of each sequence with a seat
    cached    the blocks that have a key; of them, `idle` are held by nobody
    """

    holdings: "dict[Sequence, Holding]"
    cached: frozenset[Block]
    idle: frozenset[Block]
    free: int
    total: int


class BlockPool:
    """All blocks of an engine; with `total` None, more than anybody needs."""

    def __init__(self, total: int | None) -> None:
        self.total = maxsize if total is None else total
        self._plain = self.total  # free ones without a key
        self._idle: OrderedDict[Block, None] = OrderedDict()  # free ones with a key, the next to go first
        self._cached: dict[int, list[Block]] = {}  # two who computed the same text at once have a block each

    @property
    def free(self) -> int:
        return self._plain + len(self._idle)

    @property
    def cached_blocks(self) -> frozenset[Block]:
        return frozenset(block for same in self._cached.values() for block in same)

    @property
    def idle_blocks(self) -> frozenset[Block]:
        return frozenset(self._idle)

    @property
    def usage(self) -> float:
        return 0.0 if self.total == maxsize else (self.total - self.free) / self.total

    def find(self, keys: tuple[int, ...], most: int) -> list[Block]:
        """The longest start of this text that is cached, but no more blocks than `most`."""
        found = []
        for key in keys[:most]:
            if key not in self._cached:
                break
            found.append(self._cached[key][0])
        return found

    def fits(self, wanted: int, found: list[Block]) -> bool:
        """Whether there is room for so many blocks in all, with these among them."""
        return wanted - sum(block.holders > 0 for block in found) <= self.free

    def share(self, found: list[Block]) -> Holding:
        """A holding that starts with what was found."""
        for block in found:
            if not block.holders:
                del self._idle[block]
            block.holders += 1
        return Holding(found)

    def take(self, holding: Holding, count: int) -> None:
        """So many free blocks more for the holding, out of the cache if there are no others."""
        assert count <= self.free, "more blocks than there are"
        evicted = max(0, count - self._plain)
        for _ in range(evicted):
            block, _ = self._idle.popitem(last=False)
            same = self._cached[block.key]
            same.remove(block)
            if not same:
                del self._cached[block.key]
        self._plain -= count - evicted
        holding.plain += count

    def cache(self, holding: Holding, keys: tuple[int, ...], full: int) -> None:
        """So many blocks of the holding are full, and found by their keys from now on."""
        for key in keys[len(holding.keyed) : full]:
            block = Block(key)
            self._cached.setdefault(key, []).append(block)
            holding.keyed.append(block)
            holding.plain -= 1

    def release(self, holding: Holding) -> None:
        self._plain += holding.plain
        for block in reversed(holding.keyed):
            block.holders -= 1
            if not block.holders:
                self._idle[block] = None


class KVCache:
    """The blocks of those with a seat.

    queries, hits  tokens of the prompts that got a seat, and how many of them the prefix cache had
    """

    def __init__(self, profile: EngineProfile) -> None:
        limit = profile.kv_cache_tokens
        self.pool = BlockPool(None if limit is None else limit // profile.block_size)
        self.queries = 0
        self.hits = 0
        self._size = profile.block_size
        self._caching = profile.enable_prefix_caching
        self._holdings: dict[Sequence, Holding] = {}

    def check(self, sequence: Sequence) -> None:
        """Raises ValueError if it could never be computed to its end, even alone."""
        tokens = sequence.prompt_tokens + sequence.output_tokens
        if self._blocks(tokens) > self.pool.total:
            raise ValueError(
                f"a prompt and an answer of {tokens} tokens never fit into the {self.pool.total} blocks of "
                f"{self._size} tokens that kv_cache_tokens has"
            )

    def admit(self, sequence: Sequence) -> bool:
        """Give it what is cached of all that it has to prefill, if the rest fits besides what others hold now."""
        most = (sequence.to_prefill - 1) // self._size  # vLLM computes at least one token
        found = self.pool.find(sequence.keys, most) if self._caching else []
        if not self.pool.fits(self._blocks(sequence.to_prefill), found):
            return False
        self._holdings[sequence] = self.pool.share(found)
        sequence.computed = len(found) * self._size
        if self._caching and not sequence.preemptions:
            sequence.cached = sequence.computed
            self.queries += sequence.prompt_tokens
            self.hits += sequence.cached
        return True

    def lacks(self, sequence: Sequence, tokens: int) -> bool:
        """Whether there are not blocks enough for so many of its tokens."""
        return self._blocks(tokens) - len(self._holdings[sequence]) > self.pool.free

    def grow(self, sequence: Sequence, tokens: int, known: int) -> None:
        """Blocks for so many of its tokens; those that the known ones fill may be found."""
        holding = self._holdings[sequence]
        self.pool.take(holding, max(0, self._blocks(tokens) - len(holding)))
        self.fill(sequence, known)

    def fill(self, sequence: Sequence, known: int) -> None:
        if self._caching:
            self.pool.cache(self._holdings[sequence], sequence.keys, known // self._size)

    def release(self, sequence: Sequence) -> None:
        self.pool.release(self._holdings.pop(sequence))

    def snapshot(self) -> CacheSnapshot:
        pool = self.pool
        return CacheSnapshot(dict(self._holdings), pool.cached_blocks, pool.idle_blocks, pool.free, pool.total)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._size)
