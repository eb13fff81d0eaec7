"""The simulated engine: vLLM's scheduler with a DGX Spark's step times. It has no clock; a driver does this:

    engine.add(sequence)                          at any time
    while (step := engine.begin()) is not None:
        ...                                       step.duration_s goes by
        step = engine.end()                       step.first, step.emitted, step.finished: who got a token

Steps are composed as vLLM V1 does (continuous batching, chunked prefill). A step's budget is
`max_num_batched_tokens`. Each decoding sequence takes one token of it, then prompts already begun go on in
order, then waiting ones start, first come first served, while there are seats (`max_num_seqs`). A prompt
takes at most `long_prefill_token_threshold` tokens a step, unless it is the only request in the engine.

Async scheduling: step k+1 is composed when step k starts, from what step k is bound to do. So a sequence that
arrives during step k joins step k+2; one that ends with step k is left out of k+1 but holds its seat until k
ends; one aborted during step k still costs its part of k+1. If there was nothing to put into step k+1, it is
composed anew when k ends.

    T = tf + te·(1 − (1−q)^(d·decoding + prefilled)) + td·decoding + tk·Σ context
           + tt·prefilled + ta·Σ chunk·(start + chunk/2)

is a step's time (profiles.toml has the numbers and their source). The bracket is the share of a mixture's
experts that the step touches: each user more slows every user's decode, and a prompt of 64 tokens already
reads every expert. Tokens come at the end of their step, and all reach the client `to_s` later. Not modelled:
a full KV cache and its preemptions, prefix caching, speculative decoding, end of sequence.
"""

from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from loadtest.profile import KINDS, EngineProfile
from loadtest.request import TextKind


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and its answer in the engine. A request with n > 1 or several prompts is several sequences.

    priority    lower is earlier, where the engine schedules by priority
    keys        identities of the full cache blocks of its prompt and of the answer to come, in order: equal keys
                are equal text from the start
    cached      tokens of its prompt that the prefix cache had when it was first scheduled
    preemptions how often it lost its seat for want of cache blocks
    computed    prompt tokens prefilled, counting composed steps
    first_step  the number of the step that makes its first token; -1 until that is composed
    """

    prompt_tokens: int
    output_tokens: int
    computed: int = 0
    first_step: int = -1
    text: TextKind = field(default="mixed", kw_only=True)
    priority: int = field(default=0, kw_only=True)
    keys: tuple[int, ...] = field(default=(), kw_only=True)
    cached: int = field(default=0, kw_only=True)
    preemptions: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError("a sequence has at least one prompt token, and makes at least one")

    @property
    def last_step(self) -> int:
        return self.first_step + self.output_tokens - 1


@dataclass(eq=False, slots=True)
class Step:
    """One forward pass. Its work is settled when it is composed; who gets a token, when it ends."""

    duration_s: float
    started: list[Sequence]  # they get their seats: for the first time, not those preempted before
    chunks: list[tuple[Sequence, int]]  # parts of prompts, in tokens
    decoding: list[Sequence]
    first: list[Sequence]  # their first token comes
    finished: list[Sequence]  # their last token comes

    @property
    def emitted(self) -> list[Sequence]:
        """All that get a token."""
        return [*self.decoding, *self.first]


class Engine:
    """The scheduler's state. A sequence that decodes is in every step, so its last step's number is known.

    Hence a step costs what changes with it, not what runs in it: nothing is counted token by token.
    """

    def __init__(self, profile: EngineProfile, *, seed: int = 0, noise: float = 0.0) -> None:
        """Each step's duration is multiplied by a factor of mean 1 and sigma `noise`, between 0.5 and 2."""
        self.profile = profile
        self._noise = noise
        self._random = Random(seed)
        self._waiting: deque[Sequence] = deque()
        self._running: set[Sequence] = set()  # those with a seat
        self._prefilling: list[Sequence] = []
        self._decoding: dict[Sequence, None] = {}  # in the next step to be composed; a dict keeps their order
        self._context = 0  # tokens that they will read in it
        self._kinds = dict.fromkeys(KINDS, 0)  # how many of them by their text
        self._routed = 0.0  # Σ d of them
        self._ending: defaultdict[int, list[Sequence]] = defaultdict(list)  # whose last step has this number
        self._composed = 0  # steps, so the number of the next one
        self._ended = 0
        self._step: Step | None = None
        self._ahead: Step | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def generated(self, sequence: Sequence) -> int:
        """Tokens that a sequence in the engine has got so far."""
        return max(0, self._ended - sequence.first_step) if sequence.first_step >= 0 else 0

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Leave at once, without the token of the step that runs; one that has left already is no error."""
        if sequence not in self._running:
            with suppress(ValueError):
                self._waiting.remove(sequence)
            return
        self._running.remove(sequence)
        if sequence in self._decoding:
            self._ending[sequence.last_step].remove(sequence)
            self._stop_decoding(sequence)
        composed = [step for step in (self._step, self._ahead) if step is not None]
        getting = [each for step in composed for each in (step.started, step.decoding, step.first, step.finished)]
        for sequences in (self._prefilling, *getting):
            with suppress(ValueError):
                sequences.remove(sequence)

    def begin(self) -> Step | None:
        """Start the next step; None if there is nothing to do."""
        assert self._step is None, "a step is running"
        self._step = self._ahead or self._compose()
        self._ahead = self._compose() if self._step and self.profile.async_scheduling else None
        return self._step

    def end(self) -> Step:
        """The step's time is over: its tokens are out, and the seats of those that finished are free."""
        assert self._step is not None, "no step is running"
        step, self._step = self._step, None
        self._ended += 1
        self._running.difference_update(step.finished)
        return step

    def _compose(self) -> Step | None:
        decoding, context, routed = list(self._decoding), self._context, self._routed
        chunks: list[tuple[Sequence, int]] = []
        started: list[Sequence] = []
        attended = 0.0
        budget = self.profile.max_num_batched_tokens - len(decoding)
        alone = len(self._running) + len(self._waiting) == 1
        threshold = 0 if alone else self.profile.long_prefill_token_threshold
        while budget and (len(chunks) < len(self._prefilling) or self._admit()):
            sequence = self._prefilling[len(chunks)]
            chunk = min(sequence.prompt_tokens - sequence.computed, threshold or budget, budget)
            attended += chunk * (sequence.computed + chunk / 2)
            if not sequence.computed:
                started.append(sequence)
            sequence.computed += chunk
            budget -= chunk
            chunks.append((sequence, chunk))
        if not decoding and not chunks:
            return None

        number, self._composed = self._composed, self._composed + 1
        self._context += len(decoding)  # in the step after, each reads one token more
        first = [sequence for sequence, _ in chunks if sequence.computed == sequence.prompt_tokens]
        self._prefilling = [each for each in self._prefilling if each.computed < each.prompt_tokens]
        for sequence in first:
            sequence.first_step = number
            self._start_decoding(sequence)
        finished = self._ending.pop(number, [])
        for sequence in finished:
            self._stop_decoding(sequence)

        prefilled = self.profile.max_num_batched_tokens - len(decoding) - budget
        duration_s = self.profile.step_s(
            decoding=len(decoding),
            context=context,
            prefilled=prefilled,
            attended=attended,
            routed=routed,
            weighted=sum(self.profile.tt_factor.get(sequence.text, 1.0) * chunk for sequence, chunk in chunks),
        )
        if self._noise:
            duration_s *= min(2.0, max(0.5, self._random.gauss(1.0, self._noise)))
        return Step(duration_s, started, chunks, decoding, first, finished)

    def _admit(self) -> bool:
        """Seat the first in line, if there is one and there is a seat."""
        if not self._waiting or len(self._running) == self.profile.max_num_seqs:
            return False
        sequence = self._waiting.popleft()
        self._running.add(sequence)
        self._prefilling.append(sequence)
        return True

    def _next_context(self, sequence: Sequence) -> int:
        """Tokens that it reads decoding in the next step to be composed: its prompt, its answer so far."""
        return sequence.prompt_tokens + self._composed - sequence.first_step

    def _start_decoding(self, sequence: Sequence) -> None:
        self._decoding[sequence] = None
        self._context += self._next_context(sequence)
        self._ending[sequence.last_step].append(sequence)
        self._count(sequence, 1)

    def _stop_decoding(self, sequence: Sequence) -> None:
        del self._decoding[sequence]
        self._context -= self._next_context(sequence)
        self._count(sequence, -1)

    def _count(self, sequence: Sequence, change: int) -> None:
        self._kinds[sequence.text] += change
        self._routed = sum(self.profile.d[kind] * count for kind, count in self._kinds.items())


def prefill_alone(profile: EngineProfile, tokens: int) -> float:
    """Seconds from a prompt's arrival at an idle engine to its first token at the client."""
    engine = Engine(profile)
    engine.add(Sequence(tokens, output_tokens=1))
    seconds = profile.to_s
    while (step := engine.begin()) is not None:
        seconds += step.duration_s
        engine.end()
    return seconds
