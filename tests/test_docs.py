"""The documentation matches the code."""

import re
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from gateway.config.fields import fields
from loadtest.cli.load import app as load_app
from loadtest.cli.main import app
from loadtest.results.summary import Lag, PointSummary, Row, Stat, Summary, UserSummary
from loadtest.simulation import accuracy
from loadtest.storage.engine_profiles import load_profile
from loadtest.storage.measurements import measurements
from policies import POLICIES
from tests.support.repository import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]


def test_the_table_of_policies_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(app, ["policies"]).output
    text = (ROOT / "docs" / "policies.md").read_text()
    _, table, _ = re.split(r"<!-- table:(?:begin|end) -->\n", text)
    assert table == printed
    assert all(f"| {name} |" in table for name in POLICIES)


def test_the_table_of_errors_matches_the_simulated_machines() -> None:
    _, table, _ = re.split(r"<!-- table:(?:begin|end) -->\n", (ROOT / "docs" / "loadtest.md").read_text())
    machines = [(load_profile(name), tests) for name, tests in measurements().items()]
    assert table == accuracy.markdown(machines) + "\n"


@pytest.mark.parametrize("schema", [Summary, Row, PointSummary, UserSummary, Stat, Lag])
def test_every_field_of_the_results_is_documented(schema: type[msgspec.Struct]) -> None:
    text = (ROOT / "docs" / "loadtest.md").read_text()
    assert [name for name in schema.__struct_fields__ if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_in_the_readme_and_the_docs(name: str) -> None:
    for document in ("README.md", "docs/policies.md"):
        assert f"`{name}`" in (ROOT / document).read_text()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_links_have_existing_targets(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_commands_in_the_docs_exist(document: Path) -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name or "" for group in app.registered_groups}
    shown = set(re.findall(r"(?:^|`)fairlane ([a-z]+)\b", document.read_text(), re.MULTILINE))
    assert shown <= commands
    loads = {command.name for command in load_app.registered_commands}
    assert set(re.findall(r"fairlane load ([a-z]+)\b", document.read_text())) <= loads


def test_settings_in_the_docs_exist() -> None:
    known = {field.key for field in fields()}
    text = (ROOT / "docs" / "queueing.md").read_text()
    rows = re.findall(r"^\| (`[a-z_.`, ]+) \|", text, re.MULTILINE)
    shown = {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row)}
    assert shown - {"tpot_target"}
    assert shown <= known
