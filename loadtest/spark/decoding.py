"""Those who decode in the simulated engine, and all that their next step asks of it.

One that decodes is in every step, so when it begins to, it is known in which it will end and in which it begins a block
of the KV cache. Hence a step costs what changes with it, not what runs in it: nothing is counted token by token.
"""

from collections import defaultdict

from loadtest.spark.profile import EngineProfile
from loadtest.spark.sequence import Sequence


class Decoding:
    """The sums of the next step, kept as they change.

    number   which step that is: the next to be composed
    members  who decodes in it; a dict keeps their order
    context  tokens that they will read in it
    routed   Σ d of them
    """

    def __init__(self, profile: EngineProfile, *, counts_blocks: bool) -> None:
        self.number = 0
        self.members: dict[Sequence, None] = {}
        self.context = 0
        self.routed = 0.0
        self._d = profile.d
        self._counts_blocks = counts_blocks
        self._ending: defaultdict[int, list[Sequence]] = defaultdict(list)  # whose last step has this number
        # Who begins a block in steps of this number, modulo the size of a block.
        self._beginning: list[dict[Sequence, None]] = [{} for _ in range(profile.block_size)]

    def advance(self) -> None:
        """The step is composed; in the one after it each reads one token more."""
        self.number += 1
        self.context += len(self.members)

    def end(self) -> list[Sequence]:
        """Those whose last step was composed; they do not decode any more."""
        ended = self._ending.pop(self.number - 1, [])
        for sequence in ended:
            self._remove(sequence)
        return ended

    def start(self, sequence: Sequence) -> None:
        """With the next step; its first_step is known."""
        self.members[sequence] = None
        self.context += sequence.prompt_tokens + self.number - sequence.first_step
        self.routed += self._d[sequence.text]
        self._ending[sequence.first_step + sequence.output_tokens - 1].append(sequence)
        if self._counts_blocks:
            self._beginning[self._phase(sequence)][sequence] = None

    def leave(self, sequence: Sequence) -> None:
        """Before its last step."""
        self._ending[sequence.last_step].remove(sequence)
        self._remove(sequence)

    def tokens(self, sequence: Sequence) -> int:
        """What it reads in the next step: its prompt, its answer so far."""
        return sequence.prompt_tokens + self.number - sequence.first_step

    def beginning(self, ahead: int = 0) -> dict[Sequence, None]:
        """Who begins a block in the next step, or so many after it: in the one before, they fill one."""
        return self._beginning[(self.number + ahead) % len(self._beginning)]

    def _remove(self, sequence: Sequence) -> None:
        del self.members[sequence]
        self.context -= sequence.prompt_tokens + self.number - sequence.first_step
        self.routed = self.routed - self._d[sequence.text] if self.members else 0.0  # lest it drifts away
        if self._counts_blocks:
            del self._beginning[self._phase(sequence)][sequence]

    def _phase(self, sequence: Sequence) -> int:
        return (sequence.first_step + 1 - sequence.prompt_tokens) % len(self._beginning)
