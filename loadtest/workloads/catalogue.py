"""Every load there is, by name: the article's ten and its sweep, and ours.

The article is Django de Vreng's, on what a DGX Spark does for an office (github.com/djangodevreng/dgx-spark-benchmarks,
CC-BY-4.0). It speaks of nine tests. The repository's are the letters A to J without D, the website's 01 to 09 have D
and leave B out; both are presets.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from loadtest.workloads import closed_loops, open_loops, sharegpt
from loadtest.workloads.office import office as minute
from loadtest.workloads.office_mix import office_mix
from loadtest.workloads.plan import Plan
from loadtest.workloads.starvation import starvation
from loadtest.workloads.workload import Options, Workload

LABELS = "Prompts are named by their gpt2 tokens; gemma's are a tenth fewer, and so many are sent."
ESTIMATED = f"{LABELS} The model ends its answers itself; their lengths are an estimate from what the runs took."
CROWD = "The users are drawn by lot: in the article's runs there are none."


def _office_minute(options: Options) -> Plan:
    return Plan(tuple(minute(options.seed)))


_ALL = (
    Workload(
        "context-scaling",
        "A",
        "prompts of 4k to 25k, 1, 5 and 10 at a time",
        "closed",
        closed_loops.CONTEXT_SCALING.plan,
        note=LABELS,
    ),
    Workload(
        "concurrency-stress",
        "B",
        "prompts of 25k, 5, 10 and 20 at a time",
        "closed",
        closed_loops.CONCURRENCY_STRESS.plan,
        note=LABELS,
    ),
    Workload(
        "output-throughput",
        "C",
        "1k in, up to 1k out, 1, 5 and 10 at a time",
        "closed",
        closed_loops.OUTPUT_THROUGHPUT.plan,
        note=ESTIMATED,
    ),
    Workload(
        "reasoning",
        "D",
        "answers of 4k on average, one new every 5 s, until 48 run side by side",
        "open",
        open_loops.REASONING.plan,
        seed=42,
        note=f"Costs are those of long answers; the prompts are random text. {CROWD}",
    ),
    Workload(
        "multi-turn",
        "E",
        "2k in, 512 out, 1, 5 and 10 at a time",
        "closed",
        closed_loops.MULTI_TURN.plan,
        note=f"No conversation, whatever its name says: one turn, after a system message of one token. {LABELS}",
    ),
    Workload(
        "rag-mix",
        "F",
        "8k in, 512 out, 5, 10 and 20 at a time",
        "closed",
        closed_loops.RAG_MIX.plan,
        note=LABELS,
    ),
    Workload(
        "long-output",
        "G",
        "256 in, an answer as long as it takes, 1, 5 and 10 at a time",
        "closed",
        closed_loops.LONG_OUTPUT.plan,
        note=ESTIMATED,
    ),
    Workload(
        "office-baseline",
        "H",
        "4k in and 500 out on average, 18 requests a minute in bursts",
        "open",
        open_loops.OFFICE_BASELINE.plan,
        seed=42,
        note=CROWD,
    ),
    Workload(
        "sharegpt-replay",
        "I",
        "lengths of real conversations, 18 requests a minute in bursts",
        "open",
        sharegpt.replay,
        seed=42,
        note=(
            "Without a dataset: synthetic lengths, which meet the published totals. For the real ones give "
            "ShareGPT_V3_unfiltered_cleaned_split.json of the Hugging Face dataset "
            f"anon8231489123/ShareGPT_Vicuna_unfiltered; tokens are then counted as 4 bytes each. {CROWD}"
        ),
    ),
    Workload(
        "monday-burst",
        "J",
        "4k in and 500 out on average, 90 requests a minute, of which the client lets 25 through at a time",
        "open",
        open_loops.MONDAY_BURST.plan,
        seed=42,
        note=f"Most of the time is spent waiting at the client, which the article's latencies leave out. {CROWD}",
    ),
    Workload(
        "rate-sweep",
        "",
        "4k in and 500 out on average, from 6 to 60 requests a minute in six steps",
        "open",
        open_loops.rate_sweep,
        seed=42,
        note=f"Each step starts when the one before has ended. {CROWD}",
    ),
    Workload(
        "office-mix",
        "",
        "ten people for five minutes: questions, chats, documents searched and pasted, an agent",
        "people",
        office_mix,
        note="Ten people ask about six tenths of what a DGX Spark can do in bf16; fifty, three times what it can.",
    ),
    Workload(
        "starvation",
        "",
        "short questions of eight people, while two paste sixteen documents",
        "open",
        starvation,
    ),
    Workload(
        "office-minute",
        "",
        "a minute of short requests, while two people paste seven documents",
        "open",
        _office_minute,
        note="The load of `fairlane demo`.",
    ),
)

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _ALL}
_BY_LETTER = {workload.letter: workload for workload in _ALL if workload.letter}


def _preset(letters: Iterable[str]) -> tuple[str, ...]:
    return tuple(_BY_LETTER[letter].name for letter in letters)


PRESETS: dict[str, tuple[str, ...]] = {"repo-nine": _preset("ABCEFGHIJ"), "site-nine": _preset("CFGAEHIJD")}


def find(name_or_letter: str) -> Workload:
    """ValueError if there is none."""
    wanted = name_or_letter.strip().lower()
    if found := WORKLOADS.get(wanted) or _BY_LETTER.get(wanted.upper()):
        return found
    near = get_close_matches(wanted, WORKLOADS, n=1, cutoff=0.5)
    known = ", ".join(f"{each.name} ({each.letter})" if each.letter else each.name for each in _ALL)
    hint = f": do you mean {near[0]}?" if near else "."
    raise ValueError(f"no workload {name_or_letter!r}{hint} There are {known}")
