"""Cost profiles: the shipped ones against published times, and invalid files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pricing.profile import Profile
from gateway.storage.profile_file import load

ROUND = Profile(c_s=1, a_s_per_token=1e-3, b_s_per_token2=1e-6, decode_s_per_token=1e-2)

GOOD = "c_s = 1\na_s_per_token = 2\nb_s_per_token2 = 3\ndecode_s_per_token = 4\n"

# Milliseconds on a DGX Spark for a prompt alone: shared/reference/spark.md, section 1.
PREFILL_ALONE = {
    "gemma-4-26b-bf16": {256: 248, 1024: 341, 2048: 477, 4096: 790, 8192: 1578, 16384: 3963, 25000: 7557},
    "gemma-4-26b-nvfp4": {256: 115, 1024: 213, 2048: 357, 4096: 688, 8192: 1523, 16384: 3952, 25000: 7568},
}


@pytest.mark.parametrize(
    ("name", "tokens", "ms"),
    [(name, tokens, ms) for name, times in PREFILL_ALONE.items() for tokens, ms in times.items()],
)
def test_shipped_profiles_match_published_measurements(name: str, tokens: int, ms: float) -> None:
    assert 1000 * load(name).prefill(tokens) == pytest.approx(ms, rel=0.02)


def test_prefill_is_quadratic_and_decode_linear() -> None:
    assert ROUND.prefill(2000) == pytest.approx(1 + 2 + 4)
    assert ROUND.decode(300) == pytest.approx(3)


def test_a_continued_prompt_costs_its_new_tokens() -> None:
    assert ROUND.prefill(2000, cached=1000) == pytest.approx(1 + 1 + (4 - 1))
    assert ROUND.prefill(2000, cached=2000) == 1


@given(st.integers(0, 50_000), st.integers(0, 50_000))
def test_slices_cost_the_whole_plus_one_constant_each(one: int, two: int) -> None:
    whole = ROUND.prefill(one + two)
    assert ROUND.prefill(one) + ROUND.prefill(one + two, cached=one) == pytest.approx(whole + ROUND.c_s)


def test_a_machine_half_as_fast_takes_twice_as_long() -> None:
    assert ROUND.scaled(2).prefill(2000) == pytest.approx(14)
    assert ROUND.scaled(2).decode(300) == pytest.approx(6)


def test_a_users_own_profile_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[anything]\n{GOOD}")
    assert load(str(path)) == Profile(c_s=1, a_s_per_token=2, b_s_per_token2=3, decode_s_per_token=4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must hold one table ([some-name] and its keys); it holds nothing"),
        (f"[one]\n{GOOD}[two]\n{GOOD}", "it holds one, two"),
        ("[one]\nc_s = 1\n", "a_s_per_token: Field required"),
        (f"[one]\n{GOOD}speed = 5\n", "speed: Extra inputs are not permitted"),
        (f"[one]\n{GOOD}".replace("c_s = 1", "c_s = -1"), "c_s: Input should be greater than or equal to 0"),
        (f"[one]\n{GOOD}".replace("c_s = 1", "c_s = 'fast'"), "c_s: Input should be a valid number"),
        (f"[one]\n{GOOD}".replace("c_s = 1", "c_s = nan"), "c_s: "),
        (f"[one]\n{GOOD}".replace("c_s = 1", "c_s = inf"), "c_s: "),
        ("c_s = 1\n", "must hold one table"),
        ("[one\n", "cannot read the profile"),
    ],
)
def test_an_invalid_file_is_reported_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.toml") as wrong:
        load(str(path))
    assert says in str(wrong.value)


def test_a_missing_file_is_reported() -> None:
    with pytest.raises(ValueError, match=r"cannot read the profile nowhere\.toml.*No such file"):
        load("nowhere.toml")


def test_an_unknown_name_is_answered_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"no profile 'gpt'.*gemma-4-26b-bf16 or gemma-4-26b-nvfp4.*\.toml"):
        load("gpt")
