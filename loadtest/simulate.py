"""The virtual clock: a heap of events drives the simulated engine, and in front of it the very admission, policy
and cost model that the gateway runs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import ceil

from gateway.admission import Admission
from gateway.completion import Prompt
from gateway.cost import CostModel
from gateway.pace import Pace
from gateway.sse import Usage
from loadtest.engine import Engine, Sequence, Step
from loadtest.office import Arrival
from loadtest.records import Record
from policies.base import Job


class Agenda:
    """What is still to happen, and what time it is. What falls on one instant happens in the order entered."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._count), act))

    def run(self) -> None:
        while self._events:
            self.now, _, act = heappop(self._events)
            act()


@dataclass(eq=False)
class _Request:
    record: Record
    prompts: tuple[Prompt, ...]
    sequence: Sequence
    job: Job | None = None

    @property
    def usage(self) -> Usage:
        return Usage(self.sequence.prompt_tokens, self.sequence.output_tokens)


class Simulation:
    """Streamed chat requests, one prompt each. Without admission they go straight at the engine.

    `pace` is told what a gateway would tell it, and `watch` of each arrival, with the time, once it is dealt with.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission | None = None,
        cost_model: CostModel | None = None,
        bytes_per_token: float = 3.2,
        *,
        pace: Pace | None = None,
        watch: Callable[[float, Job], None] = lambda now, job: None,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._cost_model = cost_model
        self._bytes_per_token = bytes_per_token
        self._pace = pace or Pace()
        self._watch = watch
        self._agenda = Agenda()
        self._stepping = False
        self._by_job: dict[Job, _Request] = {}
        self._by_sequence: dict[Sequence, _Request] = {}

    def run(self, arrivals: Iterable[Arrival]) -> list[Record]:
        requests = [self._request(arrival) for arrival in arrivals]
        for request in requests:
            self._agenda.at(request.record.arrival.at, partial(self._arrive, request))
        self._agenda.run()
        return [request.record for request in requests]

    def _request(self, arrival: Arrival) -> _Request:
        prompt = Prompt(text_bytes=ceil(arrival.prompt_tokens * self._bytes_per_token))
        return _Request(Record(arrival), (prompt,), Sequence(arrival.prompt_tokens, arrival.output_tokens))

    def _arrive(self, request: _Request) -> None:
        if self._admission is None or self._cost_model is None:
            self._start(request)
            return
        tokens, cost = self._cost_model.predict(request.prompts)
        lane = self._admission.limits.lane(tokens)
        job = request.job = Job(request.record.arrival.user, lane, tokens, cost, self._agenda.now)
        self._by_job[job] = request
        self._pace.waits(job)
        self._let_go(self._admission.arrive(job))
        self._watch(self._agenda.now, job)

    def _let_go(self, jobs: list[Job]) -> None:
        self._pace.let_go(jobs, self._agenda.now)
        for job in jobs:
            self._start(self._by_job[job])

    def _start(self, request: _Request) -> None:
        self._by_sequence[request.sequence] = request
        self._engine.add(request.sequence)
        if not self._stepping:
            self._begin_step()

    def _begin_step(self) -> None:
        step = self._engine.begin()
        self._stepping = step is not None
        if step is not None:
            self._agenda.at(self._agenda.now + step.duration_s, self._end_step)

    def _end_step(self) -> None:
        step = self._engine.end()
        delivered = self._agenda.now + self._engine.profile.to_s
        for sequence in step.emitted:
            self._by_sequence[sequence].record.tokens.append(delivered)
        if self._admission is not None:
            self._agenda.at(delivered, partial(self._tell, step))
        self._begin_step()

    def _tell(self, step: Step) -> None:
        """The gateway sees what came out of the engine."""
        assert self._admission is not None
        assert self._cost_model is not None
        for sequence in step.emitted:
            self._pace.token(self._job(sequence))
        for sequence in step.first:
            job = self._job(sequence)
            self._pace.first_token(job, self._agenda.now)
            self._let_go(self._admission.first_token(job))
        for sequence in step.finished:
            request, job = self._by_sequence[sequence], self._job(sequence)
            del self._by_sequence[sequence], self._by_job[job]
            self._pace.ends(job, self._agenda.now, request.usage.output_tokens)
            self._let_go(self._admission.finish(job, self._cost_model.true_cost(request.usage)))
            self._cost_model.learn(request.prompts, request.usage)

    def _job(self, sequence: Sequence) -> Job:
        job = self._by_sequence[sequence].job
        assert job is not None
        return job
