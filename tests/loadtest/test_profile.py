"""Engine profiles: what ships, what a user's own file may say, and what is said of a bad one."""

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from loadtest.profile import KINDS, EngineProfile, load_profile

SHIPPED = (files("loadtest") / "profiles.toml").read_text()
NAMES = tuple(tomllib.loads(SHIPPED))
BF16 = load_profile("gemma-4-26b-bf16")
NVFP4 = load_profile("gemma-4-26b-nvfp4")


def table(name: str) -> str:
    """One table of the shipped file, as a file of its own."""
    text = SHIPPED[SHIPPED.index(f"[{name}]") :]
    return text.split("\n[")[0]


def test_what_ships() -> None:
    assert NAMES == ("gemma-4-26b-bf16", "gemma-4-26b-nvfp4", "gemma-4-31b-bf16", "nemotron-3-nano-omni-nvfp4")
    for name in NAMES:
        profile = load_profile(name)
        assert profile.d["mixed"] == profile.d["random"]  # as the file says
        assert (profile.kv_cache_tokens, profile.enable_prefix_caching, profile.max_model_len) == (None, False, 131072)
    assert not load_profile("nemotron-3-nano-omni-nvfp4").async_scheduling


def test_a_copy_of_the_profiles_with_a_change(tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(SHIPPED.replace("to_s = 0.06834495777116312", "to_s = 0"))
    assert load_profile(f"{copy}:gemma-4-26b-bf16") == replace(BF16, to_s=0.0)
    with pytest.raises(
        ValueError, match=r"which profile .*copy\.toml:gemma-4-26b-bf16, .*copy\.toml:gemma-4-26b-nvfp4"
    ):
        load_profile(str(copy))

    copy.write_text(table("gemma-4-26b-nvfp4"))
    assert load_profile(str(copy)) == NVFP4


def test_a_file_with_one_d_for_any_text(tmp_path: Path) -> None:
    lines = [line for line in table("gemma-4-26b-bf16").splitlines() if not line.startswith(("d =", "tt_factor ="))]
    (tmp_path / "old.toml").write_text("\n".join([*lines, "d = 0.7"]))
    assert load_profile(str(tmp_path / "old.toml")) == replace(BF16, d=dict.fromkeys(KINDS, 0.7), tt_factor={})


def test_a_file_that_names_more_of_vllms_flags(tmp_path: Path) -> None:
    flags = 'kv_cache_tokens = 4096\nblock_size = 32\nenable_prefix_caching = true\nscheduling_policy = "priority"\n'
    (tmp_path / "more.toml").write_text(f"{table('gemma-4-26b-bf16')}\n{flags}max_model_len = 2048\n")
    assert load_profile(str(tmp_path / "more.toml")) == BF16.with_flags(
        kv_cache_tokens=4096,
        block_size=32,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        max_model_len=2048,
    )


def test_a_flag_that_is_not_named_stays() -> None:
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
        ("d = { book = 0.5435145166610694, ", "d = { ", "d is missing for text of the kind book"),
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


# The formula, by its own figures: spark.md's derived curves, from the measurements of Django de Vreng,
# github.com/djangodevreng/dgx-spark-benchmarks, CC-BY-4.0.


@pytest.mark.parametrize(
    ("profile", "milliseconds"),
    [
        (BF16, {1: 42, 2: 50, 5: 71, 8: 89, 10: 99, 16: 124, 20: 137, 25: 150, 50: 188, 100: 233, 200: 315}),
        (NVFP4, {1: 34, 2: 36, 5: 43, 10: 53, 16: 63, 20: 69, 25: 76, 50: 106, 100: 152, 200: 236}),
    ],
)
def test_decode_step(profile: EngineProfile, milliseconds: dict[int, int]) -> None:
    """Sequences of 4500 tokens of context each; the table is rounded to milliseconds."""
    for sequences, expected in milliseconds.items():
        step_s = profile.step_s(decoding=sequences, context=4500 * sequences)
        assert step_s * 1000 == pytest.approx(expected, abs=0.5)


def test_a_step_of_several_kinds_of_text() -> None:
    """Two books and a reasoner decode while 100 tokens of random text are prefilled."""
    routed = 2 * BF16.d["book"] + BF16.d["reasoning"]
    weighted = BF16.tt_factor["random"] * 100
    step_s = BF16.step_s(decoding=3, context=300, prefilled=100, attended=5000, routed=routed, weighted=weighted)
    touched = 1 - (1 - BF16.q) ** (2 * 1.0532013527485802 + 0.5929125656828387 + 100)
    assert step_s == pytest.approx(
        BF16.tf_s
        + BF16.te_s * touched
        + 3 * BF16.td_s
        + 300 * BF16.tk_s_per_token
        + 112.025528701898 * BF16.tt_s_per_token
        + 5000 * BF16.ta_s_per_token2
    )
