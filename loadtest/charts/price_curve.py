"""What a prompt costs, drawn and in figures: what was believed at the start, what was learned, and from what."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.pricing.regression import Sample
from loadtest.charts import braille, plots
from loadtest.charts.axis import Axis
from loadtest.charts.units import NOTHING, number, seconds
from loadtest.results.records import percentile

SIZES = (256, 1000, 4000, 16_000, 25_000)  # tokens of the prompts whose seconds are told
DRAWN = (64, 32_768)  # at the least
POINTS = 160  # of a curve
MARGIN = 1.3  # around what is drawn

TOKENS = {
    tick: f"{tick // 1000}k" if tick >= 1000 else str(tick)
    for tick in (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
}


@dataclass(frozen=True, slots=True)
class Dot:
    """A sample, as a prompt by itself of which nothing was cached: where it was none, what others' work took in it is
    taken off by the learned curve, and `tokens` are those that are as much work. `alone`, where nothing was."""

    tokens: float
    seconds: float
    alone: bool


@dataclass(frozen=True)
class PriceCurve:
    """learned is None where there are no samples to learn from."""

    name: str
    start: Profile
    learned: Profile | None = None
    dots: tuple[Dot, ...] = ()

    @classmethod
    def of(cls, model: CostModel, name: str) -> "PriceCurve":
        """`name` is its start's."""
        regression = model.prefill.regression
        if not regression.samples and not model.step.regression.samples:
            return cls(name, model.prior)
        dots = tuple(each for sample in regression.samples if (each := _dot(sample, regression.theta)) is not None)
        return cls(name, model.prior, model.profile, dots)

    @property
    def best(self) -> Profile:
        return self.learned or self.start

    @property
    def span(self) -> tuple[float, float]:
        """Tokens from and to which it is drawn."""
        tokens = [dot.tokens for dot in self.dots]
        return min([DRAWN[0], *(each / MARGIN for each in tokens)]), max(
            [DRAWN[1], *(each * MARGIN for each in tokens)]
        )

    @property
    def lines(self) -> list[plots.Priced]:
        """The start first, and what was learned over it."""
        start = plots.Priced(self._named("start"), self._points(self.start), learned=False)
        return [start, plots.Priced("learned", self._points(self.learned), learned=True)] if self.learned else [start]

    def drawn(self) -> RenderableType:
        """On a terminal of 80 columns."""
        lines = self.lines
        heights = [at for line in lines for _, at in line.points] + [dot.seconds for dot in self.dots]
        y = min(heights) / MARGIN, max(heights) * MARGIN
        ticks = {at: text for at, text in plots.TICKS_S.items() if y[0] <= at <= y[1]}
        shown = braille.chart(
            [
                braille.Line(line.points, "bold cyan" if line.learned else "dim", dashed=not line.learned)
                for line in lines
            ],
            [
                braille.Marks([(dot.tokens, dot.seconds) for dot in self.dots if dot.alone is alone], letter, style)
                for alone, letter, style in ((False, "○", "yellow"), (True, "●", "bold yellow"))
            ],
            Axis(self.span, TOKENS),
            Axis(y, ticks),
            "tokens",
        )
        return Text("\n").join([Text("seconds of prefill", "dim"), shown, self._key()])

    def svg(self, title: str) -> str:
        """A file by itself."""
        dots = [
            (alone, [(dot.tokens, dot.seconds) for dot in self.dots if dot.alone is alone]) for alone in (False, True)
        ]
        return plots.prices("prices", title, self.lines, dots, Axis(self.span, TOKENS))

    def table(self) -> RenderableType:
        """Prompts, then decode steps."""
        prompts = _table("prompt, tokens", *(f"{size:,}".replace(",", " ") for size in SIZES))
        for name, profile in self._rows:
            prompts.add_row(name, *(took(profile.prefill(size)) for size in SIZES))
        return prompts

    def steps(self) -> RenderableType | None:
        sequences = sorted(self.best.decode_step_s)
        if not sequences:
            return None
        table = _table("answers at once", *map(str, sequences))
        for name, profile in self._rows:
            steps = (profile.step(many) for many in sequences)
            table.add_row(f"{name}, ms a token", *(number(1e3 * step) if step else NOTHING for step in steps))
        return table

    @property
    def _rows(self) -> list[tuple[str, Profile]]:
        return [("start", self.start), ("learned", self.learned)] if self.learned else [(self.name, self.start)]

    def _named(self, what: str) -> str:
        return f"{what}: {self.name}" if self.learned else self.name

    def _key(self) -> Text:
        key = Text("   ")
        for line in self.lines:
            key.append("━━ " if line.learned else "╌╌ ", "bold cyan" if line.learned else "dim").append(
                f"{line.name}   "
            )
        for alone, sign, what in ((True, "● ", "a prompt by itself"), (False, "○ ", "corrected")):
            if any(dot.alone is alone for dot in self.dots):
                key.append(sign, "yellow").append(f"{what}   ")
        return key

    def _points(self, profile: Profile) -> list[tuple[float, float]]:
        low, high = self.span
        tokens = [low * (high / low) ** (step / (POINTS - 1)) for step in range(POINTS)]
        return [(each, max(profile.prefill(each), 1e-6)) for each in tokens]


def formula(profile: Profile) -> str:
    """Its coefficients, in units in which they are numbers that people read."""
    return (
        f"c = {ms(profile.c_s)}, a = {number(1e6 * profile.a_s_per_token)} µs a token, "
        f"b = {number(1e9 * profile.b_s_per_token2)} ns a token²"
    )


def accuracy(errors: Iterable[float]) -> str:
    sizes = [abs(each) for each in errors]
    if not sizes:
        return NOTHING
    return f"median {percent(percentile(sizes, 50))}, 95th percentile {percent(percentile(sizes, 95))}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def took(value: float) -> str:
    return ms(value) if value < 1 else seconds(value)


def ms(value: float | None) -> str:
    return NOTHING if value is None else f"{number(1e3 * value)} ms"


def _dot(sample: Sample, theta: tuple[float, ...]) -> Dot | None:
    """None of one that was nothing but others' work."""
    constant, linear, quadratic, beside = sample.x
    c, a, b, step = theta
    own = sample.y - c * (constant - 1) - step * beside
    if own <= 0:
        return None
    if constant == 1 and not beside and quadratic == linear**2:
        return Dot(linear, own, alone=True)
    work = a * linear + b * quadratic
    tokens = (sqrt(a * a + 4 * b * work) - a) / (2 * b) if b else linear
    return Dot(max(1.0, tokens), own, alone=False)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
