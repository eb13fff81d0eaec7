"""What came of the demo's office minute: short prompts and long ones, and whether the second paster had to wait."""

from collections.abc import Sequence

from loadtest.results.records import Record, percentile
from loadtest.workloads.office import FIRST_PASTER, SECOND_PASTER


def figures(records: Sequence[Record]) -> dict[str, float]:
    """What readers feel, short and long, and what it costs; latency from arrival. Keys end in their unit, `failed`
    counts."""
    done = [record for record in records if record.completed]
    short = [record for record in done if record.request.kind == "short"]
    long = [record for record in done if record.request.kind == "long"]
    tpots = [record.tpot for record in short if record.tpot is not None]
    return {
        "short_ttft_p50_s": percentile((record.ttft for record in short), 50),
        "short_ttft_p95_s": percentile((record.ttft for record in short), 95),
        "short_e2e_p50_s": percentile((record.e2e for record in short), 50),
        "short_e2e_p95_s": percentile((record.e2e for record in short), 95),
        "short_tpot_p50_ms": 1e3 * percentile(tpots, 50),
        "itl_p99_s": percentile((gap for record in done for gap in record.itls), 99),
        "long_ttft_p50_s": percentile((record.ttft for record in long), 50),
        "long_ttft_max_s": max((record.ttft for record in long), default=float("nan")),
        "second_paster_ttft_s": next(
            (record.ttft for record in long if record.request.user == SECOND_PASTER), float("nan")
        ),
        "makespan_s": max((record.tokens[-1] for record in done), default=float("nan")),
        "failed": len(records) - len(done),
    }


def documents_before_second_paster(records: Sequence[Record]) -> int:
    """How many of the first paster's documents had their first token before the second paster's one."""
    long = [record for record in records if record.request.kind == "long" and record.completed]
    second = [record.first_token for record in long if record.request.user == SECOND_PASTER]
    first = [record.first_token for record in long if record.request.user == FIRST_PASTER]
    return sum(token < second[0] for token in first) if second else len(first)
