"""A simulated machine: what an engine step costs on it, and the flags that vLLM was started with there."""

from dataclasses import dataclass, field, replace
from math import pow
from typing import Literal, TypedDict, Unpack, get_args

from loadtest.workloads.plan import TextKind

KINDS: tuple[TextKind, ...] = get_args(TextKind)
SchedulingPolicy = Literal["fcfs", "priority"]


class Flags(TypedDict, total=False):
    """vLLM's, by which a machine can be started otherwise."""

    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    long_prefill_token_threshold: int | None
    async_scheduling: bool | None
    kv_cache_tokens: int | None
    block_size: int | None
    enable_prefix_caching: bool | None
    scheduling_policy: SchedulingPolicy | None
    max_model_len: int | None


@dataclass(slots=True)
class StepWork:
    """What a step computes.

    decoding   sequences that decode
    context    tokens that they read
    routed     Σ d of them
    prefilled  prompt tokens
    attended   Σ chunk·(start + chunk/2) of the prompts
    weighted   Σ tt_factor·chunk of them
    """

    decoding: int = 0
    context: int = 0
    routed: float = 0.0
    prefilled: int = 0
    attended: float = 0.0
    weighted: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One model on one machine: what its steps cost (profiles.toml explains each name), and vLLM's flags."""

    name: str
    tf_s: float
    te_s: float
    td_s: float
    tt_s_per_token: float
    ta_s_per_token2: float
    tk_s_per_token: float
    to_s: float
    q: float
    d: dict[TextKind, float]
    max_num_batched_tokens: int
    max_num_seqs: int
    long_prefill_token_threshold: int
    async_scheduling: bool
    tt_factor: dict[TextKind, float] = field(default_factory=dict)
    kv_cache_tokens: int | None = None  # None: the cache is never full
    block_size: int = 16
    enable_prefix_caching: bool = False  # as it was measured; vLLM has it on
    scheduling_policy: SchedulingPolicy = "fcfs"
    max_model_len: int = 131072

    def __post_init__(self) -> None:
        if missing := [kind for kind in KINDS if kind not in self.d]:
            raise ValueError(f"d is missing for text of the kind {', '.join(missing)}")
        if self.block_size < 1 or (self.kv_cache_tokens is not None and self.kv_cache_tokens < self.block_size):
            raise ValueError(
                f"block_size ({self.block_size}) must be at least 1, and kv_cache_tokens ({self.kv_cache_tokens}) "
                "at least one block"
            )
        # vLLM refuses to start then, too; and so every decoding sequence fits into every step
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}), and that at least 1"
            )

    def with_flags(self, **flags: Unpack[Flags]) -> "EngineProfile":
        """The same machine with vLLM started otherwise; None leaves a flag as it is."""
        return replace(self, **{flag: value for flag, value in flags.items() if value is not None})  # type: ignore[arg-type]

    @property
    def flags(self) -> str:
        """As vLLM would be started."""
        said = [f"--max-num-batched-tokens {self.max_num_batched_tokens}", f"--max-num-seqs {self.max_num_seqs}"]
        if self.long_prefill_token_threshold:
            said.append(f"--long-prefill-token-threshold {self.long_prefill_token_threshold}")
        if self.scheduling_policy != "fcfs":
            said.append(f"--scheduling-policy {self.scheduling_policy}")
        said.append("--enable-prefix-caching" if self.enable_prefix_caching else "--no-enable-prefix-caching")
        if self.kv_cache_tokens is not None:
            said.append(f"cache of {self.kv_cache_tokens} tokens")
        return " ".join(said)

    def step_s(self, work: StepWork) -> float:
        """Seconds of a step."""
        touched = 1 - pow(1 - self.q, work.routed + work.prefilled)
        return (
            self.tf_s
            + self.te_s * touched
            + self.td_s * work.decoding
            + self.tk_s_per_token * work.context
            + self.tt_s_per_token * work.weighted
            + self.ta_s_per_token2 * work.attended
        )

    def mixed_work(self, *, decoding: int = 0, context: int = 0, prefilled: int = 0, attended: float = 0.0) -> StepWork:
        """What a step computes if all text is mixed."""
        routed, weighted = self.d["mixed"] * decoding, self.tt_factor.get("mixed", 1.0) * prefilled
        return StepWork(decoding, context, routed, prefilled, attended, weighted)
