"""Which variant to take, in words, and the settings that make it.

Of those without failures, whose long prompts and makespan lose no more than is allowed, the one at which short prompts
fare best; but the plainest that is about as good. Direct is one of them: where nothing beats it, that is the advice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loadtest.benchmark.figures import Figures, Measured, ratio
from loadtest.benchmark.variant import DIRECT, SLICED, Settings, toml
from loadtest.charts.units import shown, times

Prefer = Literal["ttft", "e2e"]

SIMILAR = 1.1  # times the best: what is about as good
MIN_CACHED_SHARE = 0.9  # of the slices' tokens; below it the prefix cache does not hold them
MAX_OVERHEAD = 1.05  # times what a long prompt takes alone, that slices may cost

_FELT: dict[Prefer, tuple[str, Callable[[Figures], float]]] = {
    "ttft": ("first token of a short prompt (p95)", lambda figures: figures.short_ttft_p95_s),
    "e2e": ("whole short answer (median)", lambda figures: figures.short_e2e_p50_s),
}


@dataclass(frozen=True)
class Bounds:
    """Times what it is directly, at the most."""

    long_median: float = 1.5
    makespan: float = 1.25


@dataclass(frozen=True)
class Advice:
    """variant   by its name; direct is not to put a gateway there for this
    settings  of the gateway; None without one
    words     sentences
    """

    variant: str
    settings: Settings | None
    words: tuple[str, ...]

    def lines(self, given: Mapping[str, object]) -> list[str]:
        """Of TOML, with what the user has said of the engine: the gateway that is to be must know it, too."""
        if self.settings is None:
            return []
        engine = {key: value for key, value in given.items() if key.startswith("engine.")}
        return [f"{key} = {toml(value)}" for key, value in {**self.settings, **engine}.items()]


def advise(measured: Sequence[Measured], prefer: Prefer = "ttft", bounds: Bounds | None = None) -> Advice | None:
    """None where direct was not measured, or nothing beside it."""
    bounds = bounds or Bounds()
    direct = next((each for each in measured if each.variant.direct), None)
    if direct is None or len(measured) < 2:
        return None
    what, felt = _FELT[prefer]
    faults = {each.variant.name: _fault(each.figures, direct.figures, bounds) for each in measured}
    sound = [each for each in measured if each is direct or not faults[each.variant.name]]
    best = min(felt(each.figures) for each in sound)
    chosen = next(each for each in sound if felt(each.figures) <= SIMILAR * best)
    words = [
        *_chosen(chosen, direct, what, felt),
        *_refused(measured, chosen, faults, felt),
        *_slices(measured),
        *_alone(measured, direct.figures),
        *_doubts(measured),
    ]
    return Advice(chosen.variant.name, None if chosen.variant.direct else dict(chosen.variant.settings), tuple(words))


def _fault(figures: Figures, direct: Figures, bounds: Bounds) -> str:
    """Why it will not do; "" if it will. What also fails directly may be the load's own fault."""
    if figures.failed:
        return f"{figures.failed} of {figures.requests} requests failed"
    long = ratio(figures.long_ttft_p50_s, direct.long_ttft_p50_s)
    if long and long > bounds.long_median:
        return f"the long prompts' median is {times(long)} (--long-median-at-most {bounds.long_median:g})"
    makespan = ratio(figures.makespan_s, direct.makespan_s)
    if makespan and makespan > bounds.makespan:
        return f"everything takes {times(makespan)} as long (--makespan-at-most {bounds.makespan:g})"
    return ""


def _chosen(chosen: Measured, direct: Measured, what: str, felt: Callable[[Figures], float]) -> Iterator[str]:
    if chosen is direct:
        yield (
            f"Direct is better here: within the bounds no variant makes the {what} more than {SIMILAR - 1:.0%} shorter "
            f"than {shown(felt(direct.figures), 's')}."
        )
        return
    ours, before = chosen.figures, direct.figures
    yield (
        f"Take {chosen.variant.name}: the {what} goes from {shown(felt(before), 's')} to {shown(felt(ours), 's')}. "
        f"A short answer takes {_times(ours.short_e2e_p50_s, before.short_e2e_p50_s)} as long as directly, "
        f"a long prompt's first token {_times(ours.long_ttft_p50_s, before.long_ttft_p50_s)} (medians), "
        f"everything together {_times(ours.makespan_s, before.makespan_s)}."
    )


def _refused(
    measured: Sequence[Measured], chosen: Measured, faults: dict[str, str], felt: Callable[[Figures], float]
) -> Iterator[str]:
    """Those that would have been taken, but for a bound."""
    for each in measured:
        fault = faults[each.variant.name]
        if fault and felt(each.figures) < felt(chosen.figures):
            yield f"{each.variant.name} would be better ({shown(felt(each.figures), 's')}), but {fault}."


def _slices(measured: Iterable[Measured]) -> Iterator[str]:
    slicing = [each for each in measured if each.variant.slices]
    off = [each.variant.name for each in slicing if each.figures.slicing_off]
    missed = [
        f"{each.variant.name} {share:.0%}"
        for each in slicing
        if (share := each.figures.slice_cached_share) is not None and share < MIN_CACHED_SHARE
    ]
    if off or missed:
        said = f" ({', '.join(missed)} of their tokens)" if missed else ""
        ended = f" The gateway has switched slicing off in {', '.join(off)}." if off else ""
        yield (
            f"Slices do not hit the engine's prefix cache{said}: is it on (--enable-prefix-caching), and large enough "
            f"for these prompts?{ended}"
        )
    elif slicing and all(each.figures.slices == 0 for each in slicing):
        yield "No prompt was sliced: the long ones are too short for that here, or the gateway cannot count them."


def _alone(measured: Iterable[Measured], direct: Figures) -> Iterator[str]:
    for each in measured:
        alone = ratio(each.figures.long_alone_ttft_s, direct.long_alone_ttft_s)
        if each.variant.name == SLICED and alone and alone > MAX_OVERHEAD:
            yield f"A long prompt alone takes {times(alone)} as long through the gateway, in slices."


def _doubts(measured: Iterable[Measured]) -> Iterator[str]:
    if late := [each.variant.name for each in measured if each.figures.spoiled]:
        yield f"Not to be trusted: the load tester itself sent late in {', '.join(late)}; run it on an idle machine."
    for each in measured:
        if each.variant.name == DIRECT and each.figures.failed:
            yield f"{each.figures.failed} of {each.figures.requests} requests failed directly: the load is too much."


def _times(value: float, base: float) -> str:
    return times(ratio(value, base))
