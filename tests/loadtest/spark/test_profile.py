"""Engine profiles: the shipped ones, a user's own file, and invalid files."""

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from loadtest.spark.profile import KINDS, StepWork
from loadtest.storage.engine_profiles import load_profile

SHIPPED = (files("loadtest.spark") / "profiles.toml").read_text()
NAMES = tuple(tomllib.loads(SHIPPED))
BF16 = load_profile("gemma-4-26b-bf16")
NVFP4 = load_profile("gemma-4-26b-nvfp4")


def table(name: str) -> str:
    """One table of the shipped file, as a file of its own."""
    text = SHIPPED[SHIPPED.index(f"[{name}]") :]
    return text.split("\n[")[0]


def test_every_kind_of_text_has_its_d() -> None:
    with pytest.raises(ValueError, match="d is missing for text of the kind random, mixed"):
        replace(BF16, d={"book": 1.0, "reasoning": 1.0})


def test_shipped_profiles_are_listed() -> None:
    assert NAMES == ("gemma-4-26b-bf16", "gemma-4-26b-nvfp4", "gemma-4-31b-bf16", "nemotron-3-nano-omni-nvfp4")
    for name in NAMES:
        profile = load_profile(name)
        assert profile.d["mixed"] == profile.d["random"]  # as the file says
        assert (profile.scheduling_policy, profile.enable_prefix_caching) == ("fcfs", False)
        assert profile.max_model_len == 131072
    assert not load_profile("nemotron-3-nano-omni-nvfp4").async_scheduling


def test_a_changed_copy_of_the_profiles_is_loaded(tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(SHIPPED.replace("q = 0.0625", "q = 0.5", 1))
    assert load_profile(f"{copy}:gemma-4-26b-bf16") == replace(BF16, q=0.5)
    with pytest.raises(
        ValueError, match=r"which profile .*copy\.toml:gemma-4-26b-bf16, .*copy\.toml:gemma-4-26b-nvfp4"
    ):
        load_profile(str(copy))

    copy.write_text(table("gemma-4-26b-nvfp4"))
    assert load_profile(str(copy)) == NVFP4


def test_a_file_may_have_one_d_for_all_kinds(tmp_path: Path) -> None:
    lines = [line for line in table("gemma-4-26b-bf16").splitlines() if not line.startswith(("d =", "tt_factor ="))]
    (tmp_path / "old.toml").write_text("\n".join([*lines, "d = 0.7"]))
    assert load_profile(str(tmp_path / "old.toml")) == replace(BF16, d=dict.fromkeys(KINDS, 0.7), tt_factor={})


def test_a_file_may_set_more_vllm_flags(tmp_path: Path) -> None:
    flags = 'kv_cache_tokens = 4096\nblock_size = 32\nenable_prefix_caching = true\nscheduling_policy = "priority"\n'
    (tmp_path / "more.toml").write_text(f"{table('gemma-4-26b-bf16')}\n{flags}max_model_len = 2048\n")
    assert load_profile(str(tmp_path / "more.toml")) == BF16.with_flags(
        kv_cache_tokens=4096,
        block_size=32,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        max_model_len=2048,
    )


def test_an_unset_flag_keeps_its_value() -> None:
    changed = BF16.with_flags(max_num_seqs=7, async_scheduling=False)
    assert changed == replace(BF16, max_num_seqs=7, async_scheduling=False)
    assert changed.with_flags() == changed


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=rf"{', '.join(NAMES)}, or a TOML file"):
        load_profile("gpt-5")


@pytest.mark.parametrize(
    ("line", "replacement", "complaint"),
    [
        ("tf_s = ", "tf = ", "tf_s"),
        ("q = 0.0625", 'q = "much"', r"\$\.q"),
        ("max_num_seqs = 1024", "max_num_seqs = 9000", "max_num_seqs"),
        ("reasoning = ", "thinking = ", r"thinking.*\$\.d"),
        ("d = { book", "d = { prose", r"prose.*\$\.d"),
        ("q = 0.0625", "q = 0.0625\nblock_size = 0", "block_size"),
        ("q = 0.0625", "q = 0.0625\nkv_cache_tokens = 15", "kv_cache_tokens"),
        ("q = 0.0625", 'q = 0.0625\nscheduling_policy = "lifo"', r"lifo.*\$\.scheduling_policy"),
    ],
)
def test_a_bad_profile_says_what_is_wrong(tmp_path: Path, line: str, replacement: str, complaint: str) -> None:
    text = table("gemma-4-26b-nvfp4")
    assert line in text
    (tmp_path / "bad.toml").write_text(text.replace(line, replacement, 1))
    with pytest.raises(ValueError, match=complaint):
        load_profile(str(tmp_path / "bad.toml"))


def test_a_step_with_several_kinds_of_text_averages_their_d() -> None:
    """Two books and a reasoner decode while 100 tokens of random text are prefilled."""
    profile = replace(
        BF16,
        tf_s=1.0,
        te_s=10.0,
        td_s=0.1,
        tk_s_per_token=0.001,
        tt_s_per_token=0.01,
        ta_s_per_token2=0.0001,
        q=0.1,
        d={"book": 1.5, "random": 9.0, "reasoning": 0.5, "mixed": 9.0},
        tt_factor={"random": 1.25},
    )
    seconds = profile.step_s(StepWork(decoding=3, context=300, prefilled=10, attended=50, routed=3.5, weighted=12.5))
    assert seconds == pytest.approx(1 + 10 * (1 - 0.9**13.5) + 0.3 + 0.3 + 0.125 + 0.005)


def test_without_kinds_all_text_counts_as_mixed() -> None:
    profile = replace(BF16, tt_factor={"mixed": 1.5, "random": 9.0})
    told_apart = StepWork(decoding=2, context=30, prefilled=10, routed=2 * profile.d["mixed"], weighted=15)
    assert profile.mixed_work(decoding=2, context=30, prefilled=10) == told_apart
