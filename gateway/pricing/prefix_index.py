"""Which prefixes of prompts the engine has in its cache, as far as can be told from what was sent to it.

vLLM caches whole blocks of tokens, evicts those that were used longest ago, and computes at least one token of each
prompt. Blocks are not known here; prefixes are (`gateway.pricing.prompt`), with the tokens that the engine counted up
to there. So the next turn of a conversation is found by the turn before, whose prompt and answer were counted, and it
is right to the block; a text that was pasted before is found by the bytes that it shares. What the engine says was
cached corrects the index: how long prefixes stay, whether answers are found, and whether anything is.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.pricing.estimators import Ratio, Window
from gateway.pricing.prompt import EMPTY_SIZE, STRIDE, PrefixHash, Prompt, PromptSize

# Prefixes remembered; each takes 200 bytes. A prompt of 25 000 tokens has about 150.
MAX_PREFIXES = 1 << 16
DEFAULT_BLOCK = 16  # tokens

# A prediction of which a smaller share has come true was a miss: the prefix was evicted.
MISS_BELOW = 0.5
# From this share on, all of the prefix was there. In between, the prompts had a shorter one in common.
FULL_HIT_FROM = 0.9
STRIDE_TOKENS = STRIDE / 4
# A miss of a younger prefix, as a share of the capacity, is no eviction: the engine does not cache as expected.
MIN_EVICTION_AGE = 0.1
# Cached tokens that must have been expected before the engine's own count of hits is compared.
MIN_EXPECTED = 4096


@dataclass(slots=True)
class _KnownPrefix:
    """tokens  up to the end of this prefix
    exact   they were counted, not estimated
    answer  tokens of the answer that was given to it, 0 if it was no whole prompt
    used    when, by the tokens that had gone into the cache until then
    """

    tokens: float
    exact: bool
    answer: int
    used: int


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known prefix of a prompt.

    size            of that prefix
    tokens          it has
    cached          tokens of the whole prompt that are expected to be cached
    index           which of the prompt's prefixes it is; -1 for none
    age             tokens that went into the cache since it was last used
    evicted_tokens  of a longer prefix that is known but taken to be evicted
    evicted_age     of that one
    """

    size: PromptSize = EMPTY_SIZE
    tokens: float = 0.0
    cached: int = 0
    index: int = -1
    age: int = 0
    evicted_tokens: float = 0.0
    evicted_age: int = 0


NO_MATCH = Match()


class PrefixIndex:
    """block     tokens of a cache block
    capacity  of the cache, in tokens; None while nobody has told or shown it
    enabled   whether the engine has a prefix cache at all, as far as it says
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing is known of the engine."""
        self.block = DEFAULT_BLOCK
        self.capacity: int | None = None
        self.enabled = True
        self._known: OrderedDict[bytes, _KnownPrefix] = OrderedDict()
        self.reports_cached = False  # whether the engine does, with each answer
        self._written = 0
        self._hits: float | None = None  # the engine's count, when `_expected` was 0
        self._expected = 0
        # The ages at which a prefix was still found, and at which one was evicted.
        self._kept_age = 0
        self._evicted_age: int | None = None
        self._answer_shares = Window()  # of an answer's tokens, those that were cached when it was sent back
        self.trust = Ratio(1.0, prior_weight=2048, low=0.0, high=1.0)  # of what is expected to be cached, what is

    def __len__(self) -> int:
        return len(self._known)

    def match(self, prompt: Prompt) -> Match:
        """Changes nothing."""
        if not self.enabled:
            return NO_MATCH
        evicted_tokens, evicted_age = 0.0, 0
        for number in range(len(prompt.prefixes) - 1, -1, -1):
            prefix = prompt.prefixes[number]
            known = self._known.get(prefix.digest)
            if known is None:
                continue
            age = self._written - known.used
            if self._is_evicted(known, age):
                if not evicted_tokens:
                    evicted_tokens, evicted_age = known.tokens, age
                continue
            last = number == len(prompt.prefixes) - 1
            found = known.tokens - 1 if last else known.tokens + self._cached_answer(known, prefix)
            cached = int(max(0.0, found)) // self.block * self.block
            return Match(prefix.size, known.tokens, self._trusted(cached), number, age, evicted_tokens, evicted_age)
        return Match(evicted_tokens=evicted_tokens, evicted_age=evicted_age) if evicted_tokens else NO_MATCH

    def insert(self, prompt: Prompt, tokens: float, match: Match) -> None:
        """The prompt is prefilled, so all of it is in the cache from now on."""
        self._written += max(0, round(tokens) - match.cached)
        self._expected += match.cached
        self._remember(prompt, tokens, match, exact=False)

    def settle(self, prompt: Prompt, match: Match, tokens: int, answer: int, cached: int | None) -> None:
        """Correct what `insert` has estimated: the engine has counted the tokens of the prompt and of the answer.

        cached  tokens of the prompt that it found in its cache; None if it does not report them
        """
        self._written += answer
        self.reports_cached = self.reports_cached or cached is not None
        if cached is not None and match.evicted_tokens and cached >= FULL_HIT_FROM * match.evicted_tokens:
            self._found(match.evicted_age)
        elif cached is not None and match.index >= 0:
            self._correct(prompt.prefixes, match, min(cached, tokens))
        self._remember(prompt, tokens, match, exact=True)
        if prompt.prefixes and (known := self._known.get(prompt.prefixes[-1].digest)):
            known.answer = answer

    def expect(self, tokens: int) -> None:
        """So many cached tokens were sent without `match`, by somebody who knows that the engine has them."""
        self._expected += tokens

    def compare_hits(self, hits: float) -> None:
        """Compare with `hits`, the engine's own count of tokens that it has found in its cache since it started, unless
        it reports them with each answer. Not before enough were expected for the delay of a scrape not to matter."""
        if self._hits is None or self.reports_cached:
            self._hits, self._expected = hits, 0
        elif self._expected >= MIN_EXPECTED:
            self.trust.observe(min(hits - self._hits, self._expected), self._expected)
            self._hits, self._expected = hits, 0

    def answer_shares(self) -> list[float]:
        """Of recent answers that were sent back in a conversation, the cached shares, in order of size."""
        return list(self._answer_shares.ordered)

    def restore_answer_shares(self, shares: Iterable[float]) -> None:
        for share in shares:
            self._answer_shares.add(min(1.0, max(0.0, share)))

    def clear(self) -> None:
        """The engine has restarted: its cache is empty, and its counters begin at 0."""
        self._known.clear()
        self._hits = None

    def _is_evicted(self, known: _KnownPrefix, age: int) -> bool:
        return (self.capacity is not None and age + known.tokens > self.capacity) or (
            self._evicted_age is not None and age > (self._kept_age + self._evicted_age) / 2
        )

    def _found(self, age: int) -> None:
        """The newest observation is believed: ages vary with blocks that are in use, and with prefixes in common."""
        self._kept_age = max(self._kept_age, age)
        if self._evicted_age is not None and self._evicted_age <= age:
            self._evicted_age = 2 * age

    def _missed(self, age: int) -> None:
        self._evicted_age = age if self._evicted_age is None else min(self._evicted_age, age)
        if self._kept_age >= age:
            self._kept_age = age // 2

    def _cached_answer(self, known: _KnownPrefix, prefix: PrefixHash) -> float:
        """Tokens of the answer behind this prefix that are cached. A template may leave out what a model thought, and a
        text is not always cut into the tokens that it was made of."""
        if not known.answer or not prefix.answered:
            return 0.0
        shares = self._answer_shares.ordered
        return known.answer * (shares[len(shares) // 2] if shares else 1.0)

    def _trusted(self, cached: int) -> int:
        return int(cached * self.trust.value) // self.block * self.block

    def _correct(self, prefixes: Sequence[PrefixHash], match: Match, cached: int) -> None:
        known = self._known.get(prefixes[match.index].digest)
        if known is None:
            return
        # Not of the answer: a template that leaves out what was thought says nothing of the cache.
        expected = match.tokens
        missed = cached < MISS_BELOW * expected - self.block
        if cached >= FULL_HIT_FROM * expected:
            self._found(match.age)
        elif missed and match.age > MIN_EVICTION_AGE * (self.capacity or 0) and match.age > expected:
            self._missed(match.age)
            return
        # A part of a block is no miss, and where a length was estimated, it may be that which is wrong.
        whole = cached if known.exact else expected
        self.trust.observe(min(whole + self.block, expected) if cached else 0.0, expected)
        if not known.exact and cached:
            more = cached > expected / FULL_HIT_FROM + STRIDE_TOKENS  # up to the next prefix, prompts may go on alike
            if more or cached + self.block < expected:
                known.tokens = cached + self.block / 2
            return
        if missed:
            return
        if known.answer and prefixes[match.index].answered and known.answer >= self.block // 2:
            found = cached + self.block / 2 - known.tokens
            self._answer_shares.add(min(1.0, max(0.0, found / known.answer)))

    def _remember(self, prompt: Prompt, tokens: float, match: Match, *, exact: bool) -> None:
        """Between what is known and the whole, the tokens are spread by size."""
        if not prompt.prefixes:
            return
        rest = prompt.size.minus(match.size)
        whole = rest.text_bytes + rest.tokens or 1
        last = len(prompt.prefixes) - 1
        # The shortest last: of two that are equally old, vLLM evicts the longer one first, and so does this index.
        for number in range(last, -1, -1):
            prefix = prompt.prefixes[number]
            known = self._known.get(prefix.digest)
            if known is None or (number == last and exact) or (number > match.index and not known.exact):
                beyond = prefix.size.minus(match.size)
                share = (beyond.text_bytes + beyond.tokens) / whole
                at = tokens if number == last else match.tokens + (tokens - match.tokens) * min(1.0, max(0.0, share))
                counted = exact and number == last
                known = _KnownPrefix(at, counted, known.answer if known else 0, self._written)
                self._known[prefix.digest] = known
            known.used = self._written
            self._known.move_to_end(prefix.digest)
        while len(self._known) > MAX_PREFIXES:
            self._known.popitem(last=False)
