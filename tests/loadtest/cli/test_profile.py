"""The `fairlane profile` command: costs as figures, as a terminal chart and as a file."""

import os
import re
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.pricing.cost_model import CostModel
from gateway.pricing.curves import PrefillSample
from gateway.pricing.prompt import PromptSize
from gateway.pricing.snapshot import CostSnapshot
from gateway.storage.profile_file import load, shipped
from gateway.storage.state_file import default_path
from loadtest.charts import braille
from loadtest.charts.axis import Axis
from loadtest.charts.price_curve import PriceCurve
from loadtest.cli.main import app

BF16 = "gemma-4-26b-bf16"
URL = "http://127.0.0.1:8000"
ENGINE = "google/gemma-4-26b-a4b-it on vLLM 0.26.0"


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


def profile(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["profile", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def taught(*, alone: bool = True, beside: bool = True) -> CostModel:
    """A model that has seen a machine half as fast as it believed."""
    model, true = CostModel(load(BF16)), load(BF16).scaled(2)
    for tokens in (200, 800, 3200, 12_800) * 2:
        if alone:
            model.prefill.observe(PrefillSample(tokens, 0, true.prefill(tokens), None, 0))
        if beside:
            model.prefill.observe(PrefillSample(tokens, 100, true.prefill(tokens, 100) + 0.05, 0.05, 4))
    for sequences in (1, 4):
        model.step.observe(sequences, 2 * (load(BF16).step(sequences) or 0.0))
    model.estimator.learn(PromptSize(words=5120, marks=80, messages=2), 1303)
    return model


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "learned.json"
    path.write_bytes(CostSnapshot.capture(taught(), ENGINE, BF16).write())
    return path


# Shown.


def test_learned_costs_are_drawn_and_printed(state: Path) -> None:
    said = profile("show", "--state-file", str(state))
    assert ENGINE in said
    assert f"{state}, written 0 seconds ago" in said
    assert "●" in said
    assert "○" in said
    assert re.search(r"c = 4[34]\d ms, a = 2[01]\d µs a token, b = 1[45]\.\d ns a token²", said)
    (start,) = re.findall(r"^start .* s$", said, re.MULTILINE)
    (learned,) = re.findall(r"^learned .* s$", said, re.MULTILINE)
    assert start.split()[-2] == "7.51"
    assert 14 < float(learned.split()[-2]) < 16
    assert "16 of prefill, 2 of decode steps, 1 of tokens" in said
    assert re.search(r"error, prefill +median \d\.\d %, 95th percentile \d\.\d %", said)
    assert re.search(r"bytes per token +\d\.\d of prose", said)


def test_the_output_fits_80_columns() -> None:
    drawn = braille.chart([], [], Axis((64, 32_768), {30_000: "30k"}), Axis((0.1, 10), {1: "0.03 s"}), "tokens")
    assert max(map(len, drawn.plain.splitlines())) <= 80


def test_without_arguments_the_engine_of_the_settings_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    path = default_path(URL)
    path.parent.mkdir(parents=True)
    path.write_bytes(CostSnapshot.capture(taught(), ENGINE, BF16).write())
    assert ENGINE in profile("show")
    assert ENGINE in profile("show", "--upstream", f"{URL}/v1")
    monkeypatch.setenv("FAIRLANE_UPSTREAM", "http://127.0.0.1:9")
    assert "Nothing was learned of http://127.0.0.1:9 yet" in profile("show")


def test_without_learned_costs_the_profile_is_shown() -> None:
    said = " ".join(profile("show", "--set", "profile=gemma-4-26b-nvfp4").split())
    assert "`fairlane calibrate` measures" in said
    assert "gemma-4-26b-nvfp4" in said
    assert "learned " not in said.partition("measures")[2]


@pytest.mark.parametrize("name", shipped())
def test_a_profile_is_found_by_name(name: str) -> None:
    said = profile("show", name)
    assert said.startswith(name)
    assert "start" not in said
    assert "samples" not in said


def test_a_profile_file_without_step_times_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[mine]\nc_s = 0.001\na_s_per_token = 1e-6\nb_s_per_token2 = 0\ndecode_s_per_token = 1e-4\n")
    said = profile("show", str(file))
    assert "c = 1.00 ms, a = 1.00 µs a token, b = 0 ns a token²" in said
    assert re.search(r"^mine +1.26 ms", said, re.MULTILINE)
    assert "answers at once" not in said


def test_the_list_has_every_profile() -> None:
    listed = profile("list")
    assert all(name in listed for name in shipped())
    assert "7.51 s" in listed


def test_the_svg_file_is_self_contained(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "curve.svg"
    assert f"wrote {file}" in profile("show", "--state-file", str(state), "--svg", str(file))
    root = ElementTree.parse(file).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    drawn = " ".join(text for text in root.itertext())
    for what in (
        "learned",
        f"start: {BF16}",
        "a prompt by itself",
        "corrected: partly cached, or not alone",
        "10k",
        "1 s",
    ):
        assert what in drawn
    assert "prefers-color-scheme: dark" in drawn
    first = file.read_bytes()
    profile("show", "--state-file", str(state), "--svg", str(file))
    assert file.read_bytes() == first


def test_ages_are_printed_in_words(state: Path) -> None:
    for earlier, said in ((30, "30 seconds"), (600, "10 minutes"), (10_000, "3 hours"), (400_000, "5 days")):
        then = time.time() - earlier
        os.utime(state, (then, then))
        assert f"written {said} ago" in profile("show", "--state-file", str(state))


# What is told of samples.


def test_samples_are_drawn_without_concurrent_work() -> None:
    curve = PriceCurve.of(taught(), BF16)
    assert curve.learned
    assert {dot.alone for dot in curve.dots} == {True, False}
    for dot in curve.dots:
        assert dot.seconds == pytest.approx(curve.learned.prefill(dot.tokens), rel=0.06)


def test_a_sample_that_is_all_concurrent_work_is_not_drawn() -> None:
    model = taught(beside=False)
    before = len(PriceCurve.of(model, BF16).dots)
    model.prefill.regression.observe((1.0, 1.0, 1.0, 1e5), 0.001)
    assert len(PriceCurve.of(model, BF16).dots) == before


def test_a_model_without_samples_shows_only_its_prior() -> None:
    curve = PriceCurve.of(CostModel(load(BF16)), BF16)
    assert curve.learned is None
    assert curve.best == load(BF16)
    assert [line.learned for line in curve.lines] == [False]


def test_a_linear_machine_can_be_drawn() -> None:
    start = load(BF16).model_copy(update={"b_s_per_token2": 0.0, "c_s": 0.0})
    model = CostModel(start)
    model.prefill.regression.observe((1.0, 5000, 5000**2 - 1000**2, 0.0), 1.0)
    assert PriceCurve.of(model, "linear").dots[0].alone is False


def test_the_axis_grows_with_a_longer_prompt() -> None:
    model = taught()
    model.prefill.observe(PrefillSample(200_000, 0, 700.0, None, 0))
    low, high = PriceCurve.of(model, BF16).span
    assert low <= 64
    assert high > 200_000


def test_concurrent_prefills_are_subtracted_without_their_constant() -> None:
    model = CostModel(load(BF16))
    model.prefill.observe(PrefillSample(1000, 0, 1.0, 0.0, 0, (500,)))
    (dot,) = PriceCurve.of(model, BF16).dots
    assert not dot.alone
    assert 1400 < dot.tokens < 1500


# What can go wrong.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "h100"], "no profile 'h100'"),
        (["show", "no/such.toml"], "cannot read the profile no/such.toml"),
        (["show", BF16, "--upstream", URL], "a profile has no samples"),
        (["show", "--state-file", "no/such.json"], "no/such.json"),
        (["show", BF16, "--svg", "/no/such/folder/curve.svg"], "/no/such/folder/curve.svg"),
        (["show", "--set", "upsteam=x"], "did you mean upstream?"),
    ],
)
def test_errors_are_reported_in_plain_words(arguments: list[str], said: str) -> None:
    told = profile(*arguments, code=2).splitlines()[-1]
    assert told.startswith("fairlane: ")
    assert said in told


@pytest.mark.parametrize("broken", [b"", b"{", b'{"version": 2}', b"\xff\xfe"])
def test_a_broken_state_file_is_an_error(broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    path.write_bytes(broken)
    assert f"{path} is not what a gateway keeps" in profile("show", "--state-file", str(path), code=2)


def test_with_state_file_off_there_is_nothing_to_show() -> None:
    assert "Nothing was learned" in profile("show", "--set", "state_file=off")


def test_without_observed_texts_no_token_rate_is_printed(tmp_path: Path) -> None:
    """A share of 0 is no size of a token."""
    path = tmp_path / "learned.json"
    model = taught()
    for _ in range(40):
        model.estimator.regression.observe((4000.0, 0.0, 400.0, 1.0), 1000.0)
    path.write_bytes(replace(CostSnapshot.capture(model, ENGINE, ""), name="").write())
    said = profile("show", "--state-file", str(path))
    assert "of other scripts" in said
    assert "start: its profile" in said
