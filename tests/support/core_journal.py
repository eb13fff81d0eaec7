"""A journal of all that a driver told the core, with the time, and of all that the core answered; and its replay.

`Journal` wraps the public methods through which the gateway and the simulator drive a `Core` and the life cycles of its
requests. `replay` tells a fresh core the same, step by step, without any clock, and compares each answer with the
journal's, to the last bit: prices, slices, decisions, charges, observations, and what was learned.

A driver's calls are nested: a life cycle applies its events through a function of its driver's, which tells admission
and the engine's speed of them, and perhaps starts other requests. What core objects tell each other is not recorded.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Self

from gateway.lifecycle.core import Core
from gateway.lifecycle.lifecycle import Lifecycle, PricedRequest
from gateway.pricing.cost_model import CostModel
from gateway.pricing.snapshot import CostSnapshot
from gateway.scheduling.events import Event
from gateway.scheduling.limits import Limits
from gateway.slicing.planner import SlicePlan, Slicing
from policies.base import LANES, Job, Policy

# What drivers call, of each object that they have.
PARTS = {
    "core": ("lane", "kv_tokens", "nearly_long", "needs_count", "may_slice", "plan"),
    "cost_model": ("price", "learn_tokens"),
    "prefixes": ("compare_hits",),
    "admission": ("apply", "rejects"),
    "speed": ("observe", "promise"),
}
LIFE = (
    "arrived",
    "dispatched",
    "slice_pays",
    "slice_answered",
    "slice_failed",
    "requeue",
    "scheduled",
    "first_token",
    "predict_first_token",
    "answered_whole",
    "chunk",
    "settle",
    "end",
    "learn",
)
BORN = "born"
# Attributes of a life that are told by being set.
TOLD = ("retried",)


@dataclass(frozen=True, slots=True)
class Ref:
    """A job or a plan, which are what they are, and not what they are like: the journal and a replay number theirs."""

    kind: str
    number: int


# A part of the core by name, or a life by number.
Target = str | int


@dataclass(slots=True)
class Applied:
    """An event that a life cycle applied, and what the driver did about it."""

    event: Any
    steps: "list[Step]" = field(default_factory=list)


@dataclass(slots=True)
class Step:
    """
    applied  events that it gave to the driver on the way
    state    of the life afterwards, if it is one that was told
    engine   what the gateway knew of the engine before
    """

    target: Target
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    engine: tuple[Any, ...]
    result: Any = None
    applied: list[Applied] = field(default_factory=list)
    state: Any = None

    def __str__(self) -> str:
        return f"{self.target}.{self.name}{self.args}"


class Journal:
    """Of one core. `fresh` makes another core as this one was at first."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.lives: list[Lifecycle] = []
        self._jobs: dict[Job, int] = {}
        self._plans: dict[SlicePlan, int] = {}
        self._core: Core | None = None
        self._fresh: Callable[[], Core] = lambda: self.core
        # Where steps go; None while the core is at work, and a Step is what it is at work with.
        self._open: list[list[Step] | None] = [self.steps]
        self._at_work: list[Step] = []

    # What drivers are given instead of their own.

    @property
    def core_class(self) -> type[Core]:
        """A `Core` whose `create` makes the journal's."""
        journal = self

        class Watched(Core):
            @classmethod
            def create(
                cls,
                cost_model: CostModel,
                policy: Policy,
                limits: Limits,
                slicing: Slicing | None = None,
                *,
                shares_steps: bool = False,
            ) -> Self:
                first_model, first_policy = deepcopy(cost_model), policy.copy()
                core = super().create(cost_model, policy, limits, slicing, shares_steps=shares_steps)

                def fresh() -> Core:
                    return Core.create(
                        deepcopy(first_model), first_policy.copy(), limits, slicing, shares_steps=shares_steps
                    )

                journal.watch(core, fresh)
                return core

        return Watched

    @property
    def lifecycle_class(self) -> type[Lifecycle]:
        """A `Lifecycle` that writes into the journal."""
        journal = self

        class Watched(Lifecycle):
            def __init__(self, core: Core, job: Job, request: PricedRequest, apply: Callable[[Event], object]) -> None:
                self.number = len(journal.lives)
                super().__init__(core, job, request, journal.applying(apply))
                journal.lives.append(self)
                journal.told(self.number, BORN, lambda *args: None, job, request)

            def __setattr__(self, name: str, value: object) -> None:
                super().__setattr__(name, value)
                if name in TOLD and self.number < len(journal.lives):
                    journal.told(self.number, name, lambda told: None, value)

        for name in LIFE:
            setattr(Watched, name, _telling(journal, name))
        return Watched

    def watch(self, core: Core, fresh: Callable[[], Core]) -> None:
        assert self._core is None, "a journal is of one core"
        self._core, self._fresh = core, fresh
        for part, names in PARTS.items():
            for name in names:
                setattr(part_of(core, part), name, self._watched(part, name, getattr(part_of(core, part), name)))

    @property
    def core(self) -> Core:
        assert self._core is not None, "no core was made"
        return self._core

    @property
    def jobs(self) -> list[Job]:
        """In the order of their numbers."""
        return list(self._jobs)

    def fresh(self) -> Core:
        return self._fresh()

    # How it is written.

    def told(self, target: Target, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        steps = self._open[-1]
        if steps is None:  # the core itself asks
            return function(*args, **kwargs)
        step = Step(target, name, self._written(args), self._written(kwargs), engine_facts(self.core))
        steps.append(step)
        self._open.append(None)
        self._at_work.append(step)
        try:
            result = function(*args, **kwargs)
        finally:
            self._open.pop()
            self._at_work.pop()
        step.result = self._written(result)
        step.state = state_of(self.lives[target]) if isinstance(target, int) else content(result)
        return result

    def applying(self, apply: Callable[[Event], object]) -> Callable[[Event], object]:
        """The driver's own `apply`, whose calls belong to the step under way."""

        def applied(event: Event) -> object:
            entry = Applied(self._written(event))
            self._at_work[-1].applied.append(entry)
            self._open.append(entry.steps)
            try:
                return apply(event)
            finally:
                self._open.pop()

        return applied

    def _watched(self, part: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            return self.told(part, name, function, *args, **kwargs)

        return watched

    def _written(self, value: Any) -> Any:
        return converted(value, self._ref)

    def _ref(self, value: Any) -> Ref:
        numbers: dict[Any, int] = self._jobs if isinstance(value, Job) else self._plans
        return Ref("job" if isinstance(value, Job) else "plan", numbers.setdefault(value, len(numbers)))


class Differs(AssertionError):
    """The core does not do again what the journal says that it did."""


class Replay:
    """A fresh core that is told all of a journal. Raises Differs where it answers otherwise."""

    def __init__(self, journal: Journal) -> None:
        self.core = journal.fresh()
        self.lives: list[Lifecycle] = []
        self._jobs = [replace(job) for job in journal.jobs]
        self._plans: dict[Ref, SlicePlan] = {}
        self._expected: list[list[Applied]] = []

    def run(self, steps: Iterable[Step]) -> Self:
        for step in steps:
            self._step(step)
        return self

    def _step(self, step: Step) -> None:
        know_engine(self.core, step.engine)
        args, kwargs = converted(step.args, self._object), converted(step.kwargs, self._object)
        self._expected.append(list(step.applied))
        try:
            result = self._tell(step, args, kwargs)
        except KeyError as error:
            raise Differs(f"{step} cannot happen") from error
        if missing := self._expected.pop():
            raise Differs(f"{step} applies no {missing[0].event}")
        if isinstance(result, SlicePlan) and isinstance(step.result, Ref):
            self._plans[step.result] = result
        elif isinstance(step.result, Ref) or result != converted(step.result, self._object):
            raise Differs(f"{step} comes to {result}, and not to {step.result}")
        state = state_of(self.lives[step.target]) if isinstance(step.target, int) else content(result)
        if state != step.state:
            raise Differs(f"{step} leads to {state}, and not to {step.state}")

    def _tell(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(step.target, str):
            return getattr(part_of(self.core, step.target), step.name)(*args, **kwargs)
        if step.name == BORN:
            job, request = args
            self.lives.append(Lifecycle(self.core, job, request, self._apply))
            return None
        if step.name in TOLD:
            setattr(self.lives[step.target], step.name, *args)
            return None
        return getattr(self.lives[step.target], step.name)(*args, **kwargs)

    def _apply(self, event: Event) -> None:
        """In the driver's place: what it did then about this event."""
        if not self._expected[-1]:
            raise Differs(f"{event} is applied, which was not then")
        applied = self._expected[-1].pop(0)
        if event != converted(applied.event, self._object):
            raise Differs(f"{event} is applied, and not {applied.event}")
        self.run(applied.steps)

    def _object(self, value: Any) -> Any:
        """What the replay has in place of a numbered thing."""
        if not isinstance(value, Ref):
            return value
        return self._jobs[value.number] if value.kind == "job" else self._plans[value]


def replayed(journal: Journal) -> Replay:
    return Replay(journal).run(journal.steps)


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps, each before those within it."""
    for step in steps:
        yield step
        for applied in step.applied:
            yield from walk(applied.steps)


def with_altered(steps: Iterable[Step], wanted: Callable[[Step], bool], alter: Callable[[Step], Step]) -> list[Step]:
    """A copy in which the first step that is wanted, however deep, is another one. StopIteration if there is none."""
    first = next(step for step in walk(steps) if wanted(step))

    def copied(steps: Iterable[Step]) -> list[Step]:
        return [copied_step(alter(step) if step is first else step) for step in steps]

    def copied_step(step: Step) -> Step:
        return replace(step, applied=[Applied(each.event, copied(each.steps)) for each in step.applied])

    return copied(steps)


# What there is to see.


def part_of(core: Core, name: str) -> Any:
    parts = {"core": core, "prefixes": core.cost_model.prefixes}
    return parts[name] if name in parts else getattr(core, name)


def engine_facts(core: Core) -> tuple[Any, ...]:
    prefixes = core.cost_model.prefixes
    return core.max_model_len, prefixes.block, prefixes.capacity, prefixes.enabled


def know_engine(core: Core, facts: tuple[Any, ...]) -> None:
    prefixes = core.cost_model.prefixes
    core.max_model_len, prefixes.block, prefixes.capacity, prefixes.enabled = facts


def state_of(life: Lifecycle) -> dict[str, Any]:
    """All that it says of itself."""
    return {
        "slices": tuple(life.slices),
        "retried": life.retried,
        "chunks": life.chunks,
        "dispatched_at": life.dispatched_at,
        "first_token_at": life.first_token_at,
        "timing_source": life.timing_source,
        "settlement": life.settlement,
        "slice_is_due": life.slice_is_due,
        "plan": content(life.request.plan),
    }


def content(value: Any) -> Any:
    """Of a plan, where it is cut now."""
    if isinstance(value, SlicePlan):
        return value.tokens, value.found, value.done, value.end, value.slice
    return None


def learned(core: Core) -> dict[str, Any]:
    """What it knows by now, and what it has given out."""
    model, speed, admission = core.cost_model, core.speed, core.admission
    # A question, so that what was seen is held against the curve as it is now.
    speed.work(Job("nobody", "short", 1, 0.0, 0.0))
    return {
        "samples": CostSnapshot.capture(model, "", ""),
        "profile": model.profile,
        "prefill": model.prefill.coefficients,
        "step": [model.step.at(sequences) for sequences in (1, 2, 5, 20)],
        "accuracy": {what: (accuracy.bias, accuracy.error()) for what, accuracy in model.accuracy.items()},
        "prefixes": (len(model.prefixes), model.prefixes.trust.value, model.prefixes.answer_shares()),
        "slowdown": {lane: ratio.value for lane, ratio in speed.slowdown.items()},
        "share": speed.share.value,
        "tokens": {mode: ratio.value for mode, ratio in speed.tokens.items()},
        "answers": [speed.answers.expect(0, None, quantile) for quantile in (0.1, 0.5, 0.9)],
        "here": (speed.sequences, speed.dispatches, len(speed.progress)),
        "off": core.circuit_breaker.off(-inf),
        "held": admission.held(),
        "queue": (admission.running, [admission.waiting(lane) for lane in LANES]),
    }


def converted(value: Any, convert: Callable[[Any], Any]) -> Any:
    """The same with each job and plan in it, or each reference to one, converted."""
    if isinstance(value, Job | SlicePlan | Ref):
        return convert(value)
    if isinstance(value, list | dict) or type(value) is tuple:
        if isinstance(value, dict):
            return {name: converted(each, convert) for name, each in value.items()}
        return type(value)(converted(each, convert) for each in value)
    if isinstance(value, PricedRequest):
        return replace(value, plan=converted(value.plan, convert))
    if hasattr(value, "job") and hasattr(value, "__dataclass_fields__"):
        return replace(value, job=converted(value.job, convert))
    return value


def _telling(journal: Journal, name: str) -> Callable[..., Any]:
    own = getattr(Lifecycle, name)

    def telling(life: Any, *args: Any, **kwargs: Any) -> Any:
        return journal.told(life.number, name, lambda *args, **kwargs: own(life, *args, **kwargs), *args, **kwargs)

    return telling
