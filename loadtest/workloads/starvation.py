"""Starvation on purpose: two people paste documents, and eight ask short questions all the while, for two minutes.

Twelve documents come within the first 20 s, six from each, about a minute of a DGX Spark's prefill; four more come
later, one by one. An engine that goes by order of arrival makes every question wait for the documents before it. The
questions keep their timetable whatever becomes of them, so what waits is not hidden by people who ask less.
"""

from itertools import cycle
from random import Random

from loadtest.workloads.office_mix import MAX_PEOPLE, name_of
from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.workload import Options

PEOPLE, PASTING = 10, 2
DURATION_S = 120.0
FLOOD_S, FLOOD_DOCUMENTS = 20.0, 6  # from each
LATER_S = (45.0, 70.0, 90.0, 110.0)  # in turn
DOCUMENT_TOKENS = (12_000, 25_000)
SUMMARY_TOKENS = (150, 300)

PAUSE_S = (8.0, 12.0)  # between one person's questions
QUESTION_TOKENS = (150, 1500)
ANSWER_TOKENS = (100, 300)


def starvation(options: Options) -> Plan:
    people = PEOPLE if options.users is None else options.users
    duration = DURATION_S if options.duration is None else options.duration
    if not PASTING < people <= MAX_PEOPLE:
        raise ValueError(
            f"{PASTING + 1} to {MAX_PEOPLE} people, of whom {PASTING} paste and the rest ask, not {people}"
        )
    if duration <= 0:
        raise ValueError(f"nothing begins within {duration:g} s: give a duration above 0")
    random = Random(options.seed)
    names = [name_of(number) for number in range(people)]
    asking, pasting = names[:-PASTING], names[-PASTING:]
    questions = []
    for person in asking:
        at = random.uniform(0, min(PAUSE_S[1], duration))
        while at < duration:
            tokens = random.randint(*QUESTION_TOKENS), random.randint(*ANSWER_TOKENS)
            questions.append(Request(at, person, "question", *tokens))
            at += random.uniform(*PAUSE_S)
    pasted = [(random.uniform(0, FLOOD_S), person) for person in pasting for _ in range(FLOOD_DOCUMENTS)]
    pasted += zip(LATER_S, cycle(pasting), strict=False)
    documents = [
        Request(at, person, "document", random.randint(*DOCUMENT_TOKENS), random.randint(*SUMMARY_TOKENS))
        for at, person in pasted
        if at < duration
    ]
    return Plan(tuple(sorted([*questions, *documents], key=lambda request: request.at)))
