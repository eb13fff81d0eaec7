"""The article's open loops: requests on the timetable that `vllm bench serve --seed S` draws, to the bit.

    lengths   default_rng(S): all prompts, then all answers, uniform over L(1-r) to L(1+r) for L tokens; r is 0.9
    arrivals  RandomState(S): gaps ~ Gamma(b, 1/(rate·b)), the first request's too, summed, and then stretched so that
              the last of n arrives at n/rate; b = 1 is Poisson, a smaller b burstier

The prompts are runs of the vocabulary, and the chat template adds 13 tokens to them. Answers go on until they are cut.

In the article the requests are one anonymous crowd. To have somebody to be fair to, each is given one of 25 users by
lot, which changes neither times nor lengths.
"""

from dataclasses import dataclass, replace
from math import ceil, floor
from random import Random

from loadtest.workloads.plan import Plan, Point, Request, TextKind
from loadtest.workloads.workload import Options

RANGE_RATIO = 0.9
TEMPLATE_TOKENS = 13
USERS = 25

SWEEP = ((0.1, 100), (0.2, 100), (0.3, 100), (0.5, 125), (0.7, 175), (1.0, 250))  # requests a second, how many
SWEEP_BURSTINESS = 0.7


def lengths(count: int, prompt_tokens: int, output_tokens: int, seed: int) -> list[tuple[int, int]]:
    """Of vLLM's random dataset: prompt tokens without the template, answer tokens."""
    import numpy as np

    draw = np.random.default_rng(seed)

    def spread(mean: int, least: int) -> list[int]:
        low, high = floor(mean * (1 - RANGE_RATIO)), ceil(mean * (1 + RANGE_RATIO))
        return [int(tokens) for tokens in draw.integers(max(low, least), high + 1, count)]

    return list(zip(spread(prompt_tokens, 0), spread(output_tokens, 1), strict=True))


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds from the start."""
    import numpy as np

    if rate <= 0:
        raise ValueError(f"a rate is above 0 requests a second, not {rate:g}")
    draw = np.random.RandomState(seed)
    times = [draw.gamma(burstiness, 1 / (rate * burstiness)) for _ in range(count)]
    for number in range(1, count):
        times[number] += times[number - 1]
    stretch = count / rate / times[-1]
    return [float(time * stretch) for time in times]


def users(count: int, seed: int) -> list[str]:
    random = Random(f"users {seed}")
    return [f"user-{random.randint(1, USERS):02}" for _ in range(count)]


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """So many requests of vLLM's random dataset, at a rate. The cap is the client's own."""

    count: int
    rate: float
    burstiness: float
    prompt_tokens: int = 4000
    output_tokens: int = 500
    max_concurrency: int | None = None
    text: TextKind = "random"

    def plan(self, options: Options) -> Plan:
        rate = self.rate if options.rate is None else options.rate
        requests = [
            Request(at, user, self.text, prompt + TEMPLATE_TOKENS, output, text=self.text)
            for at, user, (prompt, output) in zip(
                arrivals(self.count, rate, self.burstiness, options.seed),
                users(self.count, options.seed),
                lengths(self.count, self.prompt_tokens, self.output_tokens, options.seed),
                strict=True,
            )
        ]
        return Plan(tuple(requests), self.max_concurrency)


def rate_sweep(options: Options) -> Plan:
    """One step after the other: its clock starts when all of the step before have ended."""
    requests: list[Request] = []
    points: list[Point] = []
    before: tuple[int, ...] = ()
    for rate, count in SWEEP:
        step, start = OpenLoop(count, rate, SWEEP_BURSTINESS), len(requests)
        for request in step.plan(Options(options.seed)).requests:
            at, delay = (0.0, request.at) if before else (request.at, 0.0)
            requests.append(replace(request, at=at, after=before, delay=delay, point=len(points)))
        points.append(Point(step.prompt_tokens, step.output_tokens, rate=rate))
        before = tuple(range(start, len(requests)))
    return Plan(tuple(requests), points=tuple(points))


OFFICE_BASELINE = OpenLoop(200, rate=0.3, burstiness=0.7)
MONDAY_BURST = OpenLoop(300, rate=1.5, burstiness=1.0, max_concurrency=25)
# Its prompts are random too; what its long answers route to, and cost, is what was measured for it.
REASONING = OpenLoop(50, rate=0.2, burstiness=1.0, prompt_tokens=1024, output_tokens=4096, text="reasoning")
