"""Which room may import which, and what a pure room must not touch.

A room is a folder; the modules that lie directly in a package are a room of their own each. `ROOMS` lists them from the
bottom to the top: a module imports only from its own room and from those above its line in the list. The source is
read, not run, so an import inside a function counts too.

A pure room decides and computes. It has no clock, no I/O, no logging and no server, and reads no file, which is what
lets the simulator, the tests and the gateway drive the same objects.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("policies", "gateway", "loadtest")

# From the bottom to the top.
ROOMS = {
    "policies": "pure",
    "gateway.types": "pure",
    "gateway.outcome": "pure",
    "gateway.errors": "pure",
    "gateway.tcp": "shell",
    "gateway.pricing": "pure",
    "gateway.scheduling": "pure",
    "gateway.forecasting": "pure",
    "gateway.slicing": "pure",
    "gateway.lifecycle": "pure",
    "gateway.api": "pure",
    "gateway.identity": "pure",
    "gateway.config": "pure",
    "gateway.from_settings": "pure",
    "gateway.storage": "shell",
    "gateway.engine": "shell",
    "gateway.tokenizers": "shell",
    "gateway.telemetry": "shell",
    "gateway.proxy": "shell",
    "gateway.app": "shell",
    "gateway.server": "shell",
    "gateway.cli": "shell",
    "gateway.__main__": "shell",
    "gateway": "pure",
    "loadtest.workloads": "pure",
    "loadtest.results": "pure",
    "loadtest.spark": "pure",
    "loadtest.simulation": "pure",
    "loadtest.charts": "pure",
    "loadtest.report": "pure",
    "loadtest.storage": "shell",
    "loadtest.spark_server": "shell",
    "loadtest.runs": "shell",
    "loadtest.benchmark": "shell",
    "loadtest.demo": "shell",
    "loadtest.cli": "shell",
    "loadtest.__main__": "shell",
    "loadtest": "pure",
}

# What a pure room must not import, and what its modules must not call.
IMPURE = {
    *("asyncio", "anyio", "httpx", "starlette", "uvicorn", "opentelemetry", "prometheus_client"),
    *("logging", "os", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time"),
}
READS_FILES = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "is_file", "files"}

# No new attic: modules that may lie in one place.
MOST_MODULES = {"gateway": 10, "loadtest": 5}
MOST_IN_A_ROOM = 14
MOST_EDGES = 90

Sources = dict[str, str]  # module -> source


def sources() -> Sources:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def imports(statements: Iterable[ast.AST], known: Iterable[str]) -> Iterator[str]:
    """Dotted names; of `from package import name` the module of that name, if there is one."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            yield from {f"{parent}.{a.name}" if f"{parent}.{a.name}" in known else parent for a in node.names}


def all_imports(module: str, sources: Sources) -> set[str]:
    return set(imports(ast.walk(ast.parse(sources[module])), sources))


def room(module: str) -> str:
    """The longest room that the module's name begins with."""
    names = module.split(".")
    prefixes = (".".join(names[:count]) for count in range(len(names), 0, -1))
    return next(
        (prefix for prefix in prefixes if prefix in ROOMS and (prefix == module or prefix.count("."))), names[0]
    )


def top(name: str) -> str:
    return name.partition(".")[0]


def is_ours(name: str) -> bool:
    return top(name) in PACKAGES


def edges(sources: Sources) -> set[tuple[str, str]]:
    """Which room imports which."""
    found = set()
    for module in sources:
        for name in all_imports(module, sources):
            if is_ours(name) and room(name) != room(module):
                found.add((room(module), room(name)))
    return found


# Each check answers with what is wrong, in words.


def unknown_rooms(sources: Sources) -> list[str]:
    strays = [module for module in sources if module not in ROOMS and room(module) in PACKAGES[1:]]
    return [f"{module}: which room is it in? Add it to ROOMS in {Path(__file__).name}" for module in sorted(strays)]


def missing_rooms(sources: Sources) -> list[str]:
    there = {room(module) for module in sources}
    return [f"{name} is listed and does not exist" for name in ROOMS if name not in there]


def impurities(sources: Sources) -> list[str]:
    faults = []
    for module in sorted(sources):
        if ROOMS[room(module)] != "pure":
            continue
        for name in sorted(all_imports(module, sources)):
            if top(name) in IMPURE or (is_ours(name) and ROOMS[room(name)] == "shell"):
                faults.append(f"{module} is in a pure room and imports {name}")
        faults += [f"{module} is in a pure room and calls {name}" for name in file_calls(sources[module])]
    return faults


def file_calls(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in READS_FILES:
                yield name


def upward(sources: Sources) -> list[str]:
    order = {name: number for number, name in enumerate(ROOMS)}
    faults = []
    for module in sorted(sources):
        for name in sorted(all_imports(module, sources)):
            if is_ours(name) and order[room(name)] > order[room(module)]:
                faults.append(f"{module} imports {name}, which is above it")
            elif top(module) == "policies" and top(name) not in sys.stdlib_module_names | {"policies"}:
                faults.append(f"{module} imports {name}, which is not in the standard library")
    return faults


def circles(sources: Sources) -> list[str]:
    graph = {module: (all_imports(module, sources) & {*sources}) - {module} for module in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def attics(sources: Sources) -> list[str]:
    """Folders that hold too many modules; their `__init__` is not counted."""
    folders = {module for module in sources if any(other.startswith(f"{module}.") for other in sources)}
    inside = Counter(module.rpartition(".")[0] for module in {*sources} - folders)
    most = {folder: MOST_MODULES.get(folder, MOST_IN_A_ROOM) for folder in inside}
    return [f"{folder} has {count} modules" for folder, count in sorted(inside.items()) if count > most[folder]]


CHECKS = [unknown_rooms, missing_rooms, impurities, upward, circles, attics]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_layers(check: object) -> None:
    assert callable(check)
    assert check(sources()) == []


def test_the_import_graph_of_rooms_is_small() -> None:
    folders = {name for name in ROOMS if (ROOT / name.replace(".", "/")).is_dir()}
    between = {edge for edge in edges(sources()) if folders >= {*edge}}
    assert len(between) < MOST_EDGES, sorted(between)


# That each of them can fail.


@pytest.mark.parametrize(
    "source", ["import time", "from time import monotonic", "import anyio.abc", "def f():\n import socket"]
)
@pytest.mark.parametrize("module", ["policies.fair", "gateway.scheduling.admission", "loadtest.spark.engine"])
def test_an_impure_import_is_found(module: str, source: str) -> None:
    (fault,) = impurities({module: source})
    assert fault.startswith(f"{module} is in a pure room and imports ")


@pytest.mark.parametrize("source", ["open('x')", "path.read_text()", "def f():\n return files('gateway')"])
def test_reading_a_file_in_a_pure_room_is_found(source: str) -> None:
    (fault,) = impurities({"gateway.pricing.profile": source})
    assert fault.startswith("gateway.pricing.profile is in a pure room and calls ")


@pytest.mark.parametrize(
    "source",
    [
        "import gateway.proxy.waiting_room",
        "from gateway.proxy import waiting_room",
        "from gateway.proxy.waiting_room import WaitingRoom",
    ],
)
def test_a_shell_below_a_pure_module_is_found(source: str) -> None:
    (fault,) = impurities({"gateway.pricing.cost_model": source, "gateway.proxy.waiting_room": ""})
    assert fault == "gateway.pricing.cost_model is in a pure room and imports gateway.proxy.waiting_room"


def test_a_shell_may_do_io() -> None:
    assert impurities({"gateway.proxy.waiting_room": "import anyio", "loadtest.demo": "import time"}) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("policies.fair", "gateway.scheduling.admission"),
        ("policies.fair", "loadtest"),
        ("gateway.app", "loadtest.spark.engine"),
        ("gateway.cli.main", "loadtest.cli.main"),
        ("gateway.pricing.cost_model", "gateway.scheduling.admission"),
    ],
)
def test_an_import_upwards_is_found(module: str, name: str) -> None:
    assert upward({module: f"import {name}"}) == [f"{module} imports {name}, which is above it"]


def test_policies_use_the_standard_library_alone() -> None:
    assert upward({"policies.fair": "import heapq\nfrom policies.base import Job"}) == []
    assert upward({"policies.fair": "import msgspec"}) == [
        "policies.fair imports msgspec, which is not in the standard library"
    ]


def test_a_circle_is_found() -> None:
    circle = {
        "gateway.pricing.a": "import gateway.pricing.b",
        "gateway.pricing.b": "from gateway.pricing import c",
        "gateway.pricing.c": "def f():\n from gateway.pricing.a import x",
    }
    (found,) = circles(circle)
    assert all(module in found for module in circle)


def test_a_module_without_a_room_is_found() -> None:
    (fault,) = unknown_rooms({"gateway.scheduling.admission": "", "gateway.newcomer": ""})
    assert fault == "gateway.newcomer: which room is it in? Add it to ROOMS in test_layers.py"


def test_a_room_that_went_away_is_noticed() -> None:
    assert "gateway.pricing is listed and does not exist" in missing_rooms({"gateway.scheduling.admission": ""})


def test_a_full_room_is_found() -> None:
    crowd = {f"gateway.pricing.m{number}": "" for number in range(MOST_IN_A_ROOM + 1)}
    assert attics(crowd) == [f"gateway.pricing has {MOST_IN_A_ROOM + 1} modules"]
