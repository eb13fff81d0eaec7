"""What a gateway has learned of its engine, as it outlasts a restart: samples, never a word of text.

One JSON object. Samples are kept, not coefficients, so that whatever reads them can draw them, and a better way to fit
them applies to old ones too.

    {"version": 1, "engine": "google/gemma-4-26b-a4b-it on vLLM 0.26.0", "profile": {"name": ..., "c_s": ..., ...},
     "prefill": [[1.0, 1810, 3276100, 0, 0.44], ...],   as `gateway.pricing.curves` has them, seconds last
     "step": [[4, 0.063], ...],                         sequences, seconds
     "tokens": [[5120, 80, 0, 2, 1303], ...],           bytes by kind, messages, tokens
     "answers": [1.0, ...]}                             of answers that were sent back, the cached shares
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Self

import msgspec
from pydantic import ValidationError

from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.pricing.regression import Regression

VERSION = 1

# A file that is larger was not written by us.
MAX_BYTES = 1 << 20

Rows = list[list[float]]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    engine: str
    profile: dict[str, float | str | dict[str, float]]
    prefill: Rows
    step: Rows
    tokens: Rows
    answers: list[float] = []


@dataclass(frozen=True)
class CostSnapshot:
    """engine   the model and the version of its server: samples of another say nothing about this one
    profile  the prior: what was believed before there were samples
    """

    engine: str
    name: str
    profile: Profile
    prefill: Rows = field(default_factory=list)
    step: Rows = field(default_factory=list)
    tokens: Rows = field(default_factory=list)
    answers: list[float] = field(default_factory=list)

    @classmethod
    def capture(cls, model: CostModel, engine: str, name: str) -> Self:
        return cls(
            engine,
            name,
            model.prior,
            list(_rows(model.prefill.regression)),
            [[sample.x[-1], sample.y] for sample in model.step.regression.samples],
            list(_rows(model.estimator.regression)),
            model.prefixes.answer_shares(),
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Raises ValueError, with what is wrong."""
        try:
            kept = msgspec.json.decode(data, type=_File)
            name = str(kept.profile.pop("name", ""))
            profile = Profile.model_validate(kept.profile)
        except (msgspec.MsgspecError, ValidationError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error).splitlines()[0]) from error
        for rows, width in ((kept.prefill, 5), (kept.step, 2), (kept.tokens, 5)):
            if any(len(row) != width or not all(isfinite(value) and value >= 0 for value in row) for row in rows):
                raise ValueError(f"a sample is not {width} numbers of 0 or more")
        return cls(kept.engine, name, profile, kept.prefill, kept.step, kept.tokens, kept.answers)

    def write(self) -> bytes:
        kept = _File(
            VERSION,
            self.engine,
            {"name": self.name, **self.profile.model_dump()},
            self.prefill,
            self.step,
            self.tokens,
            self.answers,
        )
        return msgspec.json.encode(kept)

    def apply_to(self, model: CostModel) -> None:
        """As if the model had observed all that itself."""
        for *x, y in self.prefill:
            model.prefill.regression.observe(x, y)
        for sequences, seconds in self.step:
            model.step.observe(sequences, seconds)
        for *x, y in self.tokens:
            model.estimator.regression.observe(x, y)
        model.prefixes.restore_answer_shares(self.answers)

    @property
    def samples(self) -> int:
        return len(self.prefill) + len(self.step) + len(self.tokens)


def _rows(regression: Regression) -> Iterator[list[float]]:
    for sample in regression.samples:
        yield [*sample.x, sample.y]


__all__ = ["MAX_BYTES", "CostSnapshot"]
