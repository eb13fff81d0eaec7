"""Runs that are one thing measured, once or again and again, and what there is to know of their requests."""

from collections.abc import Iterable, Sequence
from statistics import median

from loadtest.results.records import Outcome
from loadtest.results.result import Result
from loadtest.results.summary import Row

LONG_PROMPT_TOKENS = 2048  # as the gateway's lanes have it

Group = Sequence[Result]


def counted(run: Result) -> list[Row]:
    return [row for row in run.rows if row.outcome is not Outcome.INTERRUPTED]


def long_kinds(groups: Iterable[Group]) -> set[str]:
    """Those of which half the prompts are longer than what goes with the short ones."""
    tokens: dict[str, list[int]] = {}
    for row in (row for group in groups for run in group for row in run.rows):
        if row.prompt_tokens is not None:
            tokens.setdefault(row.kind, []).append(row.prompt_tokens)
    return {kind for kind, found in tokens.items() if median(found) > LONG_PROMPT_TOKENS}


def same_plan(one: Result, other: Result) -> bool:
    """Whoever was cut off has fewer requests of it."""
    if (one.summary.seed, one.summary.workload) != (other.summary.seed, other.summary.workload):
        return False
    who = {row.n: (row.user, row.kind) for row in one.rows}
    return all(who.get(row.n, (row.user, row.kind)) == (row.user, row.kind) for row in other.rows)
