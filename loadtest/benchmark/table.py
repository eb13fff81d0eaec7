"""Variants side by side on a terminal of 100 columns: figures, and below each its ratio to direct."""

from collections.abc import Sequence
from math import inf, isfinite

from rich.table import Table
from rich.text import Text

from loadtest.benchmark.figures import Measured, ratios
from loadtest.charts.units import NOTHING, number, times

_COLUMNS = (
    ("short\nTTFT\np50", "short_ttft_p50_s"),
    ("\n\np95", "short_ttft_p95_s"),
    ("\nE2E\np50", "short_e2e_p50_s"),
    ("\n\np95", "short_e2e_p95_s"),
    ("\nTPOT\nms", "short_tpot_p50_ms"),
    ("long\nTTFT\np50", "long_ttft_p50_s"),
    ("\n\nmax", "long_ttft_max_s"),
    ("\n\nalone", "long_alone_ttft_s"),
    ("ITL\n\np99", "itl_p99_s"),
    ("make-\nspan\n", "makespan_s"),
)


def table(measured: Sequence[Measured], unloaded_s: float) -> Table:
    """`unloaded_s` is what a short prompt takes to its first token when nobody else is here."""
    drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 0, 0, 1))
    drawn.add_column("seconds")
    for title, _ in _COLUMNS:
        drawn.add_column(title, justify="right")
    for title in ("p95 by\nun-\nloaded", "failed\n\n", "slices\n\ncached"):
        drawn.add_column(title, justify="right")
    direct = measured[0].figures
    for each in measured:
        figures = each.figures
        compared = ratios(figures, direct)
        cells = [Text(_number(getattr(figures, key))) for _, key in _COLUMNS]
        if not each.variant.direct:
            for cell, (_, key) in zip(cells, _COLUMNS, strict=True):
                cell.append(f"\n{times(compared[key])}", "dim")
        loaded = figures.short_ttft_p95_s / unloaded_s
        slices = "" if figures.slices is None else f"{figures.slices:,.0f}"
        cached = "" if figures.slice_cached_share is None else f"\n{figures.slice_cached_share:.0%}"
        drawn.add_row(
            "\n".join(each.variant.name.split("+", 1)).replace("\n", "\n+"),
            *cells,
            times(loaded) if isfinite(loaded) else "",
            Text(str(figures.failed), "bold red" if figures.failed else ""),
            slices + cached,
        )
    return drawn


def _number(value: float) -> str:
    return number(value) if isfinite(value) else "never" if value == inf else NOTHING
