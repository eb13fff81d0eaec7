"""The load that shows it: a few long prompts at once, and short ones that arrive meanwhile. Sized to the engine."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from loadtest.workloads.open_loops import arrivals
from loadtest.workloads.plan import Plan, Request

LONG, SHORT = "long", "short"
LONG_TOKENS, RATE = 24_000, 5.0  # where the engine allows them
SHORT_PROBES, LONG_PROBES = 5, 2  # prompts, short and long, one after the other, for what they take unloaded

MAX_ALONE_S = 10.0  # that a long prompt may take alone, or a run would take minutes
ROUND_TO = 100  # tokens
MIN_TO_SHORT = 1.5  # times what the gateway holds for short
# What short prompts alone may make of the engine's time, or they would wait for each other and not for the long ones:
# half of it in prefill, and so many answers at once.
MAX_PREFILL_SHARE, MAX_ANSWERS = 0.5, 10.0


@dataclass(frozen=True)
class Shape:
    """Tokens are those of a prompt and of its answer; rate is in requests a second."""

    longs: int = 6
    long_tokens: int = LONG_TOKENS
    long_answer: int = 128
    shorts: int = 40
    short_tokens: int = 200
    short_answer: int = 64
    rate: float = RATE
    seed: int = 1

    def plan(self) -> Plan:
        """Everybody is somebody else, so that no one's turn is behind his own. Short ones arrive at random, the same in
        each run."""
        long = [
            Request(0.0, f"paster-{number}", LONG, self.long_tokens, self.long_answer) for number in range(self.longs)
        ]
        due = arrivals(self.shorts, self.rate, 1.0, self.seed)
        short = [
            Request(at, f"asker-{number}", SHORT, self.short_tokens, self.short_answer) for number, at in enumerate(due)
        ]
        return Plan(tuple(sorted([*long, *short], key=lambda request: request.at)))

    def unloaded(self) -> Plan:
        """Short prompts, each when the one before has ended; the first is a warm-up."""
        short = Request(0.0, "asker", SHORT, self.short_tokens, self.short_answer)
        return Plan(tuple(replace(short, after=(n - 1,) if n else ()) for n in range(SHORT_PROBES + 1)))

    def alone(self) -> Plan:
        """Long prompts, one by one; a short one before them meets whatever is slow the first time."""
        short = Request(0.0, "asker", SHORT, self.short_tokens, 2)
        long = Request(0.0, "paster", LONG, self.long_tokens, 2)
        return Plan((short, *(replace(long, after=(number,)) for number in range(LONG_PROBES))))

    @property
    def text(self) -> str:
        return (
            f"{self.longs} prompts of {self.long_tokens} tokens at once, {self.shorts} of {self.short_tokens} at "
            f"{self.rate:.3g}/s; answers of {self.long_answer} and {self.short_answer}; seed {self.seed}"
        )


@dataclass(frozen=True)
class LongPrompts:
    """How long a long prompt is: as long as is wanted, else what the engine is known to prefill in about ten seconds.

    most    tokens that prompt and answer may have together
    answer  tokens of its answer
    short   tokens that are short to the gateway
    """

    wanted: int | None
    most: int
    answer: int
    short: int

    def tokens(self, prefill: Callable[[float], float]) -> int:
        """Raises ValueError for what the engine does not take, or for what is not long."""
        room = self.most - self.answer
        if self.wanted is not None and self.wanted > room:
            raise ValueError(
                f"a prompt of {self.wanted} tokens and an answer of {self.answer} are more than this model takes: "
                f"--long-tokens {max(0, room)} at the most"
            )
        tokens = self._fitting(room, prefill) if self.wanted is None else self.wanted
        if tokens <= self.short:
            raise ValueError(
                f"prompts of {tokens} tokens are short to the gateway, and never sliced: give more --long-tokens, or "
                f"--set long_prompt_tokens below that (it is {self.short})"
            )
        return tokens

    def _fitting(self, room: int, prefill: Callable[[float], float]) -> int:
        low, high = 0, min(LONG_TOKENS, room)
        while high - low > ROUND_TO:
            middle = (low + high) // 2
            low, high = (middle, high) if prefill(middle) <= MAX_ALONE_S else (low, middle)
        fits = high if prefill(high) <= MAX_ALONE_S else low
        return min(room, max(fits // ROUND_TO * ROUND_TO, int(MIN_TO_SHORT * self.short)))


def rate(wanted: float | None, ttft_s: float, e2e_s: float) -> float:
    """Of short prompts: what is wanted, else what the engine can do, by what one takes unloaded."""
    if wanted is not None:
        return wanted
    return min(RATE, MAX_PREFILL_SHARE / max(ttft_s, 1e-6), MAX_ANSWERS / max(e2e_s, 1e-6))
