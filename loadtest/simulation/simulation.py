"""The virtual clock: a heap of events drives the simulated engine, and in front of it the very admission, policy
and cost model that the gateway runs, told of the very events.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf

from gateway.forecasting.forecaster import learn
from gateway.forecasting.speed import EngineSpeed
from gateway.pricing.cost_model import PROGRESS_CHUNKS, CostModel, Price
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.prompt import PrefixHash, Prompt, PromptSize
from gateway.pricing.usage import PromptDetails, Usage
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event, tell
from gateway.slicing.planner import SlicePlan, Slicer
from loadtest.plan.plan import Plan, Request, Segment
from loadtest.plan.schedule import Schedule
from loadtest.results.records import Outcome, Record
from loadtest.spark.engine import Engine, Sequence, Step
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


@dataclass(eq=False, slots=True)
class _Sent:
    """A request on its way: at the gateway, then, from `let_go` on, in the engine, which has a line of its own. One in
    slices goes there again and again.

    keys    of its prompt and answer in the engine's cache
    cached  tokens of its prompt that the engine had before the first slice; None before that is known
    """

    record: Record
    prompts: tuple[Prompt, ...]
    prompt_tokens: int
    price: Price | None = None
    job: Job | None = None
    slices: SlicePlan | None = None
    sequence: Sequence | None = None
    keys: tuple[int, ...] = ()
    let_go: float = 0.0
    engine_queue: float = 0.0
    cached: int | None = None

    @property
    def sliced(self) -> bool:
        """What is in the engine is a slice, and not yet the client's own request."""
        return self.slices is not None and not self.slices.last


class Simulation:
    """Streamed chat requests, one prompt each. Without admission they go straight at the engine.

    bytes_per_token  of the text that the gateway sees, which knows no tokens before the answer
    queue_timeout    seconds after which the gateway sends away who still waits
    priority         what each request states as vLLM's `priority`, of its prompt's tokens; lower is earlier
    pace             is told what a gateway would tell it
    tells_times      the engine tells how long a request was in its own line (--enable-per-request-metrics)
    watch            is told of each arrival at the gateway, with the time, once it is dealt with
    counts           the gateway counts a prompt's tokens before it prices them
    slicer           cuts long prompts, if the engine has a prefix cache; such prompts are counted in any case
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission | None = None,
        cost_model: CostModel | None = None,
        bytes_per_token: float = 3.2,
        *,
        queue_timeout: float = inf,
        priority: Callable[[int], int] = lambda prompt_tokens: 0,
        pace: EngineSpeed | None = None,
        tells_times: bool = True,
        watch: Callable[[float, Job], None] = lambda now, job: None,
        counts: bool = False,
        slicer: Slicer | None = None,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._cost_model = cost_model
        self._bytes_per_token = bytes_per_token
        self._queue_timeout = queue_timeout
        self._priority = priority
        self._pace = pace or _pace(cost_model)
        self._tells_times = tells_times
        self._watch = watch
        self._counts = counts
        self._slicer = slicer if engine.profile.enable_prefix_caching else None
        self._agenda = Agenda()
        self._plan = Plan(())
        self._schedule = Schedule(self._plan)
        self._keys = _Keys(engine.profile.block_size)
        self._records: list[Record] = []
        self._stepping = False
        self._by_job: dict[Job, _Sent] = {}
        self._by_sequence: dict[Sequence, _Sent] = {}
        self._paused: dict[_Sent, None] = {}

    def run(self, load: Plan | Iterable[Request]) -> list[Record]:
        """A record of each request, in the plan's order."""
        self._plan = load if isinstance(load, Plan) else Plan(tuple(load))
        self._schedule = Schedule(self._plan)
        self._records = [Record(request, number) for number, request in enumerate(self._plan.requests)]
        for when, number in self._schedule.start():
            self._agenda.at(when, partial(self._due, number))
        self._agenda.run()
        return self._records

    # The client.

    def _due(self, number: int) -> None:
        self._records[number].scheduled = self._agenda.now
        self._send(self._schedule.arrive(number))

    def _send(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            record = self._records[number]
            record.sent = self._agenda.now
            tokens = record.prompt_tokens = self._plan.prompt_tokens(number)
            sent = _Sent(record, (self._prompt(number),), tokens)
            if self._admission is None or self._cost_model is None:
                self._start(sent)
            else:
                self._arrive(sent, self._admission, self._cost_model)

    def _prompt(self, number: int) -> Prompt:
        """What the gateway reads of it: bytes, and which beginnings it shares with others."""
        chain: list[PrefixHash] = []
        names: tuple[str, ...] = ()
        end = 0
        segments = self._plan.segments[number]
        for (name, tokens), (following, _) in zip(segments, (*segments[1:], ("", 0)), strict=True):
            names, end = (*names, name), end + tokens
            size = PromptSize(words=ceil(end * self._bytes_per_token))
            chain.append(PrefixHash("\n".join(names).encode(), size, following.startswith("answer ")))
        return Prompt(chain[-1].size, tuple(chain))

    def _end(self, record: Record, outcome: Outcome, detail: str = "") -> None:
        record.outcome, record.detail, record.ended = outcome, detail, self._agenda.now
        sent, due = self._schedule.end(record.number, self._agenda.now)
        for when, number in due:
            self._agenda.at(when, partial(self._due, number))
        self._send(sent)

    # The gateway.

    def _arrive(self, sent: _Sent, admission: Admission, cost_model: CostModel) -> None:
        request, now = sent.record.request, self._agenda.now
        price = sent.price = self._price(sent, admission, cost_model)
        job = sent.job = Job(
            flow=request.user,
            lane=admission.limits.lane(price.uncached),
            tokens=price.uncached,
            cost=price.seconds,
            arrival=now,
            kv_tokens=price.tokens + self._pace.answers.expect(0, request.asks_for, 0.9),
            session=request.session,
        )
        if refused := admission.refuses(job):
            self._end(sent.record, Outcome.REJECTED, refused.value)
            return
        self._by_job[job] = sent
        if self._slicer and job.lane == "long":
            slices = SlicePlan(self._slicer, sent.prompt_tokens, price.cached)
            sent.slices = None if slices.last else slices
        if self._queue_timeout < inf:
            self._agenda.at(now + self._queue_timeout, partial(self._give_up, job))
        part = sent.slices.part if sent.slices else None
        self._tell_admission(Event("arrive", job, part=part, max_tokens=request.max_tokens))
        self._watch(now, job)

    def _price(self, sent: _Sent, admission: Admission, cost_model: CostModel) -> Price:
        """What may be cut is counted, as the gateway does: slices end at tokens."""
        price = cost_model.price(sent.prompts, sent.prompt_tokens if self._counts else None)
        if self._slicer and not price.counted and admission.limits.lane(price.uncached) == "long":
            cost_model.learn_tokens(sent.prompts, sent.prompt_tokens)
            return cost_model.price(sent.prompts, sent.prompt_tokens)
        return price

    def _give_up(self, job: Job) -> None:
        sent = self._by_job.get(job)
        if sent is not None and sent.sequence is None:
            del self._by_job[job]
            self._tell_admission(Event("leave", job))
            self._end(sent.record, Outcome.REJECTED, "queue_timeout")

    def _tell_admission(self, event: Event) -> None:
        assert self._admission is not None
        dispatched = tell(self._admission, event)
        learn(self._pace, event, dispatched, self._agenda.now)
        for job in dispatched:
            self._start(self._by_job[job])
        if not self._pace.sequences:
            for sent in list(self._paused):
                self._go_on(sent)

    def _pause(self, sent: _Sent, seconds: float) -> None:
        """A slice took so long. The lane is kept, so that those who decode have the engine for a while."""
        assert self._slicer is not None
        assert sent.slices is not None
        pause = self._slicer.pause(seconds, self._pace.sequences, sent.slices.part.tokens)
        self._paused[sent] = None
        if pause > 0:
            self._agenda.at(self._agenda.now + pause, partial(self._go_on, sent))
        else:
            self._go_on(sent)

    def _go_on(self, sent: _Sent) -> None:
        """The pause is over, for its time is, or since nobody decodes any more."""
        if sent not in self._paused:
            return
        del self._paused[sent]
        assert sent.job is not None
        assert sent.slices is not None
        company = self._pace.company(sent.job)
        part = sent.slices.go_on(self._agenda.now, company=company, sequences=self._pace.sequences)
        self._tell_admission(Event("slice_done", sent.job, part=part))

    # The engine.

    def _start(self, sent: _Sent) -> None:
        record = sent.record
        request = record.request
        now = self._agenda.now
        if self._engine.profile.enable_prefix_caching and not sent.keys:
            answer = (f"answer {record.number}", request.answer_tokens)
            sent.keys = self._keys.of((*self._plan.segments[record.number], answer))
        if sent.slices and sent.sequence is None:
            sent.slices.begin(now)
        tokens, answer_tokens, keys = sent.prompt_tokens, request.answer_tokens, sent.keys
        if sent.slices and sent.sliced:
            tokens, answer_tokens = sent.slices.end, 1
            keys = keys[: tokens // self._engine.profile.block_size]
        sequence = sent.sequence = Sequence(
            tokens,
            answer_tokens,
            text=request.text,
            priority=self._priority(sent.prompt_tokens),
            keys=keys,
        )
        sent.let_go = now
        self._by_sequence[sequence] = sent
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
                sent = self._by_sequence[sequence]
                record = sent.record
                sent.engine_queue = now - sent.let_go
                if record.queue is None and record.sent is not None:
                    record.queue = now - record.sent
            self._agenda.at(now + step.duration_s, self._end_step)

    def _end_step(self) -> None:
        step = self._engine.end()
        delivered = self._agenda.now + self._engine.profile.to_s
        for sequence in step.emitted:
            sent = self._by_sequence[sequence]
            if not sent.sliced:
                sent.record.tokens.append(delivered)
        if self._admission is not None or step.finished:
            self._agenda.at(delivered, partial(self._delivered, step))
        self._begin_step()

    def _delivered(self, step: Step) -> None:
        """Gateway and client see what came out of the engine."""
        if self._admission is not None:
            self._tell_tokens(step)
        for sequence in step.finished:
            sent = self._by_sequence.pop(sequence)
            if sent.cached is None:
                sent.cached = sequence.cached
            if sent.sliced:
                self._slice_done(sent, sequence)
                continue
            record = sent.record
            record.output_tokens, record.cached_tokens = sequence.output_tokens, sent.cached
            if sent.job is not None:
                self._settle(sent, sequence)
            self._end(record, Outcome.COMPLETED)

    def _slice_done(self, sent: _Sent, sequence: Sequence) -> None:
        now = self._agenda.now
        assert sent.job is not None
        self._learn_slice(sent, sequence, self._pace.tracks[sent.job].seen(now))
        self._pause(sent, now - sent.let_go)

    def _settle(self, sent: _Sent, sequence: Sequence) -> None:
        """Charged is what the engine did not have when the request came; its slices found each other later."""
        cost_model = self._cost_model
        assert cost_model is not None
        assert sent.job is not None
        assert sent.price is not None
        usage = Usage(sent.prompt_tokens, sequence.output_tokens, PromptDetails(sent.cached))
        cost = cost_model.true_cost(cost_model.counts(sent.prompts, sent.price, usage))
        del self._by_job[sent.job]
        seen = self._pace.tracks[sent.job].seen()
        self._tell_admission(Event("finish", sent.job, cost, output_tokens=sequence.output_tokens))
        if sent.slices:
            cost_model.learn(sent.prompts, sent.price, usage)
            self._learn_slice(sent, sequence, seen)
        else:
            cost_model.learn(sent.prompts, sent.price, usage, seen, self._queue_s(sent))

    def _learn_slice(self, sent: _Sent, sequence: Sequence, seen: PrefillObservation | None) -> None:
        assert self._cost_model is not None
        self._cost_model.learn_slice(sequence.prompt_tokens, sequence.cached, seen, self._queue_s(sent))

    def _queue_s(self, sent: _Sent) -> float | None:
        return sent.engine_queue if self._tells_times else None

    def _tell_tokens(self, step: Step) -> None:
        assert self._cost_model is not None
        for sequence in step.emitted:
            sent = self._by_sequence[sequence]
            if sent.sliced:
                continue
            job = sent.job
            assert job is not None
            assert sent.price is not None
            self._pace.token(job)
            chunks = self._pace.tracks[job].tokens
            if chunks % PROGRESS_CHUNKS == 0:
                self._tell_admission(
                    Event("progress", job, *self._cost_model.growth(job.cost, job.kv_tokens, sent.price, chunks))
                )
        for sequence in step.first:
            sent = self._by_sequence[sequence]
            if sent.sliced:
                continue
            self._tell_admission(Event("first_token", sent.job))
            assert sent.price is not None
            self._cost_model.insert_prefixes(sent.prompts, sent.price)


def _pace(cost_model: CostModel | None) -> EngineSpeed:
    if cost_model is None:
        return EngineSpeed()
    return EngineSpeed(
        lambda tokens: cost_model.profile.decode(tokens),
        cost_model.step,
        prefill_cost=lambda tokens: cost_model.profile.prefill(tokens),
    )


class _Keys:
    """Identities of cache blocks: equal where all text from the begin to the block's end is equal."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._chains: dict[tuple[str, ...], int] = {}

    def of(self, segments: Iterable[Segment]) -> tuple[int, ...]:
        return tuple(self._blocks(segments))

    def _blocks(self, segments: Iterable[Segment]) -> Iterator[int]:
        names: tuple[str, ...] = ()
        end = block = 0
        for name, tokens in segments:
            names, end = (*names, name), end + tokens
            chain = self._chains.setdefault(names, len(self._chains))
            while (block + 1) * self._block_size <= end:
                yield chain << 24 | block
                block += 1
