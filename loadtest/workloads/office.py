"""The demo's office: a minute of it, and somebody pastes half a novel, six times.

Eight people ask questions and chat, each about every sixteen seconds; at 5 s one pastes six documents of 25 000
tokens at once; 5 s later another pastes one. Tokens are as the engine counts them.
"""

from collections.abc import Sequence
from random import Random

from loadtest.plan.plan import Request
from loadtest.results.records import Record, percentile

PEOPLE = ("ada", "ben", "cem", "dana", "eva", "finn", "gus", "hana")
FIRST_PASTER, SECOND_PASTER = "ida", "jon"

MINUTE = 60.0
PAUSE = (12.0, 20.0)  # seconds between one person's requests
SHORT_PROMPT_TOKENS = (700, 1900)  # a chat page sends its instructions and the history along
SHORT_ANSWER_TOKENS = (150, 400)
PASTED_AT, PASTED_AGAIN_AT = 5.0, 10.0
DOCUMENT_TOKENS = 25_000
DOCUMENTS = 6
SUMMARY_TOKENS = (150, 400)


def office(seed: int) -> list[Request]:
    """In order of arrival. The same seed gives the same minute."""
    random = Random(seed)
    arrivals = []
    for person in PEOPLE:
        at = random.uniform(0, PAUSE[1])
        while at < MINUTE:
            prompt, answer = random.randint(*SHORT_PROMPT_TOKENS), random.randint(*SHORT_ANSWER_TOKENS)
            arrivals.append(Request(at, person, "short", prompt, answer))
            at += random.uniform(*PAUSE)
    for paster, when, documents in (
        (FIRST_PASTER, PASTED_AT, DOCUMENTS),
        (SECOND_PASTER, PASTED_AGAIN_AT, 1),
    ):
        arrivals += [
            Request(when, paster, "long", DOCUMENT_TOKENS, random.randint(*SUMMARY_TOKENS)) for _ in range(documents)
        ]
    return sorted(arrivals, key=lambda arrival: arrival.at)


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
