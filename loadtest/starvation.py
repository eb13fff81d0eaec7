"""Starvation on purpose: two people paste documents, and eight ask short questions all the while, for two minutes.

Twelve documents come within the first 20 s, six from each, about a minute of a DGX Spark's prefill; four more come
later, one by one. An engine that goes by order of arrival makes every question wait for the documents before it. The
questions keep their timetable whatever becomes of them, so what waits is not hidden by people who ask less.
"""

from random import Random

from loadtest.request import Plan, Request
from loadtest.workload import Options

ASKING = ("ada", "ben", "cem", "dana", "eva", "finn", "gus", "hana")
PASTING = ("ida", "jon")

DURATION_S = 120.0
FLOOD_S, FLOOD_DOCUMENTS = 20.0, 6  # from each
LATER_S = (45.0, 70.0, 90.0, 110.0)  # in turn
DOCUMENT_TOKENS = (12_000, 25_000)
SUMMARY_TOKENS = (150, 300)

PAUSE_S = (8.0, 12.0)  # between one person's questions
QUESTION_TOKENS = (150, 1500)
ANSWER_TOKENS = (100, 300)


def starvation(options: Options) -> Plan:
    random = Random(options.seed)
    requests = []
    for person in ASKING:
        at = random.uniform(0, PAUSE_S[1])
        while at < DURATION_S:
            requests.append(
                Request(at, person, "question", random.randint(*QUESTION_TOKENS), random.randint(*ANSWER_TOKENS))
            )
            at += random.uniform(*PAUSE_S)
    pasted = [(random.uniform(0, FLOOD_S), person) for person in PASTING for _ in range(FLOOD_DOCUMENTS)]
    pasted += [(at, PASTING[number % len(PASTING)]) for number, at in enumerate(LATER_S)]
    requests += [
        Request(at, person, "document", random.randint(*DOCUMENT_TOKENS), random.randint(*SUMMARY_TOKENS))
        for at, person in pasted
    ]
    return Plan(tuple(sorted(requests, key=lambda request: request.at)))
