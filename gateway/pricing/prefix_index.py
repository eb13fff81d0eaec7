"""Which beginnings of prompts the engine has in its prefix cache, as far as can be told from what was sent to it.

vLLM caches whole blocks of tokens, lets go of those that were used longest ago, and computes at least one token of
each prompt. Blocks are not known here; beginnings are (`gateway.pricing.prompt`), with the tokens that the engine
counted up to there. So the next turn of a conversation is found by the turn before, whose prompt and answer were
counted, and it is right to the block; a text that was pasted before is found by the bytes that it shares. What the
engine says was cached corrects it: how long beginnings stay, whether answers are found again, and whether anything
is.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.pricing.estimators import Ratio, Window
from gateway.pricing.prompt import EMPTY, STRIDE, PrefixHash, Prompt, Size

# Beginnings remembered; each has 200 bytes. A prompt of 25 000 tokens has about 150.
MOST = 1 << 16
BLOCK = 16

# A prediction of which less than this has come true was a miss: the beginning was no longer there.
HIT = 0.5
# One of which so much has come true was all there; in between, what others begin alike with was.
WHOLE = 0.9
STRIDE_TOKENS = STRIDE / 4
# Misses of what was used a moment ago are no evictions, but tell that the engine does not cache as expected.
FRESH = 0.1
# Cached tokens that must have been expected before the engine's counter is compared.
ENOUGH = 4096


@dataclass(slots=True)
class _Known:
    """tokens  up to the end of this beginning
    exact   they were counted, not estimated
    answer  tokens of the answer that was given to it, 0 if it was no whole prompt
    used    when, in tokens that went into the cache since the start
    """

    tokens: float
    exact: bool
    answer: int
    used: int


@dataclass(frozen=True, slots=True)
class Match:
    """The longest beginning of a prompt that is known.

    size    of that beginning
    tokens  it has
    cached  of the whole prompt, expected
    link    which of the prompt's chain it is
    age     tokens that went into the cache since it was last used
    lost    tokens of a longer one, that is known but taken to be gone; its age
    """

    size: Size = EMPTY
    tokens: float = 0.0
    cached: int = 0
    link: int = -1
    age: int = 0
    lost: float = 0.0
    lost_age: int = 0


NOTHING = Match()


class PrefixIndex:
    """block     tokens of a cache block
    capacity  of the cache, in tokens; None while nobody has told or shown it
    enabled   whether the engine has a prefix cache at all, as far as it says
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing is known of the engine."""
        self.block = BLOCK
        self.capacity: int | None = None
        self.enabled = True
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self.tells = False  # with each answer, how much of its prompt was cached
        self._written = 0
        self._hits: float | None = None  # of the engine's counter, when `_expected` was 0
        self._expected = 0
        # Tokens written since its last use, after which a beginning was still found, and after which it was gone.
        self._stayed = 0
        self._gone: int | None = None
        self._answers = Window()  # share of an answer's tokens that were found again
        self.trust = Ratio(1.0, belief=2048, low=0.0, high=1.0)  # of what is expected to be cached, what is

    def __len__(self) -> int:
        return len(self._known)

    def match(self, prompt: Prompt) -> Match:
        """Changes nothing."""
        if not self.enabled:
            return NOTHING
        lost, lost_age = 0.0, 0
        for number in range(len(prompt.chain) - 1, -1, -1):
            link = prompt.chain[number]
            known = self._known.get(link.name)
            if known is None:
                continue
            age = self._written - known.used
            if self._is_gone(known, age):
                if not lost:
                    lost, lost_age = known.tokens, age
                continue
            last = number == len(prompt.chain) - 1
            found = known.tokens - 1 if last else known.tokens + self._again(known, link)
            cached = int(max(0.0, found)) // self.block * self.block
            return Match(link.size, known.tokens, self._trusted(cached), number, age, lost, lost_age)
        return Match(lost=lost, lost_age=lost_age) if lost else NOTHING

    def prefilled(self, prompt: Prompt, tokens: float, match: Match) -> None:
        """Its first token is there, so all of it is in the cache, whoever asks next."""
        self._written += max(0, round(tokens) - match.cached)
        self._expected += match.cached
        self._remember(prompt, tokens, match, exact=False)

    def settled(self, prompt: Prompt, match: Match, tokens: int, answer: int, cached: int | None) -> None:
        """The engine has counted its tokens and those of its answer. `cached` is what it found, None if it does not
        tell."""
        self._written += answer
        self.tells = self.tells or cached is not None
        if cached is not None and match.lost and cached >= WHOLE * match.lost:
            self._found(match.lost_age)
        elif cached is not None and match.link >= 0:
            self._correct(prompt.chain, match, min(cached, tokens))
        self._remember(prompt, tokens, match, exact=True)
        if prompt.chain and (known := self._known.get(prompt.chain[-1].name)):
            known.answer = answer

    def expect(self, tokens: int) -> None:
        """So many were sent that the engine has, by somebody who knows without asking here."""
        self._expected += tokens

    def counted(self, hits: float) -> None:
        """The engine's own count of tokens that it found in its cache, since it was started: for one that does not
        tell it with each answer. Compared when enough were expected for a scrape's delay not to matter."""
        if self._hits is None or self.tells:
            self._hits, self._expected = hits, 0
        elif self._expected >= ENOUGH:
            self.trust.saw(min(hits - self._hits, self._expected), self._expected)
            self._hits, self._expected = hits, 0

    def answers(self) -> list[float]:
        """Shares of answers that were found again, in order of size."""
        return list(self._answers.ordered)

    def found_again(self, shares: Iterable[float]) -> None:
        for share in shares:
            self._answers.add(min(1.0, max(0.0, share)))

    def forget(self) -> None:
        """The engine was started anew: its cache is empty, and its counters begin at 0."""
        self._known.clear()
        self._hits = None

    def _is_gone(self, known: _Known, age: int) -> bool:
        return (self.capacity is not None and age + known.tokens > self.capacity) or (
            self._gone is not None and age > (self._stayed + self._gone) / 2
        )

    def _found(self, age: int) -> None:
        """The newest is believed: blocks that are held meanwhile, and beginnings that are shared, make it vary."""
        self._stayed = max(self._stayed, age)
        if self._gone is not None and self._gone <= age:
            self._gone = 2 * age

    def _missed(self, age: int) -> None:
        self._gone = age if self._gone is None else min(self._gone, age)
        if self._stayed >= age:
            self._stayed = age // 2

    def _again(self, known: _Known, link: PrefixHash) -> float:
        """Tokens of the answer that come next. A template may leave out what a model thought, and a text is not always
        cut into the tokens that it was made of."""
        if not known.answer or not link.answered:
            return 0.0
        shares = self._answers.ordered
        return known.answer * (shares[len(shares) // 2] if shares else 1.0)

    def _trusted(self, cached: int) -> int:
        return int(cached * self.trust.value) // self.block * self.block

    def _correct(self, chain: Sequence[PrefixHash], match: Match, cached: int) -> None:
        known = self._known.get(chain[match.link].name)
        if known is None:
            return
        # Not of the answer: a template that leaves out what was thought says nothing of the cache.
        expected = match.tokens
        missed = cached < HIT * expected - self.block
        if cached >= WHOLE * expected:
            self._found(match.age)
        elif missed and match.age > FRESH * (self.capacity or 0) and match.age > expected:
            self._missed(match.age)
            return
        # A part of a block is no miss, and where a length was estimated, it may be that which is wrong.
        whole = cached if known.exact else expected
        self.trust.saw(min(whole + self.block, expected) if cached else 0.0, expected)
        if not known.exact and cached:
            more = cached > expected / WHOLE + STRIDE_TOKENS  # it may go on alike up to where the next name is due
            if more or cached + self.block < expected:
                known.tokens = cached + self.block / 2
            return
        if missed:
            return
        if known.answer and chain[match.link].answered and known.answer >= self.block // 2:
            found = cached + self.block / 2 - known.tokens
            self._answers.add(min(1.0, max(0.0, found / known.answer)))

    def _remember(self, prompt: Prompt, tokens: float, match: Match, *, exact: bool) -> None:
        """Between what is known and the whole, the tokens are spread by size."""
        if not prompt.chain:
            return
        rest = prompt.size.minus(match.size)
        whole = rest.text_bytes + rest.tokens or 1
        last = len(prompt.chain) - 1
        # The shortest last: of two that are equally old, vLLM lets go of the longer one first, and so is it here.
        for number in range(last, -1, -1):
            link = prompt.chain[number]
            known = self._known.get(link.name)
            if known is None or (number == last and exact) or (number > match.link and not known.exact):
                part = link.size.minus(match.size)
                share = (part.text_bytes + part.tokens) / whole
                at = tokens if number == last else match.tokens + (tokens - match.tokens) * min(1.0, max(0.0, share))
                counted = exact and number == last
                known = _Known(at, counted, known.answer if known else 0, self._written)
                self._known[link.name] = known
            known.used = self._written
            self._known.move_to_end(link.name)
        while len(self._known) > MOST:
            self._known.popitem(last=False)
