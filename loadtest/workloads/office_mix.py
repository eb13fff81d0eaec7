"""An office for some minutes: people who ask, chat, search and paste, and somebody whose agent works for them.

Of every ten people three ask questions, three chat, two search in the company's documents, one pastes long ones, and
one has an agent. Ten ask about six tenths of what a DGX Spark can do in bf16, so fifty are far too many for it.

People have a pace of their own. They read an answer, think, and write again: after the pause, and no sooner than their
reading allows, however fast the machine is; a slow machine makes them later. Programs have no pace: what Open WebUI
asks behind a new chat's back, and an agent's calls, leave when what they wait for has ended.

A chat carries its own turns along, and an agent its own steps; the instructions of a page are the same for all who use
it. The sizes are ours: plausible, and measured nowhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.workload import Options

Span = tuple[int, int]  # tokens, from and to
Pause = tuple[float, float]  # seconds

PEOPLE, MAX_PEOPLE = 10, 200
DURATION_S = 300.0
ARRIVAL_S = 20.0  # all have come by then
READING = 8  # tokens a second: people skim


@dataclass(frozen=True, slots=True)
class Single:
    """Requests that have nothing to do with each other, one at a time."""

    kind: str
    prompt: Span
    answer: Span
    pause: Pause
    system: str = ""


# What a page or a program puts first, in tokens. An agent's lists its tools.
INSTRUCTIONS = {"": 0, "chat": 350, "search": 600, "agent": 1800, "call": 300}

ASK = Single("question", (100, 1200), (100, 400), (6.0, 20.0), "chat")  # some with a mail or a piece of code
SEARCH = Single("rag", (3000, 8000), (150, 450), (10.0, 30.0), "search")  # chunks, then the question
PASTE = Single("document", (25_000, 25_000), (250, 500), (30.0, 60.0))

CHAT_TURN: Span = (30, 400)
CHAT_ANSWER: Span = (150, 450)
CHAT_TURNS = (3, 7)
CHAT_PAUSE: Pause = (6.0, 20.0)
NEXT_CHAT: Pause = (10.0, 30.0)

# Open WebUI's tasks after the first answer of a chat, one after the other, each in a message that no cache knows:
# a template, then the chat so far. Tokens of the template, and of the answer.
BACKGROUND: tuple[tuple[int, Span], ...] = (
    (250, (40, 60)),  # what to ask next
    (280, (20, 35)),  # title
    (220, (20, 40)),  # tags
)

AGENT_TASK: Span = (200, 800)
AGENT_STEP: Span = (100, 250)  # a plan, or the next one in the light of the results
AGENT_REPORT: Span = (200, 500)
AGENT_ROUNDS = (2, 3)
AGENT_CALLS = (4, 8)
CALL: Span = (600, 3000)  # a file, a page, a table to look through
CALL_ANSWER: Span = (60, 200)
TOOL_S = 0.3  # a tool's own time
NEXT_TASK: Pause = (10.0, 25.0)

# fmt: off
NAMES = (
    "ada", "ben", "cem", "dana", "eva", "finn", "gus", "hana", "ida", "jon",
    "kim", "lea", "mia", "nils", "olga", "paul", "rosa", "sven", "tara", "udo",
    "vera", "willem", "xenia", "yuri", "zoe", "arne", "bo", "cleo", "dirk", "elin",
    "fay", "greta", "hugo", "inga", "jan", "kaya", "luc", "maud", "noor", "omar",
    "pia", "ravi", "saskia", "tom", "ulla", "victor", "wanda", "xaver", "yara", "zeno",
)
# fmt: on


def office_mix(options: Options) -> Plan:
    people = PEOPLE if options.users is None else options.users
    duration = DURATION_S if options.duration is None else options.duration
    if not 1 <= people <= MAX_PEOPLE:
        raise ValueError(f"an office has 1 to {MAX_PEOPLE} people, not {people}")
    if duration <= 0:
        raise ValueError(f"an office that is open for {duration:g} s has no load: give a duration above 0")
    requests: list[Request] = []
    for number in range(people):
        name = name_of(number)
        # Random numbers of their own, so that one person more changes nobody's day.
        ROLES[number % len(ROLES)](_Person(name, duration, Random(f"{options.seed} {name}"), requests))
    return _in_order(requests)


def name_of(person: int) -> str:
    again, number = divmod(person, len(NAMES))
    return f"{NAMES[number]}-{again + 1}" if again else NAMES[number]


class _Person:
    """Who writes next at `at`, or the pause after the answer before, whichever is later."""

    def __init__(self, name: str, duration: float, random: Random, requests: list[Request]) -> None:
        self.name = name
        self.random = random
        self._duration = duration
        self._requests = requests
        self._at = random.uniform(0, min(ARRIVAL_S, duration))
        self._after: tuple[int, ...] = ()
        self._pause = 0.0

    def stays(self) -> bool:
        return self._at < self._duration

    def write(self, kind: str, prompt: Span, answer: Span, **how: Any) -> int:
        return self._add(kind, prompt, answer, after=self._after, delay=self._pause, **how)

    def call(self, kind: str, prompt: Span, answer: Span, after: tuple[int, ...], delay: float = 0, **how: Any) -> int:
        """A program does, on this person's behalf."""
        return self._add(kind, prompt, answer, after=after, delay=delay, **how)

    def read(self, number: int, pause: Pause, tokens_before: int = 0) -> None:
        self._pause = self.random.uniform(*pause)
        self._at += (tokens_before + self.tokens(number)[1]) / READING + self._pause
        self._after = (number,)

    def tokens(self, number: int) -> tuple[int, int]:
        """What it added to its conversation, and its answer."""
        request = self._requests[number]
        return request.prompt_tokens, request.answer_tokens

    def _add(self, kind: str, prompt: Span, answer: Span, *, system: str = "", **how: Any) -> int:
        request = Request(
            at=self._at,
            user=self.name,
            kind=kind,
            prompt_tokens=self.random.randint(*prompt),
            output_tokens=self.random.randint(*answer),
            system=system,
            system_tokens=INSTRUCTIONS[system],
            **how,
        )
        self._requests.append(request)
        return len(self._requests) - 1


def _single(what: Single) -> Callable[[_Person], None]:
    def work(person: _Person) -> None:
        while person.stays():
            person.read(person.write(what.kind, what.prompt, what.answer, system=what.system), what.pause)

    return work


def _chat(person: _Person) -> None:
    chats = 0
    while person.stays():
        chats += 1
        session = f"{person.name}-chat-{chats}"
        turn = person.write("chat", CHAT_TURN, CHAT_ANSWER, system="chat", session=session)
        task, so_far = turn, sum(person.tokens(turn))
        for template, answer in BACKGROUND:
            message = (template + so_far, template + so_far)
            task = person.call("background", message, answer, (task,), session=session)
        for _ in range(person.random.randint(*CHAT_TURNS) - 1):
            person.read(turn, CHAT_PAUSE)
            if not person.stays():
                return
            turn = person.write("chat", CHAT_TURN, CHAT_ANSWER, continues=turn, session=session)
        person.read(turn, NEXT_CHAT)


def _agent(person: _Person) -> None:
    """It plans, has several things looked at side by side, and goes on with what they came to."""
    tasks = 0
    while person.stays():
        tasks += 1
        session = f"{person.name}-agent-{tasks}"
        step = person.write("agent", AGENT_TASK, AGENT_STEP, system="agent", session=session)
        watched = 0
        rounds = person.random.randint(*AGENT_ROUNDS)
        for number in range(1, rounds + 1):
            calls = tuple(
                person.call("agent", CALL, CALL_ANSWER, (step,), TOOL_S, system="call", session=session)
                for _ in range(person.random.randint(*AGENT_CALLS))
            )
            answers = [person.tokens(call)[1] for call in calls]
            watched += person.tokens(step)[1] + max(answers)
            answer = AGENT_REPORT if number == rounds else AGENT_STEP
            step = person.call(
                "agent", (sum(answers), sum(answers)), answer, calls, TOOL_S, continues=step, session=session
            )
        person.read(step, NEXT_TASK, watched)


# fmt: off
ROLES: tuple[Callable[[_Person], None], ...] = (
    _single(ASK), _chat, _single(SEARCH), _agent, _single(PASTE),
    _single(ASK), _chat, _single(SEARCH), _single(ASK), _chat,
)
# fmt: on


def _in_order(requests: list[Request]) -> Plan:
    """By time. Whoever waits for another is not earlier and was added later, so it stays behind."""
    order = sorted(range(len(requests)), key=lambda number: requests[number].at)
    place = {number: position for position, number in enumerate(order)}
    return Plan(
        tuple(
            replace(
                request,
                after=tuple(place[other] for other in request.after),
                continues=None if request.continues is None else place[request.continues],
            )
            for request in map(requests.__getitem__, order)
        )
    )
