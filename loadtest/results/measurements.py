"""What a real DGX Spark measured of a workload, and the figures of a run that stand beside it."""

import msgspec

from loadtest.results.summary import Summary

# By the letters of the workloads: those that the simulated Spark was fitted to, of these the ones of which only some
# figures were used, and those that it was not fitted to.
FITTED = tuple("ABCDEFGH")
PARTLY = tuple("CDG")
HELD_OUT = tuple("IJ")

Figures = dict[str, float]  # by name, in the unit that the name ends in

POINT_FIGURES = ("ttft_ms", "decode_tps_per_request", "decode_tps_total", "prefill_tps")
STATS = ("ttft_send_ms", "tpot_ms", "itl_ms", "e2e_send_ms")
QUANTILES = ("mean", "p50", "p95", "p99")


class MeasuredPoint(msgspec.Struct, frozen=True):
    """Means over all requests of three batches, as llama-benchy has them."""

    pp: int
    tg: int
    concurrency: int
    ttft_ms: float
    ttft_std_ms: float
    decode_tps_per_request: float
    decode_tps_total: float
    prefill_tps: float


class Measured(msgspec.Struct, frozen=True):
    """One test on one machine: points of a closed loop, or what `vllm bench serve` said of an open one."""

    points: list[MeasuredPoint] = []
    latency_ms: float = 0.0
    offered: int = 0
    completed: int = 0
    duration_s: float = 0.0
    rps: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    output_tps: float = 0.0
    ttft_send_ms: dict[str, float] = {}
    tpot_ms: dict[str, float] = {}
    itl_ms: dict[str, float] = {}
    e2e_send_ms: dict[str, float] = {}

    def figures(self) -> Figures:
        found: Figures = {}
        for point in self.points:
            for name in POINT_FIGURES:
                found[f"{point.pp} c{point.concurrency} {name}"] = getattr(point, name)
        if not self.points:
            found |= {"duration_s": self.duration_s, "rps": self.rps, "output_tps": self.output_tps}
            found["failed"] = self.offered - self.completed
            found |= {f"{stat} {quantile}": getattr(self, stat)[quantile] for stat in STATS for quantile in QUANTILES}
        return found


def figures(summary: Summary) -> Figures:
    """A run's figures by the same names."""
    found: Figures = {}
    for point in summary.points:
        if point.concurrency is not None:
            for name in POINT_FIGURES:
                found[f"{point.pp} c{point.concurrency} {name}"] = getattr(point, name) or 0.0
    if not found:
        found |= {"duration_s": summary.duration_s, "rps": summary.rps, "output_tps": summary.output_tps}
        found["failed"] = summary.failed
        for stat in STATS:
            for quantile in QUANTILES:
                found[f"{stat} {quantile}"] = getattr(getattr(summary, stat), quantile) or 0.0
    return found
