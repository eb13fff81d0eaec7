"""What a calibration has measured, learned as a gateway learns it: there is one way to fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from gateway.pricing.cost_model import CostModel
from gateway.pricing.curves import PLAUSIBLE_S, PrefillObservation
from gateway.pricing.prompt import Prompt
from gateway.pricing.snapshot import CostSnapshot
from gateway.pricing.usage import PromptDetails, Usage
from loadtest.results.records import Record

TOKENS_PER_SAMPLE = 8  # tokens of a stream that make a sample of the decode step, as in `gateway.forecasting.speed`
MIN_TOKENS = 4  # of a stream, to tell the length of a decode step


@dataclass(frozen=True, slots=True)
class Trial:
    """asked    tokens that the prompt was to have
    tokens   it had, as the engine counted; `cached` of them it knew already
    seconds  to its first token, without its wait in the engine's own line
    """

    asked: int
    tokens: int
    cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Size:
    """A size of prompt, measured so many times: medians, and what the two curves say of it."""

    tokens: int
    times: int
    seconds: float
    start_s: float
    learned_s: float

    @property
    def error(self) -> float:
        return self.learned_s / self.seconds - 1


@dataclass(frozen=True, slots=True)
class Step:
    """A decode step of so many sequences; what the profile at the start says of it, where it says anything."""

    sequences: int
    seconds: float
    start_s: float | None
    learned_s: float


class Calibration:
    def __init__(self, model: CostModel) -> None:
        """`model` has learned nothing yet."""
        self.model = model
        self.trials: list[Trial] = []
        self._steps: dict[int, list[float]] = {}

    def prompt(self, asked: int, prompts: Sequence[Prompt], record: Record) -> bool:
        """One prompt, nothing beside it. Whether it says anything: a server must count its tokens."""
        if record.prompt_tokens is None or record.sent is None:
            return False
        usage = Usage(record.prompt_tokens, record.output_tokens, PromptDetails(record.cached_tokens))
        seen = PrefillObservation(record.first_token - record.sent, 0)
        price = self.model.price(prompts)
        if not self.model.learn(prompts, price, usage, seen, record.queue):
            return False
        seconds = seen.seconds - (record.queue or 0.0)
        self.trials.append(Trial(asked, record.prompt_tokens, record.cached_tokens or 0, seconds))
        return True

    def streams(self, records: Sequence[Record]) -> None:
        """Streams that were sent at once, from when the last has begun until the first ends. One of them stands for
        all: each gets a token in each step."""
        begin = max(record.tokens[0] for record in records)
        end = min(record.tokens[-1] for record in records)
        one = records[0]
        instants = [at for at in one.tokens if begin <= at <= end]
        # Where an engine sends several tokens in a chunk, it says in the end how many there were.
        tokens = (len(instants) - 1) * (one.output_tokens or 0) / len(one.tokens)
        # All in one sample: several may come at the same instant, where something on the way was busy; or all of them.
        if tokens >= MIN_TOKENS and (seconds := (instants[-1] - instants[0]) / tokens) > PLAUSIBLE_S[0]:
            for _ in range(max(1, round(tokens / TOKENS_PER_SAMPLE))):
                self.model.step.observe(len(records), seconds)
            self._steps.setdefault(len(records), []).append(seconds)

    @property
    def sizes(self) -> list[Size]:
        start, learned = self.model.prior, self.model.profile
        found = []
        for asked in sorted({trial.asked for trial in self.trials}):
            trials = [trial for trial in self.trials if trial.asked == asked]
            tokens, cached = fmean(trial.tokens for trial in trials), fmean(trial.cached for trial in trials)
            found.append(
                Size(
                    tokens=round(tokens),
                    times=len(trials),
                    seconds=median(trial.seconds for trial in trials),
                    start_s=start.prefill(tokens, cached),
                    learned_s=learned.prefill(tokens, cached),
                )
            )
        return found

    @property
    def steps(self) -> list[Step]:
        start, learned = self.model.prior, self.model.step
        return [
            Step(sequences, median(seconds), start.step(sequences), learned.at(sequences))
            for sequences, seconds in sorted(self._steps.items())
        ]

    @property
    def errors(self) -> list[float]:
        """Of the learned curve at each prompt, their sizes in order."""
        profile = self.model.profile
        return sorted(abs(profile.prefill(each.tokens, each.cached) / each.seconds - 1) for each in self.trials)

    def learned(self, engine: str, name: str, before: CostSnapshot | None) -> CostSnapshot:
        """To be kept in place of `before`. Seconds that were measured alone are better than those of its traffic, and
        the engine may have other flags by now; what it knows of texts is of real ones, and ours are filler."""
        learned = CostSnapshot.capture(self.model, engine, name)
        if before is None or before.engine != engine:
            return learned
        return replace(learned, tokens=before.tokens or learned.tokens, answers=before.answers)
