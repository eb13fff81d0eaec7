"""What a load is made of: requests, and the plan that says which of them waits for which.

Open loops, batches in lock-step, conversations and agents are all one thing: a request is due at its time, or a
delay after those it waits for have ended, whichever is later. Tokens are as the engine counts them, its chat
template included.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

# How a mixture-of-experts model routes it, and so what it costs: one book, vocabulary at random, long degenerate
# answers, or what many people write.
TextKind = Literal["book", "random", "reasoning", "mixed"]

Segment = tuple[str, int]  # a stretch of text by a name of its own, and its tokens


@dataclass(frozen=True, slots=True)
class Request:
    """One request of one user. Its number is its place in the plan; it refers to others by theirs, all lower.

    at             seconds from the start of the run, at the earliest
    kind           what sort of work it is, to be told apart in the figures
    prompt_tokens  what it adds: without shared instructions and without the conversation so far
    output_tokens  how long its answer wants to be; the model stops there, or at max_tokens
    max_tokens     what it asks for; None asks for output_tokens
    after, delay   it is due so many seconds after all of these have ended
    continues      the request whose prompt and answer it has before its own
    system         name of instructions that it shares with all requests of that name, system_tokens long
    session        its conversation or agent
    point          which of the plan's points it is measured for
    """

    at: float
    user: str
    kind: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    after: tuple[int, ...] = ()
    delay: float = 0.0
    continues: int | None = None
    system: str = ""
    system_tokens: int = 0
    session: str = ""
    text: TextKind = "mixed"
    point: int | None = None

    @property
    def asks_for(self) -> int:
        return self.max_tokens or self.output_tokens

    @property
    def answer_tokens(self) -> int:
        return min(self.output_tokens, self.asks_for)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a workload that has several: a batch size of a closed loop, a rate of a sweep.

    pp, tg  nominal prompt and answer tokens, as the article labels them
    """

    pp: int
    tg: int
    concurrency: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Plan:
    """`max_concurrency` is the client's own cap: who comes above it waits at the client, first come, first served."""

    requests: tuple[Request, ...]
    max_concurrency: int | None = None
    points: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        for number, request in enumerate(self.requests):
            before = request.after if request.continues is None else (*request.after, request.continues)
            if not all(0 <= other < number for other in before):
                raise ValueError(f"request {number} waits for one that comes after it")

    @cached_property
    def segments(self) -> list[tuple[Segment, ...]]:
        """Of each request, what its prompt is made of, in order. Equal names are equal text."""
        found: list[tuple[Segment, ...]] = []
        for number, request in enumerate(self.requests):
            if request.continues is not None:
                answer = self.requests[request.continues].answer_tokens
                before = (*found[request.continues], (f"answer {request.continues}", answer))
            else:
                before = ((f"system {request.system}", request.system_tokens),) if request.system_tokens else ()
            found.append((*before, (f"prompt {number}", request.prompt_tokens)))
        return found

    def prompt_tokens(self, number: int) -> int:
        """All of a request's prompt, the conversation so far included."""
        return sum(tokens for _, tokens in self.segments[number])

    def only(self, wanted: Callable[[Request], bool]) -> "Plan":
        """The plan without those that are not wanted, nor those that wait for them."""
        kept: dict[int, int] = {}
        requests: list[Request] = []
        for number, request in enumerate(self.requests):
            needs = request.after if request.continues is None else (*request.after, request.continues)
            if not wanted(request) or not all(other in kept for other in needs):
                continue
            kept[number] = len(requests)
            requests.append(
                replace(
                    request,
                    after=tuple(kept[other] for other in request.after),
                    continues=None if request.continues is None else kept[request.continues],
                )
            )
        return replace(self, requests=tuple(requests))

    def first(self, count: int) -> "Plan":
        return replace(self, requests=self.requests[:count])

    def capped(self, max_concurrency: int | None) -> "Plan":
        return replace(self, max_concurrency=max_concurrency)
