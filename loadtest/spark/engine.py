"""The simulated engine: vLLM's scheduler with a DGX Spark's step times. It has no clock; a driver does this:

    engine.add(sequence)                          at any time
    while (step := engine.begin()) is not None:
        ...                                       step.duration_s goes by
        step = engine.end()                       step.first, step.emitted, step.finished: who got a token

Steps are composed as vLLM V1 does (continuous batching, chunked prefill). A step's budget is
`max_num_batched_tokens`. Each decoding sequence takes one token of it, then prompts already begun go on in
order, then waiting ones start while there are seats (`max_num_seqs`): first come, first served, or by their
priority. A prompt takes at most `long_prefill_token_threshold` tokens a step, unless it is the only request in
the engine.

Async scheduling: step k+1 is composed when step k starts, from what step k is bound to do. So a sequence that
arrives during step k joins step k+2; one that ends with step k is left out of k+1 but holds its seat until k
ends; one aborted during step k still costs its part of k+1. If there was nothing to put into step k+1, it is
composed anew when k ends.

The KV cache: a sequence gets a seat if its whole prompt fits besides what others hold now, and its blocks as its
tokens come. When there is none left for one with a seat, the last one seated is preempted, or by priority the
least urgent, and that may be itself. It lets go of its blocks and waits in front of the others, to be prefilled
again, its answer so far included. Nobody gets a seat in a step that took one.

With prefix caching a prompt starts behind those whole blocks of its start that are cached, but computes at least
one token. A block is there for others as soon as the step that fills it is composed, as it will be computed by
the time it is read. One of an answer comes a step later with async scheduling: vLLM does not know its tokens.

    T = tf + te·(1 − (1−q)^(Σ d + prefilled)) + td·decoding + tk·Σ context
           + tt·Σ factor·chunk + ta·Σ chunk·(start + chunk/2)

is a step's time (profiles.toml has the numbers and their source). The bracket is the share of a mixture's
experts that the step touches: each user more slows every user's decode, and a prompt of 64 tokens already
reads every expert. Tokens come at the end of their step, and all reach the client `to_s` later. Not modelled:
layers that keep less than the whole context, speculative decoding, end of sequence.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from random import Random

from loadtest.spark.decoding import Decoding
from loadtest.spark.kv_cache import CacheSnapshot, KVCache
from loadtest.spark.profile import KINDS, EngineProfile, StepWork
from loadtest.spark.sequence import Sequence, Step

__all__ = ["Engine", "Sequence", "Step", "prefill_alone"]

ONE_WORD_TOKENS = 12  # of a prompt of a word, its template included


class Engine:
    """The scheduler's state."""

    def __init__(self, profile: EngineProfile, *, seed: int = 0, noise: float = 0.0) -> None:
        """Each step's duration is multiplied by a factor of mean 1 and sigma `noise`, between 0.5 and 2."""
        self.profile = profile
        self.preemptions = 0
        self._noise = noise
        self._random = Random(seed)
        self._tt_factor = {kind: profile.tt_factor.get(kind, 1.0) for kind in KINDS}
        self._by_priority = profile.scheduling_policy == "priority"
        self._arrivals = count()
        self._seats = count()
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, int] = {}  # those with a seat, in the order of its number
        self._prefilling: list[Sequence] = []  # in that order, too
        # Blocks are counted only if that makes a difference.
        finite = profile.kv_cache_tokens is not None or profile.enable_prefix_caching
        self._cache = KVCache(profile) if finite else None
        self._decoding = Decoding(profile, counts_blocks=finite)
        self._ended = 0  # steps, so the number of the one that runs
        self._step: Step | None = None
        self._ahead: Step | None = None
        self._held_back: set[Sequence] = set()  # they get a token with the step that runs, but none with the next

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """The share of the cache's blocks that sequences hold; 0 if there is no end of them."""
        return self._cache.pool.usage if self._cache else 0.0

    @property
    def prefix_queries(self) -> int:
        """Tokens of the prompts that got a seat, with prefix caching."""
        return self._cache.queries if self._cache else 0

    @property
    def prefix_hits(self) -> int:
        """How many of them were cached."""
        return self._cache.hits if self._cache else 0

    @property
    def seated(self) -> frozenset[Sequence]:
        return frozenset(self._running)

    @property
    def next_step(self) -> int:
        """The number of the step that is composed next."""
        return self._decoding.number

    def cache_snapshot(self) -> CacheSnapshot | None:
        """None where blocks are not counted."""
        return self._cache.snapshot() if self._cache else None

    def generated(self, sequence: Sequence) -> int:
        """Tokens that a sequence in the engine has got so far."""
        kept = sequence.kept - (sequence in self._held_back)
        return max(kept, self._ended - sequence.first_step) if sequence.first_step >= 0 else kept

    def add(self, sequence: Sequence) -> None:
        """Raises ValueError if it could never be computed to its end."""
        if self._cache:
            self._cache.check(sequence)
        if self._by_priority:
            sequence.arrival = next(self._arrivals)
            insort(self._waiting, sequence, key=_precedence)
        else:
            self._waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Leave at once, without the token of the step that runs; one that has left already is no error."""
        if sequence in self._running:
            self._unseat(sequence)
        else:
            with suppress(ValueError):
                self._waiting.remove(sequence)
            if sequence not in self._held_back:
                return
        for step in (self._step, self._ahead):
            if step is not None:
                for sequences in (step.started, step.decoding, step.first, step.resumed, step.finished):
                    with suppress(ValueError):
                        sequences.remove(sequence)

    def begin(self) -> Step | None:
        """Start the next step; None if there is nothing to do."""
        assert self._step is None, "a step is running"
        self._step = self._ahead
        preemptions = -1
        while self._step is None and preemptions != self.preemptions:  # who lost its seat may have made room
            preemptions = self.preemptions
            self._step = self._compose()
        self._ahead = self._compose() if self._step and self.profile.async_scheduling else None
        return self._step

    def end(self) -> Step:
        """The step's time is over: its tokens are out, and the seats of those that finished are free."""
        assert self._step is not None, "no step is running"
        step, self._step = self._step, None
        self._ended += 1
        self._held_back.clear()
        if self._cache is None:
            for sequence in step.finished:
                del self._running[sequence]
            return step
        for sequence in sorted(step.finished, key=self._seat):
            if sequence in self._running:
                self._cache.fill(sequence, sequence.prompt_tokens + sequence.output_tokens - 1)
                self._unseat(sequence)
            else:  # preempted while its last token was under way
                self._waiting.remove(sequence)
        return step

    def _compose(self) -> Step | None:
        """The next step; None if it would be empty."""
        preemptions = self.preemptions
        alone = len(self._running) + len(self._waiting) == 1
        cap = 0 if alone else self.profile.long_prefill_token_threshold
        chunks: dict[Sequence, int] = {}
        idle = self._go_on(chunks, cap) if self._prefilling or self._cache else []
        members = list(self._decoding.members)
        work = StepWork(len(members), self._decoding.context, self._decoding.routed)
        started = self._start(chunks, cap) if self._waiting and self.preemptions == preemptions else []
        if not members and not chunks:
            for sequence in idle:
                self._decoding.start(sequence)
            return None

        for sequence in idle:
            self._hold_back(sequence)
        number = self._decoding.number
        self._decoding.advance()
        for sequence in idle:
            sequence.first_step += 1
            self._decoding.start(sequence)
        self._prefill(chunks, work)
        first, resumed = self._end_prefills(chunks, number)
        finished = self._decoding.end()
        return Step(self._duration_s(work), started, list(chunks.items()), members, first, resumed, finished)

    def _prefill(self, chunks: dict[Sequence, int], work: StepWork) -> None:
        """What the parts of prompts add to a step's work."""
        for sequence, chunk in chunks.items():
            work.prefilled += chunk
            work.attended += chunk * (sequence.computed - chunk / 2)
            work.weighted += chunk * self._tt_factor[sequence.text]

    def _end_prefills(self, chunks: Iterable[Sequence], number: int) -> tuple[list[Sequence], list[Sequence]]:
        """Whose prompt ends with the step of this number: who gets a first token, and who goes on after a
        preemption."""
        first: list[Sequence] = []
        resumed: list[Sequence] = []
        for sequence in chunks:
            if sequence.computed == sequence.to_prefill:
                (resumed if sequence.kept else first).append(sequence)
                sequence.first_step = number - sequence.kept
                self._decoding.start(sequence)
        if first or resumed:
            self._prefilling = [sequence for sequence in self._prefilling if sequence.first_step < 0]
        return first, resumed

    def _duration_s(self, work: StepWork) -> float:
        duration_s = self.profile.step_s(work)
        if self._noise:
            duration_s *= min(2.0, max(0.5, self._random.gauss(1.0, self._noise)))
        return duration_s

    def _go_on(self, chunks: dict[Sequence, int], cap: int) -> list[Sequence]:
        """Parts of the prompts already begun, and blocks for all; who decodes, but not in this step.

        As in vLLM, those are the ones seated after one that lost its own seat while it asked for a block.
        """
        cache, decoding = self._cache, self._decoding
        left = self.profile.max_num_batched_tokens - len(decoding.members)
        for sequence in self._in_need() if cache else self._prefilling:
            chunk = 0
            if sequence.first_step < 0:
                chunk = min(sequence.prompt_tokens + sequence.kept - sequence.computed, cap or left, left)
            if cache:
                if sequence not in self._running:  # it made room for one before it
                    continue
                decodes, seat = sequence in decoding.members, self._running[sequence]
                tokens = decoding.tokens(sequence) if decodes else sequence.computed + chunk
                while cache.lacks(sequence, tokens):
                    victim = max(self._running, key=_precedence) if self._by_priority else next(reversed(self._running))
                    left += chunks.pop(victim, 0) + (victim in decoding.members)
                    self._preempt(victim)
                    if victim is sequence:
                        idle = [each for each in decoding.members if self._running[each] > seat]
                        for each in idle:
                            decoding.leave(each)
                        return idle
                known = tokens - 1 if decodes and self.profile.async_scheduling else tokens
                cache.grow(sequence, tokens, known)
            if chunk:
                sequence.computed += chunk
                chunks[sequence] = chunk
                left -= chunk
        return []

    def _in_need(self) -> list[Sequence]:
        """Whose blocks change in the next step, in the order of their seats: who prefills, who begins a block of its
        answer, and who fills one, if it may be shared at once."""
        changing = [*self._prefilling, *self._decoding.beginning()]
        if self.profile.enable_prefix_caching and not self.profile.async_scheduling and self.profile.block_size > 1:
            changing += self._decoding.beginning(ahead=1)
        return sorted(changing, key=self._seat)

    def _start(self, chunks: dict[Sequence, int], cap: int) -> list[Sequence]:
        """Those who wait begin, while there are seats, tokens and blocks; who of them had no seat before."""
        started = []
        cache, waiting = self._cache, self._waiting
        left = self.profile.max_num_batched_tokens - len(self._decoding.members) - sum(chunks.values())
        seats = self.profile.max_num_seqs - len(self._running)
        while left and seats and waiting:
            sequence = waiting[0]
            if cache and not cache.admit(sequence):
                break
            waiting.popleft()
            self._running[sequence] = next(self._seats)
            self._prefilling.append(sequence)
            if not sequence.preemptions:
                started.append(sequence)
            chunks[sequence] = chunk = min(
                sequence.prompt_tokens + sequence.kept - sequence.computed, cap or left, left
            )
            sequence.computed += chunk
            if cache:
                cache.grow(sequence, sequence.computed, sequence.computed)
            left -= chunk
            seats -= 1
        return started

    def _preempt(self, sequence: Sequence) -> None:
        """Its seat and its blocks go to others; it will be prefilled anew."""
        self.preemptions += 1
        sequence.preemptions += 1
        self._unseat(sequence)
        self._hold_back(sequence)
        sequence.first_step = -1
        sequence.computed = 0
        if self._by_priority:
            insort(self._waiting, sequence, key=_precedence)
        else:
            self._waiting.appendleft(sequence)

    def _hold_back(self, sequence: Sequence) -> None:
        """If it decodes, it does not in the step that is being composed."""
        if sequence.first_step >= 0:
            sequence.kept = self._decoding.number - sequence.first_step
            if self._step is not None and sequence in self._step.emitted:
                self._held_back.add(sequence)

    def _unseat(self, sequence: Sequence) -> None:
        del self._running[sequence]
        if sequence in self._decoding.members:
            self._decoding.leave(sequence)
        elif sequence.first_step < 0:
            self._prefilling.remove(sequence)
        if self._cache:
            self._cache.release(sequence)

    def _seat(self, sequence: Sequence) -> int:
        return self._running.get(sequence, -1)


def _precedence(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.arrival


def word_latency(profile: EngineProfile) -> float:
    """Seconds to the first token of an answer to a prompt of a word: what a load tester takes for the server's own."""
    return prefill_alone(profile, ONE_WORD_TOKENS)


def prefill_alone(profile: EngineProfile, tokens: int) -> float:
    """Seconds from a prompt's arrival at an idle engine to its first token at the client."""
    engine = Engine(profile)
    engine.add(Sequence(tokens, output_tokens=1))
    seconds = profile.to_s
    while (step := engine.begin()) is not None:
        seconds += step.duration_s
        engine.end()
    return seconds
