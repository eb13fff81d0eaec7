"""A drawing of matplotlib's as a piece of a page: small, in the page's own colours and letters, alike every time.

Colours go through matplotlib as numbers that nobody uses and come out as the page's variables, so that a chart turns
dark with its page. Text stays text. What a piece of SVG may not bring into a page is taken out: its prolog, its style
sheet, the time of day, and ids that another drawing has too.
"""

import re
import warnings
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.6, 2.9  # inches of 72 units: a phone's width at a legible size of letters
FONT_SIZE = 10.0

SIDES = 8
INK, FAINT, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
STAGES = ("#050501", "#050502", "#050503")
_VARIABLES = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    PAPER: "paper",
    **{colour: f"stage{number}" for number, colour in enumerate(STAGES)},
    **{f"#0606{number:02x}": f"side{number}" for number in range(SIDES)},
}

# The colours of a page, light and dark, as its style sheet has them.
PALETTE = """\
:root {
  color-scheme: light dark;
  --paper: #fff; --card: #f6f7f9; --ink: #1a1d21; --faint: #5b6570; --grid: #dfe3e8;
  --side0: #7b848f; --side1: #0072b2; --side2: #b4558b; --side3: #00805c; --side4: #8a6a00; --side5: #6a4fc0;
  --side6: #a3431a; --side7: #2f3a4a;
  --stage0: #b3470a; --stage1: #ea9a3e; --stage2: #f6d9ae;
  --better: #d7ecf8; --worse: #fbe0d2; --alarm: #b42318;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2125; --ink: #e6e8eb; --faint: #9aa4af; --grid: #343b43;
    --side0: #9aa3ad; --side1: #56b4e9; --side2: #e39ac5; --side3: #3cc79a; --side4: #dfbf4a; --side5: #a992f2;
    --side6: #f0905f; --side7: #e5e7eb;
    --stage0: #e8743b; --stage1: #b98a4a; --stage2: #665238;
    --better: #12384f; --worse: #552c17; --alarm: #ff8a7a;
  }
}
"""

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a user may be called $ada$
    "font.family": "DejaVu Sans",  # which measures; the page's own letters are drawn, and are narrower
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}


def side(number: int) -> str:
    """The colour of the side of that number."""
    return f"#0606{number % SIDES:02x}"


def drawn(key: str, label: str, draw: Callable[["Axes"], None], *, height: float = HEIGHT) -> str:
    """`key` is the drawing's own on its page; `label` says what it shows to who cannot see it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the page has more letters than ours
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        written = StringIO()
        figure.savefig(written, format="svg")
    return _inline(written.getvalue(), key, label)


def by_itself(svg: str, width: float, height: float) -> str:
    """A drawing that is a file of its own, so many inches wide and high, with colours and letters of its own."""
    size = f'width="{144 * width:.0f}" height="{144 * height:.0f}"'
    style = f"<style>\n{PALETTE}svg {{ background: var(--paper); font-family: system-ui, sans-serif; }}\n</style>"
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg" {size}>\n{style}{rest}\n'


def _inline(svg: str, key: str, label: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(
        r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>",
        rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">',
        body,
        count=1,
    )
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r"#0[1-6][0-9a-f]{4}\b", lambda found: _variable(found[0]), body)
    body = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), body)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", body))
    body = re.sub(r" id=\"([^\"]*)\"", lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r"(url\(#|href=\"#)", rf"\1{key}-", body).replace("xlink:href", "href")
    body = re.sub(r"<defs>\s*</defs>", "", body)
    body = re.sub(r"<g>\s*</g>", "", body)
    return re.sub(r"\s*\n\s*", "\n", body).strip()


def _variable(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour
