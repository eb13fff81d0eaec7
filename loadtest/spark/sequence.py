"""What is in the simulated engine: sequences, and the steps that compute them."""

from dataclasses import dataclass, field

from loadtest.workloads.plan import TextKind


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and its answer in the engine. A request with n > 1 or several prompts is several sequences.

    priority     lower is earlier, where the engine schedules by priority
    keys         identities of the full cache blocks of its prompt and of the answer to come, in order; equal keys
                 are equal text from the start
    cached       tokens of its prompt that the prefix cache had when it was first scheduled
    preemptions  how often it lost its seat for want of cache blocks

    The engine's own:

    computed    tokens prefilled or found in the prefix cache, counting composed steps
    first_step  the number of the step that makes its first token, or would have made it, had it decoded without a
                break ever since; -1 while it does not decode
    kept        tokens of its answer that are prefilled with its prompt, after a preemption
    arrival     its place among all that came, where priority counts
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
    kept: int = field(default=0, kw_only=True)
    arrival: int = field(default=-1, kw_only=True)

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError("a sequence has at least one prompt token, and makes at least one")

    @property
    def to_prefill(self) -> int:
        return self.prompt_tokens + self.kept

    @property
    def last_step(self) -> int:
        return self.first_step + self.output_tokens - 1


@dataclass(eq=False, slots=True)
class Step:
    """One forward pass. Its work is settled when it is composed; who gets a token, when it ends."""

    duration_s: float
    started: list[Sequence]  # they get their seat; one that was preempted, when it got its first
    chunks: list[tuple[Sequence, int]]  # parts of prompts, in tokens
    decoding: list[Sequence]
    first: list[Sequence]  # their first token comes
    resumed: list[Sequence]  # the next one after a preemption
    finished: list[Sequence]  # their last token comes

    @property
    def emitted(self) -> list[Sequence]:
        """All that get a token."""
        return [*self.decoding, *self.first, *self.resumed]
