"""The gateway under a virtual clock: a heap of events drives the simulated engine, and in front of it the gateway's own
core, which lives each request as the gateway does (`gateway.lifecycle`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Literal

from gateway.lifecycle.core import Core
from gateway.lifecycle.lifecycle import Lifecycle, PricedRequest
from gateway.lifecycle.settlement import Answer
from gateway.pricing.cost_model import Price
from gateway.pricing.prompt import Prompt
from gateway.pricing.usage import PromptDetails, Usage
from gateway.scheduling.events import Event
from loadtest.results.records import Outcome, Record
from loadtest.simulation.agenda import Agenda
from loadtest.simulation.prompts import Prompts
from loadtest.spark.engine import Engine, Sequence, Step
from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.schedule import Schedule
from policies.base import Job


@dataclass(frozen=True)
class Options:
    """
    bytes_per_token  of the text that the gateway sees
    queue_timeout    seconds after which the gateway sends away who still waits
    priority         what each request states as vLLM's `priority`, of its prompt's tokens; lower is earlier
    tells_times      the engine tells how long a request was in its own queue (--enable-per-request-metrics)
    counts           of which prompts the gateway counts the tokens before it prices them: of those that may be long, as
                     the real one does; of none, as with its setting `tokenizer = "off"`; or of all
    watch            is told of each arrival at the gateway, with the time, once it is dealt with
    """

    bytes_per_token: float = 3.2
    queue_timeout: float = inf
    priority: Callable[[int], int] = field(default=lambda prompt_tokens: 0)
    tells_times: bool = True
    counts: Literal["none", "long", "all"] = "long"
    watch: Callable[[float, Job], None] = field(default=lambda now, job: None)


DEFAULT_OPTIONS = Options()


@dataclass(eq=False, slots=True)
class _Client:
    """A request on its way: at the gateway, if there is one, then in the engine. One in slices goes there repeatedly.

    sent_at  to the engine, the last time; engine_queue_s, what it waited there
    blocks   of its prompt and answer in the engine's cache
    """

    record: Record
    prompt_tokens: int
    life: Lifecycle | None = None
    sequence: Sequence | None = None
    blocks: tuple[int, ...] = ()
    sent_at: float = 0.0
    engine_queue_s: float = 0.0

    @property
    def in_slice(self) -> bool:
        """What is in the engine is a slice, and not yet the client's own request."""
        return self.life is not None and self.life.slice_is_due


class Simulation:
    """Streamed chat requests, one prompt each. Without a core they go straight to the engine."""

    def __init__(self, engine: Engine, core: Core | None = None, options: Options = DEFAULT_OPTIONS) -> None:
        self._engine = engine
        self._core = core
        self._options = options
        self._agenda = Agenda()
        self._plan = Plan(())
        self._schedule = Schedule(self._plan)
        self._prompts = Prompts(self._plan, options.bytes_per_token, engine.profile.block_size)
        self._records: list[Record] = []
        self._stepping = False
        self._by_job: dict[Job, _Client] = {}
        self._by_sequence: dict[Sequence, _Client] = {}
        self._paused: dict[_Client, None] = {}
        if core is not None and not engine.profile.enable_prefix_caching:
            core.set_slicing(None)  # as a gateway does whose engine says that it has no prefix cache

    def run(self, load: Plan | Iterable[Request]) -> list[Record]:
        """A record of each request, in the plan's order."""
        self._plan = load if isinstance(load, Plan) else Plan(tuple(load))
        self._schedule = Schedule(self._plan)
        self._prompts = Prompts(self._plan, self._options.bytes_per_token, self._engine.profile.block_size)
        self._records = [Record(request, number) for number, request in enumerate(self._plan.requests)]
        for when, number in self._schedule.start():
            self._agenda.at(when, partial(self._due, number))
        self._agenda.run()
        return self._records

    # The clients.

    def _due(self, number: int) -> None:
        self._records[number].scheduled = self._agenda.now
        self._send(self._schedule.arrive(number))

    def _send(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            record = self._records[number]
            record.sent = self._agenda.now
            tokens = record.prompt_tokens = self._plan.prompt_tokens(number)
            client = _Client(record, tokens)
            if self._core is None:
                self._start(client)
            else:
                self._arrive(client, self._core)

    def _end(self, record: Record, outcome: Outcome, detail: str = "") -> None:
        record.outcome, record.detail, record.ended = outcome, detail, self._agenda.now
        sent, due = self._schedule.end(record.number, self._agenda.now)
        for when, number in due:
            self._agenda.at(when, partial(self._due, number))
        self._send(sent)

    # The gateway.

    def _arrive(self, client: _Client, core: Core) -> None:
        request, now = client.record.request, self._agenda.now
        prompts = (self._prompts.read(client.record.number),)
        price = self._price(client, core, prompts)
        job = Job(
            flow=request.user,
            lane=core.lane(price),
            tokens=price.uncached,
            cost=price.seconds,
            arrival=now,
            kv_tokens=core.kv_tokens(price, 1, request.asks_for),
            session=request.session,
        )
        if refused := core.admission.rejects(job):
            self._end(client.record, Outcome.REJECTED, refused.value)
            return
        self._by_job[job] = client
        plan = core.plan(price, client.prompt_tokens) if core.may_slice("", now) else None
        priced = PricedRequest(prompts, price, max_tokens=request.max_tokens, plan=plan)
        client.life = Lifecycle(core, job, priced, partial(self._apply, core))
        if self._options.queue_timeout < inf:
            self._agenda.at(now + self._options.queue_timeout, partial(self._give_up, job))
        client.life.arrived()
        self._options.watch(now, job)

    def _price(self, client: _Client, core: Core, prompts: tuple[Prompt, ...]) -> Price:
        price = core.cost_model.price(prompts)
        counts = self._options.counts
        if counts == "none" or (counts == "long" and not core.needs_count(price)):
            return price
        core.cost_model.learn_tokens(prompts, client.prompt_tokens)
        return core.cost_model.price(prompts, client.prompt_tokens)

    def _give_up(self, job: Job) -> None:
        client = self._by_job.get(job)
        if client is not None and client.life is not None and client.life.dispatched_at is None:
            del self._by_job[job]
            client.life.end()
            self._end(client.record, Outcome.REJECTED, "queue_timeout")

    def _apply(self, core: Core, event: Event) -> None:
        dispatched = core.admission.apply(event)
        core.speed.observe(event, dispatched, self._agenda.now)
        for job in dispatched:
            client = self._by_job[job]
            assert client.life is not None
            client.life.dispatched(self._agenda.now)
            self._start(client)
        if not core.speed.sequences:
            for client in list(self._paused):
                self._requeue(client)

    def _slice_answered(self, client: _Client, life: Lifecycle, answer: Answer) -> None:
        now = self._agenda.now
        pause_s = life.slice_answered(answer, now).pause_s
        self._paused[client] = None
        if pause_s > 0:
            self._agenda.at(now + pause_s, partial(self._requeue, client))
        else:
            self._requeue(client)

    def _requeue(self, client: _Client) -> None:
        """The pause is over, for its time is, or since nobody decodes any more."""
        if client in self._paused:
            del self._paused[client]
            assert client.life is not None
            client.life.requeue(self._agenda.now)

    # The engine.

    def _start(self, client: _Client) -> None:
        record, now = client.record, self._agenda.now
        request = record.request
        if self._engine.profile.enable_prefix_caching and not client.blocks:
            client.blocks = self._prompts.blocks(record.number)
        tokens, answer_tokens, blocks = client.prompt_tokens, request.answer_tokens, client.blocks
        life = client.life
        if life is not None and life.request.plan is not None and client.in_slice:
            if not life.slice_pays(now):
                life.requeue(now)
                return
            tokens, answer_tokens = life.request.plan.end, 1
            blocks = blocks[: tokens // self._engine.profile.block_size]
        priority = self._options.priority(client.prompt_tokens)
        sequence = Sequence(tokens, answer_tokens, text=request.text, priority=priority, keys=blocks)
        client.sequence, client.sent_at = sequence, now
        self._by_sequence[sequence] = client
        self._engine.add(sequence)
        if not self._stepping:
            # After all that comes in this instant: vLLM composes a step of what is there.
            self._stepping = True
            self._agenda.at(now, self._begin_step)

    def _begin_step(self) -> None:
        step = self._engine.begin()
        self._stepping = step is not None
        if step is not None:
            now = self._agenda.now
            for sequence in step.started:
                client = self._by_sequence[sequence]
                record = client.record
                client.engine_queue_s = now - client.sent_at
                if record.queue is None and record.sent is not None:
                    record.queue = now - record.sent
            self._agenda.at(now + step.duration_s, self._end_step)

    def _end_step(self) -> None:
        step = self._engine.end()
        delivered = self._agenda.now + self._engine.profile.to_s
        for sequence in step.emitted:
            client = self._by_sequence[sequence]
            if not client.in_slice:
                client.record.tokens.append(delivered)
        if self._core is not None or step.finished:
            self._agenda.at(delivered, partial(self._delivered, step))
        self._begin_step()

    def _delivered(self, step: Step) -> None:
        """Gateway and client see what came out of the engine."""
        if self._core is not None:
            self._see_tokens(step)
        for sequence in step.finished:
            client = self._by_sequence.pop(sequence)
            record, life = client.record, client.life
            if life is None:
                record.output_tokens, record.cached_tokens = sequence.output_tokens, sequence.cached
                self._end(record, Outcome.COMPLETED)
                continue
            usage = Usage(sequence.prompt_tokens, sequence.output_tokens, PromptDetails(sequence.cached))
            answer = Answer(usage, client.engine_queue_s if self._options.tells_times else None)
            if client.in_slice:
                self._slice_answered(client, life, answer)
            else:
                self._answered(client, life, answer)

    def _see_tokens(self, step: Step) -> None:
        now = self._agenda.now
        for sequence in step.emitted:
            client = self._by_sequence[sequence]
            if client.life is not None and not client.in_slice:
                client.life.chunk(client.life.chunks + 1)
        for sequence in step.first:
            client = self._by_sequence[sequence]
            if client.life is not None and not client.in_slice:
                client.life.first_token(now)

    def _answered(self, client: _Client, life: Lifecycle, answer: Answer) -> None:
        settlement = life.settle(answer, self._agenda.now)
        del self._by_job[life.job]
        life.end()
        life.learn(answer)
        record = client.record
        if settlement.usage is not None:
            record.output_tokens, record.cached_tokens = settlement.usage.output_tokens, settlement.usage.cached
        self._end(record, Outcome.COMPLETED)
