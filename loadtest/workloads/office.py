"""The demo's office: a minute of it, and somebody pastes half a novel, six times.

Eight people ask questions and chat, each about every sixteen seconds; at 5 s one pastes six documents of 25 000
tokens at once; 5 s later another pastes one. Tokens are as the engine counts them.
"""

from random import Random

from loadtest.workloads.plan import Request

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
