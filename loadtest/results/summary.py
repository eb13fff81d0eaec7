"""What a run comes to: the documented schema of summary.json, a row of results.jsonl, and how they are worked out.

Latency from arrival is the headline, and what failed counts in it as never: a percentile that lies among failures is
null. Latency from send, TPOT and ITL are of the requests that completed, as `vllm bench serve` reports them. Times
are milliseconds where the name ends in _ms, else seconds from the start of the run.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import fmean

import msgspec

from loadtest.results.records import Outcome, Record, percentile
from loadtest.workloads.plan import Plan, Point


class Slo(msgspec.Struct, frozen=True):
    """What a good answer is: its first token, from arrival, and its time per output token, in seconds."""

    ttft: float | None = 2.0
    tpot: float | None = 0.15

    def met(self, record: Record) -> bool:
        if not record.completed:
            return False
        tpot = record.tpot
        late = self.ttft is not None and record.ttft > self.ttft
        slow = self.tpot is not None and tpot is not None and tpot > self.tpot
        return not late and not slow


class Stat(msgspec.Struct, frozen=True):
    """Of nothing, or where failures reach: null."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Stat":
        """Milliseconds, of seconds."""
        values = sorted(1e3 * value for value in seconds)
        if not values:
            return cls(None, None, None, None, None, None)
        figures = (fmean(values), *(percentile(values, q) for q in (50, 90, 95, 99)), values[-1])
        return cls(*(round(figure, 3) if isfinite(figure) else None for figure in figures))


class UserSummary(msgspec.Struct, frozen=True):
    """slowdown: mean of TTFT over what it would be on an idle machine; a failure counts as the run's slowest."""

    offered: int
    completed: int
    failed: int
    ttft_arrival_ms: Stat
    e2e_ms: Stat
    slowdown: float | None


class PointSummary(msgspec.Struct, frozen=True):
    """One point of a closed loop by llama-benchy's formulas, or of a sweep.

    ttft_ms                 mean, from send
    decode_tps_per_request  mean over requests of (tokens - 1) / (last - first token)
    decode_tps_total        mean over batches of (tokens - requests) / (last token - first token of the batch)
    prefill_tps             mean over batches of prompt tokens / (last first token - start); of one request alone,
                            the server's latency to a prompt of a word is taken off first
    """

    pp: int
    tg: int
    concurrency: int | None
    rate: float | None
    requests: int
    failed: int
    ttft_ms: float | None
    ttft_p95_ms: float | None
    decode_tps_per_request: float | None
    decode_tps_total: float | None
    prefill_tps: float | None
    rps: float | None


class Lag(msgspec.Struct, frozen=True):
    """The load tester's own part in it. It spoils a run if its 99th percentile is over 10 ms and over 5 % of the median
    TTFT from send, for then the load was not what it says."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    valid: bool


class Summary(msgspec.Struct, frozen=True):
    """The figures of one run. `clock` is "virtual" (simulated) or "real"; `profile` the simulated machine, or "".

    goodput      share of the offered requests that met the SLO
    goodput_rps  those a second
    jain         Jain's index of the users' speeds, 1 / slowdown: 1 if all were slowed down alike
    """

    workload: str
    seed: int
    clock: str
    profile: str
    policy: str
    model: str
    offered: int
    completed: int
    failed: int
    rejected: int
    interrupted: int
    duration_s: float
    offered_rps: float
    rps: float
    input_tokens: int
    output_tokens: int
    output_tps: float
    ttft_arrival_ms: Stat
    ttft_send_ms: Stat
    tpot_ms: Stat
    itl_ms: Stat
    e2e_ms: Stat
    e2e_send_ms: Stat
    slo: Slo
    goodput: float | None
    goodput_rps: float
    jain: float | None
    worst_user: str | None
    outcomes: dict[str, int]
    kinds: dict[str, UserSummary]
    users: dict[str, UserSummary]
    points: list[PointSummary]
    schedule_lag: Lag
    client_cpu: float | None = None  # cores that the load tester itself took
    note: str = ""
    provenance: dict[str, str] = {}  # command, versions, machine, flags: whatever it takes to have it again


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request, a line of results.jsonl. Instants are seconds from the start of the run."""

    n: int
    user: str
    kind: str
    outcome: Outcome
    scheduled: float
    sent: float | None = None
    first: float | None = None
    last: float | None = None
    ended: float | None = None
    ttft_arrival_ms: float | None = None
    ttft_send_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    itl_max_ms: float | None = None
    queue_ms: float | None = None  # from arrival to the begin of its prefill, where that is known
    prefill_ms: float | None = None
    decode_ms: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    point: int | None = None
    session: str = ""
    lag_ms: float = 0.0
    detail: str = ""


Alone = Callable[[int], float]  # prompt tokens -> seconds to the first token on an idle machine


class About(msgspec.Struct, frozen=True):
    """What a run was, apart from its figures."""

    workload: str
    seed: int
    clock: str
    policy: str
    profile: str = ""
    model: str = ""
    note: str = ""
    provenance: dict[str, str] = {}


def row(record: Record) -> Row:
    """A record, to be kept."""
    got = record.completed and bool(record.tokens)
    queue = prefill = None
    if got and record.queue is not None and record.sent is not None:
        queue = record.sent - record.scheduled + record.queue
        prefill = record.ttft - queue
    itls = record.itls if got else []
    return Row(
        n=record.number,
        user=record.request.user,
        kind=record.request.kind,
        outcome=record.outcome,
        scheduled=round(record.scheduled, 6),
        sent=_rounded(record.sent),
        first=_rounded(record.tokens[0] if record.tokens else None),
        last=_rounded(record.tokens[-1] if record.tokens else None),
        ended=_rounded(record.ended),
        ttft_arrival_ms=_ms(record.ttft if got else None),
        ttft_send_ms=_ms(record.ttft_send if got else None),
        tpot_ms=_ms(record.tpot if got else None),
        e2e_ms=_ms(record.e2e if got else None),
        itl_max_ms=_ms(max(itls, default=None)),
        queue_ms=_ms(queue),
        prefill_ms=_ms(prefill),
        decode_ms=_ms(record.tokens[-1] - record.tokens[0] if got else None),
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        cached_tokens=record.cached_tokens,
        point=record.request.point,
        session=record.request.session,
        lag_ms=round(1e3 * record.lag, 3),
        detail=record.detail,
    )


DEFAULT_SLO = Slo()


@dataclass(frozen=True)
class Measurement:
    """What a run is summarized from.

    records     of all requests that were due
    latency     the server's to a prompt of a word, in seconds
    client_cpu  cores that the load tester itself took
    """

    plan: Plan
    records: Sequence[Record]
    alone: Alone
    slo: Slo = DEFAULT_SLO
    latency: float = 0.0
    client_cpu: float | None = None


def summarize(about: About, measured: Measurement) -> Summary:
    counted = [record for record in measured.records if record.outcome is not Outcome.INTERRUPTED]
    done = [record for record in counted if record.completed]
    duration = _duration(counted)
    good = sum(map(measured.slo.met, counted))
    slowdowns = _slowdowns(counted, measured.alone)
    users = _grouped(counted, slowdowns, lambda record: record.request.user)
    output_tokens = sum(record.output_tokens or len(record.tokens) for record in done)
    return Summary(
        **msgspec.structs.asdict(about),
        offered=len(counted),
        completed=len(done),
        failed=len(counted) - len(done),
        rejected=sum(record.outcome is Outcome.REJECTED for record in counted),
        interrupted=len(measured.records) - len(counted),
        duration_s=round(duration, 3),
        offered_rps=_rate(len(counted), max((record.scheduled for record in counted), default=0.0)),
        rps=_rate(len(done), duration),
        input_tokens=sum(record.prompt_tokens or 0 for record in done),
        output_tokens=output_tokens,
        output_tps=_rate(output_tokens, duration),
        ttft_arrival_ms=Stat.of(record.ttft if record.completed else inf for record in counted),
        ttft_send_ms=Stat.of(record.ttft_send for record in done),
        tpot_ms=Stat.of(record.tpot for record in done if record.tpot is not None),
        itl_ms=Stat.of(gap for record in done for gap in record.itls),
        e2e_ms=Stat.of(record.e2e if record.completed else inf for record in counted),
        e2e_send_ms=Stat.of(record.e2e_send for record in done),
        slo=measured.slo,
        goodput=round(good / len(counted), 4) if counted else None,
        goodput_rps=_rate(good, duration),
        jain=jain([user.slowdown for user in users.values()]),
        worst_user=max(users, key=lambda name: users[name].slowdown or 0.0, default=None),
        outcomes=dict(Counter(record.outcome.value for record in measured.records)),
        kinds=_grouped(counted, slowdowns, lambda record: record.request.kind),
        users=users,
        points=[_point(each, number, counted, measured.latency) for number, each in enumerate(measured.plan.points)],
        schedule_lag=_lag(counted, done),
        client_cpu=None if measured.client_cpu is None else round(measured.client_cpu, 3),
    )


def _duration(records: Sequence[Record]) -> float:
    """Until the last token, or the last failure."""
    tokens = [record.tokens[-1] for record in records if record.completed]
    return max([*tokens, *(record.ended for record in records if record.ended is not None)], default=0.0)


def jain(slowdowns: Iterable[float | None]) -> float | None:
    """(Σ x)² / (n Σ x²) of the speeds x = 1 / slowdown (Jain, Chiu and Hawe 1984); None of nobody."""
    speeds = [1 / slowdown for slowdown in slowdowns if slowdown]
    if not speeds:
        return None
    return round(sum(speeds) ** 2 / (len(speeds) * sum(speed * speed for speed in speeds)), 4)


def _slowdowns(records: Iterable[Record], alone: Alone) -> dict[int, float]:
    """Of each record, by its number."""
    found = {
        record.number: record.ttft / alone(record.prompt_tokens or record.request.prompt_tokens)
        for record in records
        if record.completed
    }
    worst = max(found.values(), default=1.0)
    return {record.number: found.get(record.number, worst) for record in records}


def _grouped(
    records: Iterable[Record], slowdowns: dict[int, float], key: Callable[[Record], str]
) -> dict[str, UserSummary]:
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return {
        name: UserSummary(
            offered=len(group),
            completed=sum(record.completed for record in group),
            failed=sum(not record.completed for record in group),
            ttft_arrival_ms=Stat.of(record.ttft if record.completed else inf for record in group),
            e2e_ms=Stat.of(record.e2e if record.completed else inf for record in group),
            slowdown=round(fmean(slowdowns[record.number] for record in group), 3),
        )
        for name, group in sorted(groups.items())
    }


def _point(point: Point, number: int, records: Iterable[Record], latency: float) -> PointSummary:
    mine = [record for record in records if record.request.point == number]
    done = [record for record in mine if record.completed]
    batches: defaultdict[tuple[int, ...], list[Record]] = defaultdict(list)
    for record in done:
        batches[record.request.after].append(record)
    decoding = [record for record in done if record.tpot]
    start = min((record.scheduled for record in mine), default=0.0)
    closed = point.concurrency is not None
    return PointSummary(
        pp=point.pp,
        tg=point.tg,
        concurrency=point.concurrency,
        rate=point.rate,
        requests=len(mine),
        failed=len(mine) - len(done),
        ttft_ms=_mean((1e3 * record.ttft_send for record in done), 1),
        ttft_p95_ms=_ms(percentile((record.ttft_send for record in done), 95) if done else None),
        decode_tps_per_request=_mean((1 / record.tpot for record in decoding if record.tpot), 3),
        decode_tps_total=_mean(map(_decode_tps, batches.values()), 3) if closed else None,
        prefill_tps=_mean((_prefill_tps(batch, latency) for batch in batches.values()), 1) if closed else None,
        rps=_rate(len(done), max(record.tokens[-1] for record in done) - start) if done else None,
    )


def _decode_tps(batch: list[Record]) -> float:
    tokens = sum(record.output_tokens or len(record.tokens) for record in batch) - len(batch)
    seconds = max(record.tokens[-1] for record in batch) - min(record.tokens[0] for record in batch)
    return tokens / seconds if seconds else 0.0


def _prefill_tps(batch: list[Record], latency: float) -> float:
    tokens = sum(record.prompt_tokens or record.request.prompt_tokens for record in batch)
    start = min(record.scheduled if record.sent is None else record.sent for record in batch)
    seconds = max(record.tokens[0] for record in batch) - start
    if len(batch) == 1 and seconds > latency:
        seconds -= latency
    return tokens / seconds


def _lag(records: Sequence[Record], done: Sequence[Record]) -> Lag:
    lags = [1e3 * record.lag for record in records if record.sent is not None] or [0.0]
    p99 = percentile(lags, 99)
    median = 1e3 * percentile((record.ttft_send for record in done), 50) if done else inf
    return Lag(
        round(percentile(lags, 50), 3), round(p99, 3), round(max(lags), 3), valid=p99 <= max(10.0, 0.05 * median)
    )


def _mean(values: Iterable[float], digits: int) -> float | None:
    found = list(values)
    return round(fmean(found), digits) if found else None


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 4) if seconds else 0.0


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)
