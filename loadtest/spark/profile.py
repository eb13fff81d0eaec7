"""A simulated machine: what an engine step costs on it, and the flags that vLLM was started with there."""

import tomllib
from dataclasses import dataclass, field, replace
from importlib.resources import files
from math import pow
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from loadtest.plan.plan import TextKind

KINDS: tuple[TextKind, ...] = get_args(TextKind)
SchedulingPolicy = Literal["fcfs", "priority"]


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

    def with_flags(
        self,
        *,
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int | None = None,
        long_prefill_token_threshold: int | None = None,
        async_scheduling: bool | None = None,
        kv_cache_tokens: int | None = None,
        block_size: int | None = None,
        enable_prefix_caching: bool | None = None,
        scheduling_policy: SchedulingPolicy | None = None,
        max_model_len: int | None = None,
    ) -> "EngineProfile":
        """The same machine with vLLM started otherwise; None leaves a flag as it is."""
        flags: dict[str, Any] = {
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_num_seqs": max_num_seqs,
            "long_prefill_token_threshold": long_prefill_token_threshold,
            "async_scheduling": async_scheduling,
            "kv_cache_tokens": kv_cache_tokens,
            "block_size": block_size,
            "enable_prefix_caching": enable_prefix_caching,
            "scheduling_policy": scheduling_policy,
            "max_model_len": max_model_len,
        }
        return replace(self, **{flag: value for flag, value in flags.items() if value is not None})

    def step_s(
        self,
        *,
        decoding: int,
        context: int,
        prefilled: int = 0,
        attended: float = 0.0,
        routed: float | None = None,
        weighted: float | None = None,
    ) -> float:
        """Seconds of a step: sequences, tokens of context, prompt tokens, Σ chunk·(start + chunk/2).

        routed    Σ d of the sequences that decode; None if all are mixed text
        weighted  Σ tt_factor·chunk of the prompts; None if all are mixed text
        """
        if routed is None:
            routed = self.d["mixed"] * decoding
        if weighted is None:
            weighted = self.tt_factor.get("mixed", 1.0) * prefilled
        touched = 1 - pow(1 - self.q, routed + prefilled)
        return (
            self.tf_s
            + self.te_s * touched
            + self.td_s * decoding
            + self.tk_s_per_token * context
            + self.tt_s_per_token * weighted
            + self.ta_s_per_token2 * attended
        )


def load_profile(name_or_path: str) -> EngineProfile:
    """A profile by its name in profiles.toml, or from a file like it: `path:table`, `path` for its only one."""
    tables = tomllib.loads((files("loadtest.spark") / "profiles.toml").read_text())
    path, name = "", name_or_path
    if name not in tables:
        path, name = (name, "") if Path(name).is_file() else name.rpartition(":")[::2]
        if not Path(path).is_file():
            raise ValueError(
                f"no engine profile {name_or_path!r}: name one of {', '.join(tables)}, "
                "or a TOML file like loadtest/spark/profiles.toml, as path or path:table"
            )
        tables = tomllib.loads(Path(path).read_text())
        if not name and len(tables) == 1:
            (name,) = tables
    if name not in tables:
        raise ValueError(f"which profile of {path}? {', '.join(f'{path}:{table}' for table in tables)}")
    table = {**tables[name], "name": name}
    if isinstance(table.get("d"), int | float):
        table["d"] = dict.fromkeys(KINDS, table["d"])
    try:
        return msgspec.convert(table, EngineProfile)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"engine profile {name_or_path}: {error}") from None
