"""The pages for developers say what is so: the diagram, the rooms, files, commands, names and terms.

They are docs/architecture.md, docs/glossary.md and CONTRIBUTING.md. Words that were retired stay out of the code.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.scheduling.events import EVENTS
from gateway.scheduling.ticket import Phase
from gateway.scheduling.transitions import TRANSITIONS
from tests.support.repository import ROOT
from tests.support.state_diagram import COMMAND, drawn

ARCHITECTURE = ROOT / "docs" / "architecture.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = pytest.mark.parametrize("page", [ARCHITECTURE, GLOSSARY, CONTRIBUTING], ids=lambda page: page.name)

PACKAGES = ("gateway", "policies", "loadtest")

SOURCES = {str(path.relative_to(ROOT)): path.read_text() for each in PACKAGES for path in (ROOT / each).rglob("*.py")}


def code_spans(page: Path) -> list[str]:
    """What stands between backticks, in one line."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


# The diagram.


def test_the_diagram_is_drawn_from_the_table_of_transitions() -> None:
    text = ARCHITECTURE.read_text()
    assert text == drawn(text), f"the table of transitions has changed; draw the diagram again with: {COMMAND}"


def test_a_page_without_a_place_for_the_diagram_is_an_error() -> None:
    with pytest.raises(ValueError, match="transitions:begin"):
        drawn("A page.\n")


# The events.


Moves = set[tuple[str, str]]


def moves_in_the_page() -> dict[str, Moves]:
    """Of each event in the table of events, from which phase to which it leads."""
    found = {}
    for event, cell in re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]*(?:→|stay)[^|]*) \|$", ARCHITECTURE.read_text(), re.MULTILINE
    ):
        found[event] = {move for clause in cell.split("; ") for move in moves_of(clause)}
    return found


def moves_of(clause: str) -> Moves:
    """`queued, requeued → prefill`, or `decode stays`."""
    before, _, after = clause.partition(" → ")
    phases = re.sub(" stays?$", "", before).split(", ")
    return {(phase, after or phase) for phase in phases}


def test_the_table_of_events_has_the_phases_of_the_table_of_transitions() -> None:
    moves: dict[str, Moves] = defaultdict(set)
    moves["Arrived"] = {("new", Phase.QUEUED)}
    for phase, following in TRANSITIONS.items():
        for event, after in following.items():
            moves[event.__name__].add((phase, after))
    assert moves_in_the_page() == moves


def test_every_event_is_in_the_text() -> None:
    assert [event.__name__ for event in EVENTS if f"`{event.__name__}`" not in ARCHITECTURE.read_text()] == []


# The rooms.


def rooms_of_the_tests() -> dict[str, str]:
    """`ROOMS` of tests/test_layers.py: pure or shell, by the room's path."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["ROOMS"]
    )
    kinds: dict[str, str] = ast.literal_eval(value)
    return {room_path(name): kind for name, kind in kinds.items()}


def room_path(name: str) -> str:
    path = name.replace(".", "/")
    return f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"


def is_told_in_the_text(room: str) -> bool:
    """The packages and their `__main__` are no rows of the table."""
    return room in ("gateway/", "loadtest/") or room.endswith("__main__.py")


def test_the_table_of_rooms_is_the_one_that_is_tested() -> None:
    """In the same order, for the order says what may be imported."""
    rows = re.findall(r"^\| `([\w./]+)` \| (pure|shell) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    rooms = {room: kind for room, kind in rooms_of_the_tests().items() if not is_told_in_the_text(room)}
    assert rows == [*rooms.items()]


def test_every_folder_is_in_the_text() -> None:
    text = ARCHITECTURE.read_text()
    assert [room for room in rooms_of_the_tests() if room.endswith("/") and f"`{room}`" not in text] == []


# Files and commands.


def paths(page: Path) -> Iterator[str]:
    """Between backticks, and in links. What begins with a slash is a route."""
    for span in code_spans(page):
        if re.fullmatch(r"[\w.-]+(/[\w.-]*)+|[\w-]+\.(py|md|toml|lock)", span):
            yield span
    folder = page.parent.relative_to(ROOT)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        yield str(folder / target)


@PAGES
def test_every_file_that_is_named_exists(page: Path) -> None:
    assert [path for path in paths(page) if not (ROOT / path).exists()] == []


def test_files_are_found_in_the_text() -> None:
    assert {"gateway/app.py", "gateway/pricing/", "docs/glossary.md", "docs/../CONTRIBUTING.md"} <= {
        *paths(ARCHITECTURE)
    }


@PAGES
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
    assert named <= targets


def test_every_make_target_with_a_description_is_in_contributing() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = CONTRIBUTING.read_text()
    assert [target for target in targets if f"`make {target}`" not in text and target != "help"] == []


# Names of the code.


def identifiers(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that the source gives or uses, with its line."""
    for each in ast.walk(node):
        line = getattr(each, "lineno", 0)
        match each:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, line
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name, line
            case ast.keyword(arg=str(name)) | ast.alias(asname=str(name)) | ast.alias(name=name):
                yield name, line


@cache
def names_of_the_code() -> dict[str, set[str]]:
    """Every name, and of a class the names inside of it."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in SOURCES.values():
        tree = ast.parse(source)
        for name, _ in identifiers(tree):
            found.setdefault(name, set())
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name] |= {name for name, _ in identifiers(node)}
    return found


def unknown_names(spans: list[str]) -> list[str]:
    """Those of `name`, `Class` and `Class.member` that the code does not have."""
    known = names_of_the_code()
    unknown = []
    for span in spans:
        owner, _, member = span.partition(".")
        if owner not in known or (member and member not in known[owner]):
            unknown.append(span)
    return unknown


def names(page: Path) -> list[str]:
    """What looks like a name and is not a file."""
    spans = [span for span in code_spans(page) if re.fullmatch(r"\w+(\.\w+)?", span) and not (ROOT / span).exists()]
    return [span for span in spans if span not in NOT_NAMES]


# Between backticks, and not names of the code: words of Python's, commands, policies, names in the tests.
NOT_NAMES = {"await", "finally", "fair", "fairlane", "IMPURE", "READS_FILES", "ROOMS"}


@pytest.mark.parametrize("page", [ARCHITECTURE, GLOSSARY], ids=lambda page: page.name)
def test_every_name_that_is_mentioned_is_in_the_code(page: Path) -> None:
    assert unknown_names(names(page)) == []


def test_a_name_that_is_gone_is_found() -> None:
    gone = ["NoSuchClass", "Admission.no_such_method"]
    assert unknown_names(["Admission", "Admission.apply", *gone]) == gone


# The glossary.

# What a reader of the code meets; each must be explained.
TERMS = (
    *("job", "flow", "session", "caller", "rights", "front end", "background", "hints"),
    *("lane", "seat", "permit", "ticket", "phase", "budget", "ledger", "weight", "head start", "deadline"),
    *("dispatch", "requeue", "scheduled", "keep-alive", "queue view", "decision log", "reject", "evict"),
    *("slice", "slice plan", "contended", "circuit breaker"),
    *("price", "cost", "charge", "settle", "cached tokens", "uncached tokens", "prefix hash", "cost profile"),
    *("prior", "observation", "snapshot", "state file"),
    *("first token", "prefill", "decode", "step", "block", "external", "correction"),
    *("slowdown of a lane", "outlook", "forecast", "promise"),
    *("outcome", "TTFT", "TPOT", "ITL", "E2E"),
    *("deployment", "record", "direct", "engine profile", "goodput", "makespan"),
)


def explained() -> list[str]:
    return re.findall(r"^\| \*\*([^*]+)\*\* \|", GLOSSARY.read_text(), re.MULTILINE)


def twice(terms: list[str] | tuple[str, ...]) -> list[str]:
    return [term for term, count in Counter(term.casefold() for term in terms).items() if count > 1]


def test_each_term_is_explained_once() -> None:
    assert twice(explained()) == []
    assert [term for term in TERMS if term not in explained()] == []


def test_no_term_is_listed_twice() -> None:
    assert twice(TERMS) == []
    assert twice(("lane", "seat", "Lane")) == ["lane"]


def test_every_row_of_the_glossary_has_a_meaning() -> None:
    rows = re.findall(r"^\| \*\*.*$", GLOSSARY.read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row for row in cells if len(row) != 4 or not row[1].endswith(".") or not row[3]] == []


def misplaced(rows: list[str]) -> list[str]:
    """Names in the last column that the file beside them does not define. `Class.member in file`; several by commas."""
    found = []
    for row in rows:
        for group in row.strip("| ").split("|")[-1].split(";"):
            spans, _, path = group.strip().rpartition(" in ")
            defined = defined_in(path.strip("`"))
            found += [f"{span} in {path}" for span in re.findall(r"`([^`]+)`", spans) or [row] if span not in defined]
    return found


@cache
def defined_in(path: str) -> set[str]:
    """Classes, functions, types and constants of a file, and `Class.member` for what a class has."""
    found = set()
    for node in ast.parse(SOURCES.get(path, "")).body:
        match node:
            case ast.ClassDef(name=name):
                found |= {name, *(f"{name}.{member}" for member, _ in identifiers(node))}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def test_every_row_of_the_glossary_names_the_file() -> None:
    assert misplaced(re.findall(r"^\| \*\*.*$", GLOSSARY.read_text(), re.MULTILINE)) == []


@pytest.mark.parametrize("cell", ["`Admission` in `policies/base.py`", "`Job.gone` in `policies/base.py`", "`Job`"])
def test_a_name_in_another_file_is_found(cell: str) -> None:
    assert len(misplaced([f"| **term** | Meaning. | | {cell} |"])) == 1


# Retired words.


class Retired(NamedTuple):
    """A name that meant too many things, or nothing; `where` it is no longer used."""

    name: str
    instead: str
    where: tuple[str, ...] = PACKAGES


GATEWAY = ("gateway", "policies")

RETIRED = (
    Retired("Parts", "what the object needs, each by itself"),
    Retired("Part", "Slice", GATEWAY),
    Retired("Slices", "SlicePlan"),
    Retired("Line", "JobQueue", GATEWAY),
    Retired("Pace", "EngineSpeed"),
    Retired("Track", "JobProgress"),
    Retired("Exchange", "RequestRecord"),
    Retired("Proxied", "InferenceEndpoint"),
    Retired("PassedOn", "Passthrough"),
    Retired("Unnamed", "MissingUserDetector"),
    Retired("SliceGuard", "SliceCircuitBreaker"),
    Retired("slice_guard", "circuit_breaker"),
    Retired("Learned", "CostSnapshot", ("gateway/pricing", "gateway/storage", "gateway/engine")),
    Retired("Seen", "PrefillObservation"),
    Retired("saw", "observe"),
    Retired("Said", "AnswerEvent"),
    Retired("Link", "PrefixHash"),
    Retired("Turns", "FairQueue"),
    Retired("Party", "Account"),
    Retired("Shape", "ErrorFormat", GATEWAY),
    Retired("shape", "error_format", GATEWAY),
    Retired("Place", "QueueEntry", GATEWAY),
    Retired("Client", "ClientConnection", GATEWAY),
    Retired("Engine", "EngineMonitor", GATEWAY),
    Retired("Answer", "EngineResponse", ("gateway/engine",)),
    Retired("Wishes", "SchedulingHints"),
    Retired("wishes", "hints"),
    Retired("read_wishes", "read_hints"),
    Retired("keep_company", "send_keepalives"),
    Retired("told_plainly", "user_errors"),
    Retired("start_anew", "reset"),
    Retired("asked_again", "retried"),
    Retired("let_go", "dispatched_at"),
    Retired("go_on", "requeue"),
    Retired("teach", "apply_to"),
    Retired("twin", "clone"),
    Retired("blame", "wait_attribution"),
    Retired("company", "is_contended"),
    Retired("stretch", "slowdown", GATEWAY),
    Retired("at_once", "first_attempt"),
    Retired("cut", "truncatable of a request, next_boundary of a slice", GATEWAY),
    Retired("give_seats", "release_seats"),
    Retired("give_cache", "release_kv"),
    Retired("foreign_seats", "external_seats"),
    Retired("foreign_kv_tokens", "external_kv_tokens"),
    Retired("Front", "Deployment", ("loadtest",)),
    Retired("front", "deployment", ("loadtest",)),
    Retired("TEN", "REFERENCE_DECODES"),
    Retired("WORTH", "MIN_SLICE_TO_OVERHEAD"),
    Retired("SLACK", "SIZE_TOLERANCE", ("gateway",)),
    Retired("MOST_PAUSE", "MAX_PAUSE_TO_SLICE"),
)


def retired_names(sources: dict[str, str]) -> list[str]:
    """Each place where one is used, and what to say instead."""
    instead = {each.name: each for each in RETIRED}
    return [
        f"{path}:{line}: {name} is retired; say {instead[name].instead}"
        for path, source in sorted(sources.items())
        for name, line in identifiers(ast.parse(source))
        if name in instead and any(path.startswith(f"{where}/") for where in instead[name].where)
    ]


def test_retired_names_stay_out_of_the_code() -> None:
    assert retired_names(SOURCES) == []


@pytest.mark.parametrize(
    "source",
    [
        "class Parts: ...",
        "def f(wishes): ...",
        "job.let_go = 1",
        "from x import Link",
        "import y as twin",
        "f(at_once=1)",
        "blame = 2",
    ],
)
def test_a_retired_name_is_found(source: str) -> None:
    (fault,) = retired_names({"gateway/app.py": source})
    assert fault.startswith("gateway/app.py:1: ")


def test_a_name_is_retired_only_where_it_meant_something_else() -> None:
    assert (
        retired_names({"loadtest/charts/braille.py": "class Line: ...", "policies/deadline.py": "SLACK = 30.0"}) == []
    )


def test_each_name_is_retired_once_and_none_takes_its_place() -> None:
    listed = [each.name for each in RETIRED]
    assert len(listed) == len(set(listed))
    assert [each for each in RETIRED if each.instead in listed] == []
