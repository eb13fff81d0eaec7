"""What to know before figures are believed: why a run is not what it says, and in what runs side by side differ."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from loadtest.charts.units import number, shown
from loadtest.results.groups import Group, same_plan
from loadtest.results.result import Result
from loadtest.results.summary import Summary

OTHER_RATE = 0.1  # of the offered rates, what is another load


def spoiled(summary: Summary) -> str:
    """Why the figures of a run are not to be trusted; "" if they are."""
    lag = summary.schedule_lag
    if lag.valid:
        return ""
    return (
        f"not valid: the load tester itself sent late (p99 {number(lag.p99_ms)} ms, at most {number(lag.max_ms)} ms), "
        "so the load was not what it says"
    )


def faults(groups: Sequence[Group], names: Sequence[str]) -> Iterable[str]:
    for name, group in zip(names, groups, strict=True):
        for run in group:
            if why := spoiled(run.summary):
                yield f"{name}, seed {run.summary.seed}: {why}"
        if missing := sum(run.summary.interrupted for run in group):
            yield f"{name}: stopped before its end, {missing:,} requests are not in the figures"


def notes(groups: Sequence[Group], names: Sequence[str]) -> Iterable[str]:
    def differing(what: str, told: Callable[[Summary], str]) -> Iterable[str]:
        found = [", ".join(dict.fromkeys(told(run.summary) for run in group)) for group in groups]
        if len(set(found)) > 1:
            each = "; ".join(f"{name}: {value or 'not told'}" for name, value in zip(names, found, strict=True))
            yield f"not the same {what} ({each})"

    yield from differing("seed, so not the same requests", lambda run: str(run.seed))
    yield from differing("clock", lambda run: "simulated" if run.clock == "virtual" else run.clock)
    yield from differing("machine", lambda run: run.profile)
    yield from differing("model", lambda run: "" if run.model == run.profile else run.model)
    if len({run.summary.slo for group in groups for run in group}) > 1:
        yield f"not the same limits for a good answer: the first side's are applied to all ({slo_text(groups[0][0])})"
    if _another_load(groups):
        rates = [fmean(run.summary.offered_rps for run in group) for group in groups]
        each = "; ".join(f"{name}: {shown(rate, '/s')}" for name, rate in zip(names, rates, strict=True))
        yield f"requests did not come at the same rate ({each})"
    if any(_seeds(groups[0]) == _seeds(group) and not _same_requests(groups[0], group) for group in groups[1:]):
        yield "not the same requests, although the seeds are the same: the workload's options differ"


def slo_text(run: Result) -> str:
    slo = run.summary.slo
    said = []
    if slo.ttft is not None:
        said.append(f"first word within {slo.ttft:g} s")
    if slo.tpot is not None:
        said.append(f"at most {1e3 * slo.tpot:g} ms a word after that")
    return ", ".join(said) or "none"


def _another_load(groups: Sequence[Group]) -> bool:
    """In lock-step the rate is a result."""
    if any(point.concurrency is not None for point in groups[0][0].summary.points):
        return False
    rates = [fmean(run.summary.offered_rps for run in group) for group in groups]
    return max(rates) > (1 + OTHER_RATE) * min(rates)


def _seeds(group: Group) -> list[int]:
    return [run.summary.seed for run in group]


def _same_requests(one: Group, other: Group) -> bool:
    whole = not any(run.summary.interrupted for run in (*one, *other))
    counts = [sum(run.summary.offered for run in group) for group in (one, other)]
    return all(map(same_plan, one, other)) and (not whole or counts[0] == counts[1])
