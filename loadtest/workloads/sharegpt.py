"""The article's replay of real conversations: the lengths of ShareGPT, by vLLM's rules, on a timetable.

The file is not ours to ship. It is `ShareGPT_V3_unfiltered_cleaned_split.json` of the Hugging Face dataset
anon8231489123/ShareGPT_Vicuna_unfiltered. Of it vLLM takes conversations of two turns or more, shuffles them, and
keeps in that order the first two turns of those that are neither too short nor too long; the second turn's length is
the answer's. We use the lengths and never the text. A token is taken for four bytes, which English comes to under
gemma's vocabulary: an estimate, so a few conversations fall on the other side of a limit than with the tokenizer.

Without a file the lengths are synthetic: quantiles that meet the published totals (60 269 tokens in, template
included, 51 200 out) and, for the answers, what the published latencies tell of the 50th, 90th, 95th and 99th
percentile. Of the prompts only the mean is known; their shape is a guess.
"""

from bisect import bisect
from random import Random

import msgspec

from loadtest.workloads.open_loops import TEMPLATE_TOKENS, arrivals, users
from loadtest.workloads.plan import Plan, Request
from loadtest.workloads.workload import Dataset, Options

COUNT, RATE, BURSTINESS = 250, 0.3, 0.7

BYTES_PER_TOKEN = 4.0
MIN_TOKENS, MAX_PROMPT_TOKENS, MAX_TOKENS = 4, 1024, 2048

# (share, tokens): so many have at most so many; linear in between.
PROMPT_QUANTILES = ((0.0, 4), (0.25, 20), (0.5, 75), (0.75, 316), (0.9, 720), (0.95, 860), (1.0, 1024))
ANSWER_QUANTILES = ((0.0, 4), (0.25, 45), (0.5, 120), (0.75, 285), (0.9, 507), (0.95, 635), (0.99, 865), (1.0, 1000))

Lengths = list[tuple[int, int]]  # prompt tokens without the template, answer tokens


def replay(options: Options) -> Plan:
    """Requests of a file are of kind "sharegpt", the others "synthetic", so that no figure passes for the other."""
    if options.dataset is None:
        kind, lengths = "synthetic", synthetic(COUNT, options.seed)
    else:
        kind, lengths = "sharegpt", chosen(options.dataset, COUNT, options.seed)
    rate = RATE if options.rate is None else options.rate
    timetable = zip(arrivals(COUNT, rate, BURSTINESS, options.seed), users(COUNT, options.seed), lengths, strict=True)
    return Plan(
        tuple(Request(at, user, kind, prompt + TEMPLATE_TOKENS, answer) for at, user, (prompt, answer) in timetable)
    )


class _Turn(msgspec.Struct):
    value: str

    @property
    def tokens(self) -> int:
        return round(len(self.value.encode()) / BYTES_PER_TOKEN)


class _Entry(msgspec.Struct):
    conversations: list[_Turn] = []


def chosen(dataset: Dataset, count: int, seed: int) -> Lengths:
    """The first so many that vLLM would take. ValueError, with what can be done, if the data set does not have them."""
    try:
        entries = msgspec.json.decode(dataset.content, type=list[_Entry])
    except msgspec.DecodeError as error:
        raise ValueError(
            f"cannot read conversations from {dataset.name}: {error}. It should be a list of "
            '{"conversations": [{"from": ..., "value": ...}, ...]}, as ShareGPT_V3_unfiltered_cleaned_split.json '
            "of huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered is"
        ) from error
    conversations = [entry.conversations for entry in entries if len(entry.conversations) >= 2]
    Random(seed).shuffle(conversations)
    lengths = []
    for prompt, answer, *_ in conversations:
        if _fits(prompt.tokens, answer.tokens):
            lengths.append((prompt.tokens, answer.tokens))
        if len(lengths) == count:
            return lengths
    raise ValueError(f"{dataset.name} has only {len(lengths)} conversations of a usable length, and {count} are needed")


def synthetic(count: int, seed: int) -> Lengths:
    """Each quantile once, so that every seed has the same totals; who is paired with whom is drawn."""
    random = Random(seed)
    shares = [(number + 0.5) / count for number in range(count)]
    columns = [[_quantile(quantiles, share) for share in shares] for quantiles in (PROMPT_QUANTILES, ANSWER_QUANTILES)]
    for column in columns:
        random.shuffle(column)
    return list(zip(*columns, strict=True))


def _fits(prompt: int, answer: int) -> bool:
    return min(prompt, answer) >= MIN_TOKENS and prompt <= MAX_PROMPT_TOKENS and prompt + answer <= MAX_TOKENS


def _quantile(quantiles: tuple[tuple[float, int], ...], share: float) -> int:
    place = bisect(quantiles, (share, 0))
    (low, least), (high, most) = quantiles[place - 1], quantiles[place]
    return round(least + (most - least) * (share - low) / (high - low))
