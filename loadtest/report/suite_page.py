"""A page of a whole suite: a real Spark's figures beside those of our runs, workload by workload."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.results.records import percentile
from loadtest.results.suite import SuiteTest

# What the article says, in which test, and the figures that it stands on.
HEADLINES = (
    ("23 to 24 tokens a second for one user alone", "A", ("4096 c1", "25000 c1"), "decode_tps_per_request"),
    ("35 s until ten prompts of 25k have their first tokens", "A", ("25000 c10",), "ttft_ms"),
    ("under half a second for ten short prompts", "G", ("256 c10",), "ttft_ms"),
    ("1.5 requests a second offered, about 0.26 done", "J", ("rps",), ""),
    ("a 99th percentile of about 6 s to the first token", "J", ("ttft_send_ms p99",), ""),
    ("0 of 300 requests failed", "J", ("failed",), ""),
)


@dataclass(frozen=True)
class Headline:
    claim: str
    measured: str
    ours: list[str]


def suite_page(tests: Sequence[SuiteTest], names: Sequence[str], template: str) -> str:
    """`names` are those of each test's runs, in their order."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = shown
    return environment.from_string(template).render(
        tests=tests,
        names=names,
        headlines=list(_headlines(tests)),
        sentence=_sentence(tests),
        first=tests[0].summaries[0],
    )


def _headlines(tests: Sequence[SuiteTest]) -> Iterator[Headline]:
    by_letter = {test.workload.letter: test for test in tests}
    for claim, letter, points, figure in HEADLINES:
        if letter not in by_letter:
            continue
        lines = {line.figure: line for line in by_letter[letter].lines}
        chosen = [lines[f"{point} {figure}".strip()] for point in points]
        theirs = [line.measured for line in chosen]
        yield Headline(
            claim,
            " to ".join(shown(value, chosen[0].figure) for value in theirs),
            [
                " to ".join(shown(line.ours[run], line.figure) for line in chosen)
                for run in range(len(by_letter[letter].summaries))
            ],
        )


def shown(value: float | None, figure: str) -> str:
    """A figure as a person reads it, by the unit that its name has."""
    if value is None:
        return "-"
    if "_ms" in figure:
        return f"{value / 1e3:.2f} s" if value >= 1000 else f"{value:.0f} ms"
    if figure in ("failed", "completed"):
        return f"{value:.0f}"
    if "duration" in figure:
        return f"{value:.0f} s"
    if "prefill_tps" in figure:
        return f"{value:.0f}/s"
    return f"{value:.3f}/s" if figure == "rps" else f"{value:.1f}/s"


def _sentence(tests: Sequence[SuiteTest]) -> str:
    """How far the simulated Spark is from the real one, fitted and held out apart."""
    simulated = tests[0].summaries[0].clock == "virtual"
    who = "The simulated Spark" if simulated else "This server"
    parts = []
    for words, held_out in (("in the tests that it was fitted to", False), ("in those that it was not", True)):
        found = [error for test in tests if test.held_out is held_out for error in test.errors]
        if found:
            spread = f"{100 * median(found):.1f} % (median; 90th percentile {100 * percentile(found, 90):.0f} %)"
            parts.append(f"{spread} {words}" if simulated else spread)
    if not parts:
        return "Nothing was measured on a real Spark that these runs could be held against."
    return f"{who} is off a real one by {' and by '.join(parts)}."
