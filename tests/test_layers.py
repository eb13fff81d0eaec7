"""Who may import whom. The source is read, not run, so that an import inside a function counts too.

    policies   the standard library and policies
    gateway    policies; its command line also loadtest
    loadtest   policies and gateway

A pure module decides and computes; it has no clock, no I/O, no log and no server, which is what lets the simulator
and the tests drive it. Imports point down: a pure module imports no shell, and nobody imports in a circle.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("policies", "gateway", "loadtest")

_PURE = """
policies policies.backlog policies.base policies.deadline policies.drr policies.fair policies.fifo
policies.ordered policies.shortest policies.turns
gateway gateway.admission gateway.api gateway.api.audio gateway.api.base gateway.api.chat
gateway.api.completions gateway.api.conversation gateway.api.errors gateway.api.messages gateway.api.openai
gateway.api.pooling gateway.api.responses gateway.background gateway.callers gateway.config gateway.cost
gateway.curve gateway.decision_log gateway.errors gateway.estimator gateway.event gateway.exchange
gateway.feedback gateway.forecast gateway.forecaster gateway.keys gateway.learned gateway.learners
gateway.ledger gateway.limits gateway.line gateway.outcome gateway.pace gateway.places gateway.prefix_index
gateway.priority gateway.profile gateway.prompt gateway.prompt_fields gateway.regression gateway.routes
gateway.semconv gateway.settings gateway.slicer gateway.sse gateway.timeline gateway.unnamed gateway.usage
gateway.wishes
loadtest loadtest.calibration loadtest.calibration.accuracy loadtest.calibration.calibration
loadtest.calibration.cost_fit loadtest.calibration.fit loadtest.calibration.ladder
loadtest.calibration.measurements loadtest.client loadtest.client.answer loadtest.client.texts loadtest.front
loadtest.policy_table loadtest.pricing loadtest.records loadtest.replay loadtest.report
loadtest.report.bootstrap loadtest.report.braille loadtest.report.charts loadtest.report.comparison
loadtest.report.differences loadtest.report.figures loadtest.report.gallery loadtest.report.groups
loadtest.report.page loadtest.report.points loadtest.report.price_curve loadtest.report.sentence
loadtest.report.strips loadtest.report.svg loadtest.report.terminal loadtest.report.units
loadtest.report.vllm_json loadtest.request loadtest.results loadtest.schedule loadtest.simulate loadtest.spark
loadtest.spark.api loadtest.spark.body loadtest.spark.decoding loadtest.spark.engine loadtest.spark.kv_cache
loadtest.spark.profile loadtest.spark.sequence loadtest.spark.timing loadtest.spark.tokens loadtest.summary
loadtest.workloads loadtest.workloads.closed_loops loadtest.workloads.office loadtest.workloads.office_mix
loadtest.workloads.open_loops loadtest.workloads.sharegpt loadtest.workloads.starvation
loadtest.workloads.workload
"""
PURE = set(_PURE.split())

_SHELL = """
gateway.__main__ gateway.app gateway.chat_template gateway.cli gateway.client gateway.comments
gateway.connection gateway.engine gateway.keepalive gateway.key_commands gateway.keys_file
gateway.local_tokenizer gateway.metrics gateway.options gateway.parts gateway.passed_on gateway.proxy
gateway.server gateway.state_file gateway.telemetry gateway.tokenizer gateway.tracing gateway.upstream
gateway.waiting
loadtest.calibration.bench loadtest.client.connection loadtest.client.load_client loadtest.client.probe
loadtest.commands loadtest.demo loadtest.live_display loadtest.load_commands loadtest.process
loadtest.profile_commands loadtest.provenance loadtest.runs loadtest.spark.answer loadtest.spark.frontend
loadtest.spark.live_engine loadtest.spark.metrics loadtest.spark.server loadtest.suite
"""
SHELL = set(_SHELL.split())

IMPURE = {
    *("asyncio", "anyio", "httpx", "starlette", "uvicorn", "opentelemetry", "prometheus_client"),
    *("time", "socket", "logging", "threading"),
}

COMMAND_LINES = {"gateway.cli"}
MAY_USE = {"policies": set[str](), "gateway": {"policies"}, "loadtest": {"policies", "gateway"}}

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


def imports_at_load(module: str, sources: Sources) -> set[str]:
    """Those that run when the module is loaded: not in functions, and not for the type checker alone."""

    def walk(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            yield node
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.orelse)
            else:
                yield from walk(ast.iter_child_nodes(node))

    return set(imports(walk([ast.parse(sources[module])]), sources)) & set(sources)


def top(name: str) -> str:
    return name.partition(".")[0]


# Each check answers with what is wrong, in words.


def undecided(sources: Sources) -> list[str]:
    return [
        f"{module}: is it pure, or a shell? Say so in {Path(__file__).name}"
        for module in sorted({*sources} - PURE - SHELL)
    ]


def gone(sources: Sources) -> list[str]:
    return [f"{module} is listed and does not exist" for module in sorted((PURE | SHELL) - {*sources})]


def impurities(sources: Sources) -> list[str]:
    return [
        f"{module} is pure and imports {name}"
        for module in sorted({*sources} & PURE)
        for name in sorted(all_imports(module, sources))
        if top(name) in IMPURE or name in SHELL
    ]


def upward(sources: Sources) -> list[str]:
    faults = []
    for module in sorted(sources):
        for name in sorted(all_imports(module, sources)):
            package = top(module)
            if top(name) in PACKAGES and top(name) not in MAY_USE[package] | {package}:
                if module not in COMMAND_LINES:
                    faults.append(f"{module} imports {name}")
            elif package == "policies" and top(name) not in sys.stdlib_module_names | {"policies"}:
                faults.append(f"{module} imports {name}, which is not in the standard library")
    return faults


def cycle(sources: Sources) -> list[str]:
    graph = {module: imports_at_load(module, sources) - {module} for module in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


CHECKS = [undecided, gone, impurities, upward, cycle]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_layers(check: object) -> None:
    assert callable(check)
    assert check(sources()) == []


def test_nothing_is_pure_and_a_shell() -> None:
    assert not PURE & SHELL


# That each of them can fail.


@pytest.mark.parametrize(
    "source", ["import time", "from time import monotonic", "import anyio.abc", "def f():\n import socket"]
)
@pytest.mark.parametrize("module", ["policies.fair", "gateway.admission", "loadtest.spark.engine"])
def test_an_impure_import_is_found(module: str, source: str) -> None:
    (fault,) = impurities({module: source})
    assert fault.startswith(f"{module} is pure and imports ")


@pytest.mark.parametrize(
    "source", ["import gateway.waiting", "from gateway import waiting", "from gateway.waiting import Permit"]
)
def test_a_shell_below_a_pure_module_is_found(source: str) -> None:
    (fault,) = impurities({"gateway.cost": source, "gateway.waiting": ""})
    assert fault == "gateway.cost is pure and imports gateway.waiting"


def test_a_shell_may_do_io() -> None:
    assert impurities({"gateway.waiting": "import anyio", "loadtest.demo": "import time"}) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("policies.fair", "gateway.admission"),
        ("policies.fair", "loadtest"),
        ("gateway.app", "loadtest.spark.engine"),
        ("gateway.__main__", "loadtest"),
    ],
)
def test_an_import_upwards_is_found(module: str, name: str) -> None:
    assert upward({module: f"import {name}"}) == [f"{module} imports {name}"]


def test_policies_use_the_standard_library_alone() -> None:
    assert upward({"policies.fair": "import heapq\nfrom policies.base import Job"}) == []
    assert upward({"policies.fair": "import msgspec"}) == [
        "policies.fair imports msgspec, which is not in the standard library"
    ]


def test_the_command_line_may_use_all() -> None:
    assert upward({"gateway.cli": "from loadtest.commands import register"}) == []


def test_a_circle_is_found() -> None:
    circle = {
        "gateway.a": "import gateway.b",
        "gateway.b": "from gateway import c",
        "gateway.c": "from gateway.a import x",
    }
    (found,) = cycle(circle)
    assert all(module in found for module in circle)


def test_an_import_that_does_not_run_at_load_makes_no_circle() -> None:
    for late in ("def f():\n import gateway.a", "if TYPE_CHECKING:\n import gateway.a"):
        assert cycle({"gateway.a": "import gateway.b", "gateway.b": late}) == []


def test_a_new_module_must_be_decided_on() -> None:
    (fault,) = undecided({"gateway.admission": "", "gateway.newcomer": ""})
    assert fault == "gateway.newcomer: is it pure, or a shell? Say so in test_layers.py"


def test_a_module_that_went_away_is_noticed() -> None:
    assert "gateway.cost is listed and does not exist" in gone({"gateway.admission": ""})
