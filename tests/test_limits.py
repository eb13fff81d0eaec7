"""How long a function may be. ruff enforces the other limits: five arguments, a complexity of ten (pyproject.toml)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("policies", "gateway", "loadtest")

MAX_LINES = 40
# The walk of a request is to be read at a glance.
MAX_LINES_OF = {"gateway/proxy/inference.py:_serve": 25}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(function: Function, path: str) -> int:
    """From `def` to its end. The long list of options of a command is not counted, only what follows it."""
    is_command = "/cli/" in path and len(function.args.args) + len(function.args.kwonlyargs) > 5
    start = function.body[0].lineno if is_command else function.lineno
    return (function.end_lineno or start) - start + 1


def functions(source: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield node


def too_long(source: str, path: str) -> list[str]:
    return [
        f"{path}:{function.name} has {lines} lines"
        for function in functions(source)
        if (lines := lines_of(function, path)) > MAX_LINES_OF.get(f"{path}:{function.name}", MAX_LINES)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_is_longer_than_a_screen(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert [each for path in paths for each in too_long(path.read_text(), str(path.relative_to(ROOT)))] == []


def test_functions_with_a_limit_of_their_own_exist() -> None:
    for place in MAX_LINES_OF:
        path, _, name = place.partition(":")
        assert name in {function.name for function in functions((ROOT / path).read_text())}


def test_a_long_function_is_found() -> None:
    source = "def f():\n" + "    pass\n" * MAX_LINES
    assert too_long(source, "gateway/app.py") == [f"gateway/app.py:f has {MAX_LINES + 1} lines"]


def test_the_options_of_a_command_are_not_counted() -> None:
    options = "".join(f"    option_{number}: int,\n" for number in range(MAX_LINES))
    source = f"def command(\n{options}) -> None:\n    pass\n"
    assert too_long(source, "gateway/cli/main.py") == []
    assert too_long(source, "gateway/app.py") != []
